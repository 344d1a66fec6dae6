//! How tasks end: judged, written down with a receipt, settled.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_proto::{
    agent::v1::task_state,
    v1::{Reason, task::State},
};
use nix::unistd::Pid;

use super::{
    Tasks,
    execution::Over,
    journal::{Ended, Event, Held, Phase, Settled},
    task::Task,
};
use crate::{
    actions, failpoint,
    process::{Tree, end_left_over},
    receipts::TaskEnd,
    supervision::{
        Left, Link,
        protocol::{self, Cause},
    },
};

impl Tasks {
    /// Writes down how a task ended that a supervisor held, and lets that go.
    pub(super) async fn conclude(&self, task: &Arc<Task>, link: Link, over: Over) {
        let mut reusable = link.is_reusable();
        let ended = match over {
            Over::Left => return self.0.supervisors.lost(),
            Over::Ended(ended) => {
                reusable &= !ended.leaves;
                match task.has_overflowed() {
                    true => self.overflowed(task, ended),
                    false => self.judge(ended),
                }
            }
            Over::NotStarted(refusal) => self.not_started(refusal),
            Over::SupervisorDied => {
                self.0.supervisors.lost();
                if self.take_left(task, None).await {
                    let ended = self.after_supervisor(task, true).await;
                    self.finish(task, ended);
                }
                return;
            }
        };
        failpoint::reached("ended").await;
        // Kept before anybody hears of the end, so that whoever writes it later finds who holds it too.
        task.keep(link);
        if !self.finish(task, ended) {
            return self.0.supervisors.lost();
        }
        match task.release() {
            Some(link) if reusable => self.0.supervisors.put(link),
            _ => self.0.supervisors.lost(),
        }
    }

    /// A task that wrote more than it may, and was ended for it.
    fn overflowed(&self, task: &Task, ended: protocol::Ended) -> task_state::Ended {
        let message = format!(
            "the task wrote more than the {} bytes that are kept until the control plane has them, and was ended",
            self.overflow(task).bytes
        );
        task_state::Ended {
            state: State::Failed.into(),
            reason: Reason::OutputLimit.into(),
            message,
            ..self.judge(ended)
        }
    }

    /// Whether it is known that a task's process began, and all that came of it.
    pub(super) fn tree(&self, task: &Task) -> (bool, Tree) {
        let started = self.0.journal.find(&task.id).and_then(|held| {
            let pid = held.started?.pid;
            Some(Tree::new(Pid::from_raw(pid), held.start_time, task.id))
        });
        let known = started.is_some();
        (known, started.unwrap_or_else(|| Tree::of_task(task.id)))
    }

    /// What a task came to whose supervisor is gone without a word. What is left of its processes is ended.
    pub(super) async fn after_supervisor(&self, task: &Task, mine: bool) -> task_state::Ended {
        let (known, tree) = self.tree(task);
        end_left_over(task.id);
        let mut found = tree.end(actions::grace(&task.sealed_offer)).await;
        let supervisor = self
            .0
            .journal
            .find(&task.id)
            .and_then(|held| held.supervisor);
        // What hides from a search of the process table is in the supervisor's group.
        let task_id = task.id;
        let in_group = tokio::task::spawn_blocking(move || {
            // Now that it is empty, it can go.
            end_left_over(task_id);
            supervisor?.end_left_over()
        });
        let in_group = in_group.await.ok().flatten();
        found |= in_group == Some(true);
        let (reason, message) = match (known, found) {
            (false, false) if mine => (
                Reason::AmbiguousStart,
                "the process that supervises the task was killed while it started it; nothing proves that it ran or that it did not",
            ),
            (false, false) => (
                Reason::AmbiguousStart,
                "the agent died while it started the task; nothing proves that it ran or that it did not",
            ),
            (_, true) if in_group.is_some() => (
                Reason::SupervisorDied,
                "the process that supervised the task was killed, and all that it had left running was ended",
            ),
            (_, true) => (
                Reason::SupervisorDied,
                "the process that supervised the task was killed; what it had left running was ended, but for what \
                 left its session, cleared its environment and hid from its parents",
            ),
            (true, false) => (
                Reason::SupervisorDied,
                "the process that supervised the task was killed, and its result was not seen",
            ),
        };
        self.over(State::Lost, reason, message.to_owned())
    }

    pub(super) fn judge(&self, ended: protocol::Ended) -> task_state::Ended {
        let (state, reason) = match (ended.cause(), ended.exit_code) {
            (Cause::TimedOut, _) => (State::TimedOut, Reason::Timeout),
            (Cause::Cancelled, _) => (State::Cancelled, Reason::CancelRequested),
            (Cause::ByItself, Some(0)) => (State::Succeeded, Reason::Unspecified),
            (Cause::ByItself, _) => (State::Failed, ended.reason()),
        };
        // A worker's words, or a note on the output.
        let message = match ended.message.is_empty() {
            true => ended.note,
            false => ended.message,
        };
        task_state::Ended {
            exit_code: ended.exit_code,
            signal: ended.signal,
            run_time: Duration::from_micros(ended.run_time_us).try_into().ok(),
            time: ended.time,
            result: ended.result,
            ..self.over(state, reason, message)
        }
    }

