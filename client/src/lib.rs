//! The Rust SDK: connect, run, watch with resume.
//!
//! [`Client`] speaks for one principal over a channel that connects again by itself, and over further ones when many
//! watch at once. [`Client::run`]
//! creates a job exactly once, whatever is lost in between, and gives a [`JobWatch`] that continues
//! through broken connections without gap or repeat. [`Client::attach`] does the same for one task, and puts in what is
//! written exactly once. [`Client::read_file`] reads a file of one host or several, and [`files`] checks what came of it.
//! [`actions`] says what a job does in words, and [`audit`] verifies an audit log that was written down. Everything else is
//! in the generated clients: [`Client::hosts`], [`Client::jobs`], [`Client::access`], [`Client::enrollment`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod actions;
mod attach;
pub mod audit;
mod connect;
pub mod enrollment;
mod error;
pub mod files;
pub mod identity;
mod jobs;
pub mod join;
pub mod keys;
mod lines;
mod output;

pub use attach::{Attach, AttachEvent, Attachment, Over, Writing};
pub use connect::{Client, Credentials, Service};
pub use error::{ClientError, reason_of};
pub use jobs::{JobWatch, draw_request_id};
pub use output::OutputReader;
