//! The Rust SDK: connect, run, watch, resume.
