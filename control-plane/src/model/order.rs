//! What was asked for, and how a job that came of it stands.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::{
    ids::JobId,
    v1::{Action, action},
};
use prost::Message as _;

use super::{Counts, JobState, Kind};

/// What was asked for. Never changes. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Follows from control plane, principal and request id.
    pub(crate) job_id: JobId,
    /// Who asked: `operator/ada`.
    pub(crate) principal: Arc<str>,
    /// As the caller gave it.
    pub(crate) request_id: Arc<str>,
    /// SHA-256 of the request.
    pub(crate) request_digest: [u8; 32],
    /// As the caller gave it.
    pub(crate) selector: Arc<str>,
    /// A serialized `muster.v1.Action`: the rooms carry it, they do not look inside.
    pub(crate) action: Bytes,
    /// A serialized `muster.v1.Confinement`: how far tasks may reach. Empty lets the host's ceiling decide.
    pub(crate) confinement: Bytes,
    /// Why, as the caller gave it; may be empty.
    pub(crate) reason: Arc<str>,
    /// The approval that it runs by; empty if it needs none.
    pub(crate) approval_id: Arc<str>,
    /// When it was accepted.
    pub(crate) create_time: i64,
    /// When tasks expire that their hosts have not started.
    pub(crate) start_deadline_time: i64,
    /// Milliseconds that a silent host keeps its tasks from being lost.
    pub(crate) lost_after: i64,
}

impl Order {
    /// Whether the output of its tasks is kept with its times.
    pub(crate) fn records_times(&self) -> bool {
        let action = Action::decode(Bytes::clone(&self.action)).ok();
        let kind = action.and_then(|action| action.kind);
        matches!(kind, Some(action::Kind::Command(command)) if command.record)
    }

    /// What its tasks do; `None` if this version does not know that kind.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let action = Action::decode(self.action.as_ref()).ok()?;
        Kind::of(&action)
    }
}

/// A job without its tasks, as it stands now.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    /// What was asked for.
    pub(crate) order: Arc<Order>,
    /// Where it stands.
    pub(crate) state: JobState,
    /// How many tasks are in which state.
    pub(crate) counts: Counts,
    /// When a task first started.
    pub(crate) start_time: Option<i64>,
    /// When the last task became final.
    pub(crate) end_time: Option<i64>,
    /// When cancelling was first asked for, and by whom.
    pub(crate) cancel: Option<(i64, Arc<str>)>,
    /// What a reader should know.
    pub(crate) note: Arc<str>,
}
