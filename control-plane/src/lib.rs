//! Knows every host, turns jobs into tasks, remembers what happened.
//!
//! Doors are in `api`; behind them are the rooms; below them is `store`; on the ground are `model`, `clock` and `times`.
//! Generated types end at `api` and at the connection driver, SQL ends at `store`, a gRPC status is made in `wire/status`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod api;
mod approvals;
mod audit;
mod authority;
mod backup;
mod clock;
mod config;
mod connections;
mod enrollment;
mod failpoint;
mod hosts;
mod jobs;
mod model;
mod oauth;
mod orders;
mod output;
mod policy;
mod restores;
mod rights;
mod rotation;
mod seal;
mod secrets;
mod selector;
mod server;
mod sessions;
mod store;
mod sweeper;
mod times;
mod wire;

pub use audit::AuditCost;
pub use authority::AuthorityError;
pub use backup::{BackedUp, BackupError, Restored, back_up, default_target, restore};
pub use config::Config;
pub use enrollment::JoinKind;
pub use oauth::OauthConfig;
pub use output::OutputConfig;
pub use policy::{DecisionTimes, PolicyError, PolicyFiles, TriedCase};
pub use server::{Server, ServerError};
pub use store::OpenError;
