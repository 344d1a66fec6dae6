//! A job's part on one host, as it stands in memory.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::{
    ids::{HostId, JobId, TaskId},
    v1::Reason,
};

use super::{Entry, EntryText, OutputSize, State};

/// What must be the same for a host to be offered a task again: its boot and its agent's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fence {
    /// Random id of the host's boot.
    pub(crate) boot_id: Arc<str>,
    /// Random id of the agent's journal.
    pub(crate) journal_id: Arc<str>,
}

/// Whether a restore of the control plane holds a task back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It is younger than the last restore.
    None,
    /// An operator has to release it.
    Held,
    /// It was released; its host has to have uploaded what it knows.
    Released,
}

/// How a task ended, as its host's journal says.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    /// A final state.
    pub(crate) state: State,
    /// Why.
    pub(crate) reason: Reason,
    /// The reason in words; may be empty.
    pub(crate) message: String,
    /// Set if the process exited by itself.
    pub(crate) exit_code: Option<i32>,
    /// Name of the signal that ended it; empty if none did.
    pub(crate) signal: String,
    /// How long it ran, microseconds by the host's clock; `None` if it never did.
    pub(crate) run_time: Option<i64>,
    /// When, Unix milliseconds by the control plane's clock.
    pub(crate) time: i64,
    /// What the host gives a receipt by: a serialized [`ReceiptRecord`](super::ReceiptRecord); empty without one.
    pub(crate) receipt: Bytes,
    /// A serialized `muster.v1.TaskResult`; empty without one.
    pub(crate) result: Bytes,
}

/// A task. Times are Unix milliseconds by the control plane's clock.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Follows from job and host.
    pub(crate) task_id: TaskId,
    /// Its host.
    pub(crate) host_id: HostId,
    /// The host's name when the job was created.
    pub(crate) host_name: Arc<str>,
    /// The task's state.
    pub(crate) state: State,
    /// Why, where the state alone does not say.
    pub(crate) reason: Reason,
    /// The reason in words; may be empty.
    pub(crate) message: String,
    /// Since when it stands there, or waits for what it waits for.
    pub(crate) state_time: i64,
    /// Under what it may have been offered; `None`: it never left the control plane.
    pub(crate) offered: Option<Fence>,
    /// The session that offers it, or did; 0 for one before the start of this control plane. Not stored.
    pub(crate) offer_epoch: i64,
    /// When the process started.
    pub(crate) start_time: Option<i64>,
    /// When it became final.
    pub(crate) end_time: Option<i64>,
    /// Set once the process has exited by itself.
    pub(crate) exit_code: Option<i32>,
    /// Name of the signal that ended the process; empty if none did.
    pub(crate) signal: String,
    /// How long the process ran, microseconds by the host's clock.
    pub(crate) run_time: Option<i64>,
    /// The last sequence of its output, once the host has said it.
    pub(crate) output_end: Option<i64>,
    /// Nothing will be added to the output any more.
    pub(crate) output_complete: bool,
    /// How much output there was when last looked at.
    pub(crate) output_size: OutputSize,
    /// When cancelling was asked for.
    pub(crate) cancel_time: Option<i64>,
    /// How long its tree may take to end politely, milliseconds; `None`: as the action says.
    pub(crate) cancel_grace: Option<i64>,
    /// A result that arrived after it was declared lost.
    pub(crate) late_result: String,
    /// Whether a restore holds it back.
    pub(crate) hold: Hold,
    /// A serialized [`ReceiptRecord`](super::ReceiptRecord); empty without one.
    pub(crate) receipt: Bytes,
    /// A serialized `muster.v1.Confinement`: how far it is confined, as its host says; empty while that is not told.
    pub(crate) confinement: Bytes,
    /// A serialized `muster.v1.TaskResult`: what it ended with beside exit code and streams; empty without one.
    pub(crate) result: Bytes,
    /// What speaks against the host's word, for people; empty where nothing does.
    pub(crate) doubt: String,
    /// The audit log says how it ended. Not stored: it is in one transaction with the final state.
    pub(crate) end_recorded: bool,
}

impl Task {
    /// A task that nobody has seen yet.
    pub(crate) fn new(
        task_id: TaskId,
        host_id: HostId,
        host_name: Arc<str>,
        offered: Option<Fence>,
        now: i64,
    ) -> Self {
        Self {
            task_id,
            host_id,
            host_name,
            state: State::Pending,
            reason: Reason::Unspecified,
            message: String::new(),
            state_time: now,
            offered,
            offer_epoch: 0,
            start_time: None,
            end_time: None,
            exit_code: None,
            signal: String::new(),
            run_time: None,
            output_end: None,
            output_complete: false,
            output_size: OutputSize::default(),
            cancel_time: None,
            cancel_grace: None,
            late_result: String::new(),
            hold: Hold::None,
            receipt: Bytes::new(),
            confinement: Bytes::new(),
            result: Bytes::new(),
            doubt: String::new(),
            end_recorded: false,
        }
    }

    /// What the audit log says of its end.
    pub(crate) fn end_entry(&self, job: JobId) -> EntryText {
        // No host can have said how a task ended that was never offered, or whose end cannot be proved.
        let late = !self.late_result.is_empty();
        let proved = self.offered.is_some() && (self.state != State::Lost || late);
        let mut entry = Entry::new("task.end")
            .by(if proved {
                format!("host/{}", self.host_id)
            } else {
                "control-plane".to_owned()
            })
            .on(self.host_id)
            .with("job", job)
            .with("task", self.task_id)
            .with("state", self.state.name());
        if let Some(code) = self.exit_code {
            entry = entry.with("exit_code", code);
        }
        if !self.signal.is_empty() {
            entry = entry.with("signal", &self.signal);
        }
        if late {
            entry = entry.with("late", &self.late_result);
        }
        if self.reason != Reason::Unspecified {
            entry.reason = self.reason.as_str_name().into();
        }
        entry.text()
    }

    /// Final, and no more output is expected. A lost task's output may stay incomplete for ever.
    pub(crate) fn is_done(&self) -> bool {
        self.state.is_final() && (self.output_complete || self.state == State::Lost)
    }
}