    /// A task whose process could not be started, or was not to be.
    pub(super) fn not_started(&self, refusal: protocol::NotStarted) -> task_state::Ended {
        let state = match refusal.reason() {
            Reason::LimitUnsupported
            | Reason::ModeUnenforceable
            | Reason::NetworkUnenforceable
            | Reason::PathDenied
            | Reason::ActionDenied
            | Reason::ProgramDenied => State::Rejected,
            _ => State::Failed,
        };
        self.over(state, refusal.reason(), refusal.message)
    }

    /// Writes down that a task is over, and lets its report go on. Says whether it could be written; if not, whoever
    /// else knows the end has to keep it.
    pub(super) fn finish(&self, task: &Task, mut ended: task_state::Ended) -> bool {
        // Written down with the end, so that whoever tells of the end, now or later, tells the same.
        let end = TaskEnd {
            id: task.id,
            sealed_offer: &task.sealed_offer,
            started: task.started_as(),
            output: task.spool.digest(),
        };
        ended.unsigned_receipt = self.0.receipts.unsigned(&end, &ended);
        let written = self.write(vec![end_of(task, ended.clone())]);
        if let Err(error) = &written {
            tracing::error!(%error, "the journal cannot be written: {error}");
        }
        let is_written = written.is_ok();
        let position = written.unwrap_or_else(|_| self.0.journal.position());
        let (state, message) = (ended.state(), ended.message.clone());
        task.ended(position, ended);
        let name = state.as_str_name();
        match state {
            // The common case, and the control plane remembers it: not worth a line for each.
            State::Succeeded => tracing::debug!(state = name, "task ended: {name} {message}"),
            _ => tracing::info!(state = name, "task ended: {name} {message}"),
        }
        is_written
    }

    /// An end without a process's own result.
    pub(super) fn over(&self, state: State, reason: Reason, message: String) -> task_state::Ended {
        task_state::Ended {
            state: state.into(),
            reason: reason.into(),
            message,
            exit_code: None,
            signal: String::new(),
            run_time: None,
            time: Some(self.0.clock.host_time()),
            receipt: Bytes::new(),
            result: Bytes::new(),
            unsigned_receipt: Bytes::new(),
        }
    }

    pub(super) fn cancelled_before_start(&self) -> task_state::Ended {
        let message = "cancelled before it could start".to_owned();
        self.over(State::Cancelled, Reason::CancelRequested, message)
    }

    /// The control plane has all of a task.
    pub(super) fn settle(&self, task: &Task) {
        let settled = self.known_with_end(task).and_then(|held| {
            if let Some(held) = held {
                self.0.history.remember(held);
            }
            let entry = Settled {
                task_id: task.id.to_string(),
                last_sequence: task.spool.last_sequence(),
            };
            self.write(vec![Event::Settled(entry)])
        });
        if let Err(error) = settled {
            // Kept, and reported again in the next session.
            tracing::error!(task.id = %task.id, %error, "the journal cannot be written: {error}");
            return;
        }
        self.0.leftovers.note(task.spool.produced().iter().sum());
        task.spool.forget();
        self.0.held.lock().remove(&task.id);
        self.0.settled.notify_waiters();
    }

    /// What the journal knows of a task that is over. An end that could not be written when it came is written before:
    /// once the task is settled, nobody else can tell how it ended.
    fn known_with_end(&self, task: &Task) -> io::Result<Option<Held>> {
        let held = self.0.journal.find(&task.id);
        let lacks_end = held.as_ref().is_some_and(|held| {
            matches!(
                held.phase,
                Phase::Accepted | Phase::Starting | Phase::Started
            )
        });
        let Some(ended) = lacks_end.then(|| task.ended_as()).flatten() else {
            return Ok(held);
        };
        self.write(vec![end_of(task, ended)])?;
        // It is not used again, and leaves.
        drop(task.release());
        Left::new(&self.0.left, task.id).forget();
        Ok(self.0.journal.find(&task.id))
    }
}

/// That a task is over.
fn end_of(task: &Task, ended: task_state::Ended) -> Event {
    let produced = task.spool.produced();
    Event::Ended(Ended {
        task_id: task.id.to_string(),
        ended: Some(ended),
        stdout_bytes: produced[0],
        stderr_bytes: produced[1],
        pty_bytes: produced[2],
    })
}
