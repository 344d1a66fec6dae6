//! What hosts still know of tasks that a restored ledger lacks.

use std::collections::HashMap;

use bytes::Bytes;
use muster_proto::ids::{HostId, TaskId};

use super::{AdoptError, Jobs};
use crate::{
    model::{Ending, Fence, GAP_CAUSE, State, Stream, order::record::OrderRecord},
    output::{Gap, OutputError},
    store::{
        StoreError,
        restores::{self as rows, Standing},
    },
};

/// A task as its host's history knows it.
pub(crate) struct Recalled {
    /// The task.
    pub(crate) task_id: TaskId,
    /// Its offer, if its seal is ours.
    pub(crate) offer: Option<OrderRecord>,
    /// When it started, if it did, and how far it was confined.
    pub(crate) started: Option<(i64, Bytes)>,
    /// How it ended.
    pub(crate) ending: Ending,
    /// How many bytes it wrote to standard output, or to its terminal.
    pub(crate) stdout_bytes: i64,
    /// How many bytes it wrote to standard error.
    pub(crate) stderr_bytes: i64,
}

/// Why a recalled task was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecallError {
    /// Nobody knows it, or it is another host's, and no seal says otherwise.
    #[error(
        "the task is not known as this host's, and its offer is not sealed by this control plane for it"
    )]
    Unsealed,
    /// The ledger does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output store does not work.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Whether to ask a host for a task that it says it knows to its end.
fn wants(host: HostId, known: Option<Standing>) -> bool {
    match known {
        None => true,
        Some(known) if known.host_id != host => false,
        Some(known) if known.state == State::Lost => !known.late,
        Some(known) => !(known.state.is_final() && known.output_complete),
    }
}

impl Jobs {
    /// Those of a host's settled tasks that the ledger does not know, or not to their end.
    pub(crate) async fn wanted(
        &self,
        host: HostId,
        tasks: &[TaskId],
    ) -> Result<Vec<TaskId>, StoreError> {
        let stored = rows::standing(&self.0.store.readers, tasks).await?;
        let mut known: HashMap<TaskId, Standing> = stored.into_iter().collect();
        // What is live may not be written yet.
        let live = self.0.live.lock();
        for id in tasks {
            if let Some((job, ordinal)) = live.tasks.get(id) {
                let standing = job.look(*ordinal, |task| Standing {
                    host_id: task.host_id,
                    state: task.state,
                    output_complete: task.output_complete,
                    late: !task.late_result.is_empty(),
                });
                known.insert(*id, standing);
            }
        }
        drop(live);
        let wanted = tasks.iter().copied();
        Ok(wanted
            .filter(|id| wants(host, known.get(id).copied()))
            .collect())
    }

    /// Takes in what a host knows of a settled task. Output that it handed over and this control plane lacks becomes a
    /// gap. Returns the sequence up to which the output store must be durable.
    pub(crate) async fn recall(
        &self,
        host: HostId,
        fence: Fence,
        recalled: Recalled,
    ) -> Result<i64, RecallError> {
        let id = recalled.task_id;
        let offer = recalled
            .offer
            .filter(|offer| offer.task() == Some((id, host)));
        let task = match (self.find(id).await?, offer) {
            (Some(task), _) if task.look(|task| task.host_id) != host => {
                return Err(RecallError::Unsealed);
            }
            (Some(task), offer) => {
                // That it left is proved by the seal; 0 is the epoch of sessions before this process.
                if offer.is_some() && task.look(|task| task.offered.is_none()) {
                    self.proved_offered(&task, fence, 0);
                }
                task
            }
            (None, None) => return Err(RecallError::Unsealed),
            (None, Some(offer)) => {
                let adopted = self.adopt(offer, fence).await;
                adopted.map_err(|error| match error {
                    AdoptError::Ids | AdoptError::Unreadable(_) => RecallError::Unsealed,
                    AdoptError::Store(error) => error.into(),
                })?
            }
        };
        let taken = match recalled.started {
            Some((time, confinement)) => self.started(&task, time, confinement),
            None => Ok(()),
        }
        .and_then(|()| self.ended(&task, recalled.ending));
        if let Err(error) = taken {
            tracing::error!(task.id = %id, %error, "what a host recalls contradicts the ledger: {error}");
        }
        if !task.look(|task| task.state.is_final()) {
            return Ok(0);
        }
        if task.look(|task| task.output_end.is_some()) {
            return Ok(self.0.output.last_sequence(id).await?);
        }
        let last = self
            .fill_output(id, recalled.stdout_bytes, recalled.stderr_bytes)
            .await?;
        self.output_ended(&task, last);
        Ok(last)
    }

    /// Puts gaps where output is missing up to these sizes. Returns the last sequence.
    async fn fill_output(
        &self,
        id: TaskId,
        stdout_bytes: i64,
        stderr_bytes: i64,
    ) -> Result<i64, OutputError> {
        let output = &self.0.output;
        let end = async |stream| output.end(id, Some(stream)).await;
        let (stdout, pty) = (end(Stream::Stdout).await?, end(Stream::Pty).await?);
        let stderr = end(Stream::Stderr).await?;
        // A host counts both as one; a task has either.
        let (main, offset) = match pty {
            0 => (Stream::Stdout, stdout),
            pty => (Stream::Pty, pty),
        };
        let mut sequence = output.last_sequence(id).await?;
        for (stream, offset, length) in [
            (main, offset, stdout_bytes.saturating_sub(stdout + pty)),
            (Stream::Stderr, stderr, stderr_bytes.saturating_sub(stderr)),
        ] {
            if length > 0 {
                sequence += 1;
                let gap = Gap {
                    sequence,
                    stream,
                    offset,
                    length,
                    cause: GAP_CAUSE.to_owned(),
                };
                output.gap(id, gap).await?;
            }
        }
        Ok(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_to_its_end_is_not_asked_for_and_nobody_speaks_for_another() {
        let (own, other) = (HostId::from_bytes(&[1; 32]), HostId::from_bytes(&[2; 32]));
        assert!(wants(own, None));
        for (state, _) in State::ALL {
            for (output_complete, late) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let known = Standing {
                    host_id: own,
                    state,
                    output_complete,
                    late,
                };
                let whole = match state {
                    State::Lost => late,
                    state => state.is_final() && output_complete,
                };
                assert_eq!(wants(own, Some(known)), !whole, "{known:?}");
                assert!(!wants(other, Some(known)));
            }
        }
    }
}
