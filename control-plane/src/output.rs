//! The output of tasks, in segment files of its own.
