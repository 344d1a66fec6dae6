//! Runs tasks on its host and reports.
//!
//! In reading order: the `agent` opens and runs the rest; its `connection` is the live stream; `tasks`
//! takes offers, journals, runs, reports and settles; `actions` says what each kind of them does; `supervision` is the
//! small processes that hold tasks; `process` starts and ends processes; `renewal` keeps the certificate fresh; `facts` says what the host is;
//! `standing` and `doorbell` tell whoever asks on the host how things are, and `service` makes all that a service
//! of the system.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod actions;
mod agent;
mod attempt;
mod clock;
mod config;
mod connection;
mod doorbell;
mod facts;
mod failpoint;
mod heads;
mod join;
mod memory;
mod policy;
mod process;
mod receipts;
mod renewal;
mod service;
mod session;
mod spool;
mod standing;
mod supervision;
mod tasks;

#[cfg(test)]
mod tests;

pub use agent::{Agent, AgentError};
pub use attempt::{Attempt, AttemptError, attempt};
pub use config::Config;
pub use doorbell::{Answer, Load, ask};
pub use heads::heads_file;
pub use join::{Join, NoJoinString, join};
pub use policy::{Mode, Permits, PolicyError};
pub use service::{
    InstallArgs, InstallError, Outcome, SERVICE, UninstallArgs, install, serve, uninstall,
};
pub use standing::Standing;
pub use supervision::supervise;
