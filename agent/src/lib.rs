//! Runs tasks on its host and reports.
