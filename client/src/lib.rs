//! The Rust SDK: connect, run, watch with resume.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod enrollment;
pub mod identity;
pub mod join;
