//! Which hosts are attached, and how to reach them.
//!
//! Each attach is a session with an epoch: the newest one of a host counts, frames of an older one
//! are refused. A session's stream ends with what its `End` says.

mod confined;
pub(crate) mod door;
mod driver;
mod receipts;
mod reconcile;
mod renumber;
mod report;
mod upload;

use std::{sync::Arc, time::Duration};

use muster_proto::v1::AuditHead;
use tokio::sync::watch;

pub(crate) use self::{driver::attach, receipts::Receipts, report::report, upload::upload};
use crate::{
    audit::Audit, hosts::Inventory, jobs::Jobs, restores::Restores, rotation::Rotation,
    sessions::Sessions, store::Syncer,
};

/// How agents are treated.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionSettings {
    /// How often agents give a sign of life.
    pub(crate) heartbeat_interval: Duration,
    /// A connection that is silent for this long is closed.
    pub(crate) offline_after: Duration,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(10),
            offline_after: Duration::from_secs(45),
        }
    }
}

/// What the streams of agents work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rooms {
    /// Jobs and tasks.
    pub(crate) jobs: Jobs,
    /// Which hosts are attached.
    pub(crate) connections: Sessions,
    /// The hosts.
    pub(crate) inventory: Inventory,
    /// The output of tasks.
    pub(crate) output: crate::output::OutputStore,
    /// What is durable.
    pub(crate) syncer: Syncer,
    /// Restores, and what hosts owe after one.
    pub(crate) restores: Restores,
    /// Whom hosts are to trust.
    pub(crate) rotation: Rotation,
    /// Whether what hosts sign verifies.
    pub(crate) receipts: Receipts,
    /// What hosts do is recorded.
    pub(crate) audit: Audit,
    /// The newest head of that record, which hosts are given.
    pub(crate) head: watch::Receiver<Option<AuditHead>>,
    /// Hears how many bytes of output tasks of a principal wrote.
    pub(crate) written: Written,
    /// Intervals.
    pub(crate) settings: ConnectionSettings,
}

/// Hears of a principal and how many bytes its tasks wrote. Never waits.
pub(crate) type Written = Arc<dyn Fn(&Arc<str>, u64) + Send + Sync>;

#[cfg(test)]
mod tests;
