//! Following one task: its output after a sequence, then live, and its states in between.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Job, Jobs, TaskRef,
    watch::{Event, Shown, UPDATE_BYTES, WatchError},
};
use crate::{model::Task, output::OutputStore};

/// Follows a task.
pub(crate) struct TaskWatch {
    job: Arc<Job>,
    ordinal: u32,
    output: OutputStore,
    changed: watch::Receiver<()>,
    shown: Shown,
}

impl TaskWatch {
    /// Its job.
    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// What happens next, and never nothing; `None` once the task is final and its output complete and shown.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Event>>, WatchError> {
        loop {
            self.changed.borrow_and_update();
            // Before the look: what is not done now wakes us again.
            let done = self.job.look(self.ordinal, Task::is_done);
            let mut events = Vec::new();
            let mut budget = UPDATE_BYTES;
            let all = self
                .shown
                .show(
                    &self.job,
                    self.ordinal,
                    Some(&self.output),
                    &mut budget,
                    &mut events,
                )
                .await?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            if all && (done || self.changed.changed().await.is_err()) {
                return Ok(None);
            }
        }
    }
}

impl Jobs {
    /// Follows a task after a sequence of its output.
    pub(crate) fn follow(&self, task: &TaskRef, after_sequence: i64) -> TaskWatch {
        TaskWatch {
            job: Arc::clone(&task.job),
            ordinal: task.ordinal,
            output: self.0.output.clone(),
            changed: task.job.changed(),
            shown: Shown::after(after_sequence),
        }
    }
}
