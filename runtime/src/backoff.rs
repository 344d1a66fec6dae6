//! Jittered, bounded waits between tries.
