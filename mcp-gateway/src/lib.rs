//! Offers the fleet to MCP clients as tools.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod render;
