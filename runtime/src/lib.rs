//! What every Muster process does alike: settings, telemetry, TLS, trying again, being a
//! service, stopping.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backoff;
pub mod config;
pub mod descriptors;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod threads;
pub mod tls;
