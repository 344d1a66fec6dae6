//! Stories about a fleet, over real TLS, real SQLite and real processes.
#![allow(clippy::unwrap_used)]
