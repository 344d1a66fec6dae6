//! What every Muster process does alike: settings, telemetry, TLS, trying again, stopping.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backoff;
pub mod config;
pub mod descriptors;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
