//! Offers the fleet to MCP clients as tools.
//!
//! A call comes in over HTTP ([`Gateway`]) or standard input and output ([`serve_stdio`]), is let in by
//! its caller's credential, becomes one gRPC call to the control plane, and goes back as text that fits
//! a model's budget. The gateway has no rights of its own and keeps nothing: what matters is in the
//! control plane, and any gateway can answer any call.
//!
//! `http`, `stdio` → `handler` → `tools` → `watch` → `call`, `control_plane`; back through `render`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod call;
mod config;
mod confirm;
mod control_plane;
mod error;
mod gateway;
mod handler;
mod http;
mod progress;
mod render;
mod slots;
mod stdio;
mod tools;
mod watch;

#[cfg(test)]
mod tests;

pub use config::{Config, DEFAULT_LISTEN};
pub use gateway::{DIRECTORY, Gateway, GatewayError, has_joined, join, keep_fresh};
pub use http::PATH;
pub use stdio::{StdioError, serve_stdio};
