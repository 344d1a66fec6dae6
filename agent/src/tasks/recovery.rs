//! What becomes of the tasks of an earlier agent. Their processes could not outlive it as tasks: what
//! is left of them is ended, and the result is said as far as it can be proved.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    agent::v1::{SealedOffer, task_state},
    v1::{Reason, task::State},
};
use nix::unistd::Pid;
use prost::Message;
use tracing::{Instrument, info_span};

use super::{
    Tasks, grace_of,
    journal::{Event, Held, Phase, Starting},
    not_after_ms,
    spool::Spool,
    task::Task,
};
use crate::process::Tree;

impl Tasks {
    /// Takes up what the journal holds unsettled.
    pub(super) fn recover(&self, unsettled: Vec<Held>) {
        for held in unsettled {
            let task_id = held.task_id;
            let _entered = info_span!("task", task.id = %task_id).entered();
            let spool = Spool::recover(
                task_id,
                Arc::clone(&self.0.room),
                self.0.limits.task_spool,
                held.produced,
            )
            .unwrap_or_else(|error| {
                tracing::error!(task.id = %task_id, %error, "kept output cannot be read: {error}");
                Spool::new(task_id, Arc::clone(&self.0.room), self.0.limits.task_spool)
            });
            let task = Task::new(
                task_id,
                held.sealed_offer.clone(),
                held.seal.clone(),
                Arc::new(spool),
            );
            if let Some(started) = held.started {
                task.started(self.0.journal.position(), started);
            }
            self.0.held.lock().insert(task_id, Arc::clone(&task));
            self.resolve(task, held);
        }
    }

    fn resolve(&self, task: Arc<Task>, held: Held) {
        let same_boot = held.boot_id == self.0.boot_id;
        match held.phase {
            Phase::Ended(ended) => task.ended(self.0.journal.position(), ended),
            Phase::Barred | Phase::Settled { .. } => {
                task.ended(self.0.journal.position(), self.cancelled_before_start());
            }
            // Not even an accepted one can be started after a reboot: that it was started may be just
            // what the power cut took from the journal.
            Phase::Accepted | Phase::Starting | Phase::Started if !same_boot => {
                let message = "the host was restarted while the task was in flight".to_owned();
                self.finish(&task, self.over(State::Lost, Reason::HostRebooted, message));
            }
            Phase::Accepted => self.0.waiting.lock().push(task),
            Phase::Starting | Phase::Started => {
                let tree = match &held.started {
                    Some(started) => {
                        Tree::new(Pid::from_raw(started.pid), held.start_time, held.task_id)
                    }
                    None => Tree::of_task(held.task_id),
                };
                self.end_left_over(task, tree, held.started);
            }
        }
    }

    /// Starts what an earlier agent had taken and not started, if it is still in time.
    pub(super) fn start_waiting(&self) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        for task in waiting {
            let admitted = SealedOffer::decode(task.sealed_offer.clone())
                .map_err(|error| self.over(State::Rejected, Reason::SealInvalid, error.to_string()))
                .and_then(|sealed| self.admit(&sealed, not_after_ms(&sealed)));
            match admitted {
                Err(refusal) => self.finish(&task, refusal),
                Ok(command) => {
                    let starting = Starting {
                        task_id: task.id.to_string(),
                    };
                    let event = Event::Starting(starting);
                    match self.0.journal.write(self.0.clock.now_ms(), vec![event]) {
                        Ok(_) => self.run(task, command),
                        Err(error) => self.refuse_unwritten(&task, &error),
                    }
                }
            }
        }
    }

    /// Ends what is left of a task's processes, and says so.
    fn end_left_over(&self, task: Arc<Task>, tree: Tree, started: Option<task_state::Started>) {
        let tasks = self.clone();
        let grace: Duration = grace_of(&task.sealed_offer);
        let span = tracing::Span::current();
        let ending = async move {
            let found = tree.end(grace).await;
            let (reason, message) = match (started, found) {
                (None, false) => (
                    Reason::AmbiguousStart,
                    "the agent died while it started the task; nothing proves that it ran or that it did not",
                ),
                (_, true) => (
                    Reason::AgentDied,
                    "the agent died while the task ran; what it had left running was ended",
                ),
                (Some(_), false) => (
                    Reason::AgentDied,
                    "the agent died while the task ran, and its result was not seen",
                ),
            };
            tasks.finish(&task, tasks.over(State::Lost, reason, message.to_owned()));
        };
        self.0.running.spawn(ending.instrument(span));
    }
}
