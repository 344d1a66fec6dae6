//! A whole fleet of real processes on loopback, and what stories about it need.
//!
//! `fleet` is the door: it starts the programs that people start, each host behind a [`cut::Cut`].
//! Nothing here sleeps: a story waits with [`eventually`] for what must come true.
#![allow(clippy::unwrap_used)]

pub mod collector;
pub mod console;
pub mod cut;
pub mod dice;
pub mod echo_host;
pub mod fake_agent;
pub mod fleet;
pub mod flow;
pub mod mcp;
pub mod operator;
pub mod process;
pub mod raw;
pub mod tally;
pub mod webhook;

mod patience;

pub use patience::{PATIENCE, eventually};
