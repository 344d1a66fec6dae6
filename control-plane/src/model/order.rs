//! What was asked for, and how a job that came of it stands.

pub(crate) mod record;

use std::sync::Arc;

use muster_proto::{ids::JobId, v1::Confinement};

use super::{Action, Counts, JobState, Kind, Values};

/// What was asked for. Never changes. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    /// Follows from control plane, principal and request id.
    pub(crate) job_id: JobId,
    /// Who asked: `operator/ada`.
    pub(crate) principal: Arc<str>,
    /// As the caller gave it.
    pub(crate) request_id: Arc<str>,
    /// SHA-256 of the request, whatever the order of its maps.
    pub(crate) request_digest: [u8; 32],
    /// As the caller gave it.
    pub(crate) selector: Arc<str>,
    /// What is to be done on each host.
    pub(crate) action: Action,
    /// The values that look secret, encrypted, by their names in the action; none once they are forgotten.
    pub(crate) secrets: Values,
    /// How far tasks may reach. One that says nothing lets the host's ceiling decide.
    pub(crate) confinement: Confinement,
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
    /// The kind of the job's tasks; `None` if this version does not know that kind.
    pub(crate) fn kind(&self) -> Option<Kind> {
        Kind::of(self.action.said())
    }
}

/// A job without its tasks, as it stands now.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    /// What was asked for.
    pub(crate) order: Arc<Order>,
    /// The job's state.
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
