//! The tasks that this agent holds: taken, run, reported, settled.

mod execution;
pub(crate) mod journal;
mod offers;
mod recovery;
mod report;
mod spool;
mod task;

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{SealedOffer, task_state},
    ids::TaskId,
    v1::{Command, Reason, action, task::State},
};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub(crate) use self::journal::{Journal, random_id};
use self::{
    execution::{Cause, End, Execution},
    journal::{Ended, Event, Settled, Started},
    spool::Room,
    task::Task,
};
use crate::{
    connection::{Clock, Session},
    process::{Exit, Host, StartError},
};

/// How much this agent takes on.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Tasks that run at once; offers beyond are refused.
    pub(crate) tasks: usize,
    /// Bytes of output kept for one task.
    pub(crate) task_spool: u64,
    /// Bytes of output kept for all.
    pub(crate) spool: u64,
    /// Percent of the disk that output leaves free.
    pub(crate) free_percent: u64,
}

/// How long a task's tree may take to end when the agent stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long a stopping agent waits for its last reports to be taken.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// The tasks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Inner>);

struct Inner {
    host: Arc<Host>,
    host_id: String,
    boot_id: String,
    journal: Arc<Journal>,
    room: Arc<Room>,
    clock: Arc<Clock>,
    limits: Limits,
    // A plain lock: it is held to look up, insert and remove.
    held: Mutex<HashMap<TaskId, Arc<Task>>>,
    /// Of an earlier agent that took them and had not started them; they wait for the time to be told.
    waiting: Mutex<Vec<Arc<Task>>>,
    running: TaskTracker,
    settled: Notify,
    stopping: CancellationToken,
}

impl Tasks {
    /// Opens journal and spool in the agent's directory and takes up what an earlier agent left.
    pub(crate) fn open(
        directory: PathBuf,
        host: Arc<Host>,
        host_id: String,
        boot_id: String,
        clock: Arc<Clock>,
        limits: Limits,
    ) -> io::Result<Self> {
        let spool = directory.join("spool");
        std::fs::create_dir_all(&spool)?;
        let (journal, unsettled) = Journal::open(&directory, &boot_id, clock.now_ms())?;
        spool::sweep(&spool, &unsettled.iter().map(|held| held.task_id).collect())?;
        let tasks = Self(Arc::new(Inner {
            host,
            host_id,
            boot_id,
            journal,
            room: Arc::new(Room::new(spool, limits.spool, limits.free_percent)),
            clock,
            limits,
            held: Mutex::default(),
            waiting: Mutex::default(),
            running: TaskTracker::new(),
            settled: Notify::new(),
            stopping: CancellationToken::new(),
        }));
        tasks.recover(unsettled);
        Ok(tasks)
    }

    /// The journal.
    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.0.journal
    }

    /// The ids of all tasks that are not settled.
    pub(crate) fn held(&self) -> Vec<String> {
        self.0.held.lock().keys().map(TaskId::to_string).collect()
    }

    /// A session has begun: reports everything that is held, and answers for what the control plane
    /// expects. Returns the expected tasks that were never seen.
    pub(crate) fn attach(&self, session: &Arc<Session>, expected: &[String]) -> Vec<String> {
        self.start_waiting();
        let held: Vec<Arc<Task>> = self.0.held.lock().values().cloned().collect();
        for task in held {
            self.report(task, session, false);
        }
        let mut unknown = Vec::new();
        for text in expected {
            let known = text
                .parse()
                .is_ok_and(|task_id| self.answer(task_id, session, None));
            if !known {
                unknown.push(text.clone());
            }
        }
        unknown
    }

    fn find(&self, task_id: &TaskId) -> Option<Arc<Task>> {
        self.0.held.lock().get(task_id).cloned()
    }

    /// Runs a task that stands in the journal as starting.
    fn run(&self, task: Arc<Task>, command: Command) {
        let tasks = self.clone();
        let span = tracing::Span::current();
        self.0.running.spawn(
            async move {
                let ended = tasks.execute(&task, command).await;
                tasks.finish(&task, ended);
            }
            .instrument(span),
        );
    }

    async fn execute(&self, task: &Arc<Task>, command: Command) -> task_state::Ended {
        if task.cancel.borrow().is_some() {
            return self.cancelled_before_start();
        }
        let (host, spool) = (Arc::clone(&self.0.host), Arc::clone(&task.spool));
        let execution = match Execution::start(host, task.id, command, spool).await {
            Ok(execution) => execution,
            Err(StartError { reason, message }) => {
                return self.over(State::Failed, reason, message);
            }
        };
        let pid = execution.pid();
        let started = task_state::Started {
            time: Some(self.0.clock.host_time()),
            pid,
        };
        let entry = Started {
            task_id: task.id.to_string(),
            started: Some(started),
            start_time: execution.start_time(),
        };
        match self
            .0
            .journal
            .write(self.0.clock.now_ms(), vec![Event::Started(entry)])
        {
            Ok(position) => task.started(position, started),
            // The start itself is in the journal; what follows can still be reported from memory.
            Err(error) => tracing::error!(%error, "the journal cannot be written: {error}"),
        }
        tracing::debug!(pid, "started process {pid}");

        let finish = execution.finish(task.cancel.subscribe());
        tokio::pin!(finish);
        let end = tokio::select! {
            end = &mut finish => end,
            () = self.0.stopping.cancelled() => {
                let wished = task.cancel.send_replace(Some(STOP_GRACE)).is_some();
                let end = finish.await;
                if end.cause == Cause::Cancelled && !wished {
                    let message = "the agent was stopped while the task ran, and ended it".to_owned();
                    return self.over(State::Lost, Reason::AgentDied, message);
                }
                end
            }
        };
        self.judge(&end)
    }

    fn judge(&self, end: &End) -> task_state::Ended {
        let (state, reason) = match (end.cause, end.exit) {
            (Cause::TimedOut, _) => (State::TimedOut, Reason::Timeout),
            (Cause::Cancelled, _) => (State::Cancelled, Reason::CancelRequested),
            (Cause::ByItself, Some(Exit::Code(0))) => (State::Succeeded, Reason::Unspecified),
            (Cause::ByItself, Some(_)) => (State::Failed, Reason::Unspecified),
            (Cause::ByItself, None) => (State::Lost, Reason::AgentDied),
        };
        let (exit_code, signal) = match end.exit {
            Some(Exit::Code(code)) => (Some(code), String::new()),
            Some(Exit::Signal(signal)) => (None, Signal::as_str(signal).to_owned()),
            None => (None, String::new()),
        };
        task_state::Ended {
            exit_code,
            signal,
            run_time: end.run_time.try_into().ok(),
            ..self.over(state, reason, end.note.to_owned())
        }
    }

    /// Writes down that a task is over, and lets its report go on.
    fn finish(&self, task: &Task, ended: task_state::Ended) {
        let produced = task.spool.produced();
        let entry = Ended {
            task_id: task.id.to_string(),
            ended: Some(ended.clone()),
            stdout_bytes: produced.stdout,
            stderr_bytes: produced.stderr,
        };
        let position = match self
            .0
            .journal
            .write(self.0.clock.now_ms(), vec![Event::Ended(entry)])
        {
            Ok(position) => position,
            Err(error) => {
                tracing::error!(%error, "the journal cannot be written: {error}");
                self.0.journal.position()
            }
        };
        let (state, message) = (ended.state(), ended.message.clone());
        task.ended(position, ended);
        let name = state.as_str_name();
        match state {
            // The common case, and the control plane remembers it: not worth a line for each.
            State::Succeeded => tracing::debug!(state = name, "task ended: {name} {message}"),
            _ => tracing::info!(state = name, "task ended: {name} {message}"),
        }
    }

    /// An end without a process's own result.
    fn over(&self, state: State, reason: Reason, message: String) -> task_state::Ended {
        task_state::Ended {
            state: state.into(),
            reason: reason.into(),
            message,
            exit_code: None,
            signal: String::new(),
            run_time: None,
            time: Some(self.0.clock.host_time()),
        }
    }

    fn cancelled_before_start(&self) -> task_state::Ended {
        let message = "cancelled before it could start".to_owned();
        self.over(State::Cancelled, Reason::CancelRequested, message)
    }

    /// Reports a task in this session, unless that is being done.
    fn report(&self, task: Arc<Task>, session: &Arc<Session>, fresh: bool) {
        if !session.takes_report(task.id) {
            return;
        }
        let (tasks, session) = (self.clone(), Arc::clone(session));
        let span = tracing::Span::current();
        tokio::spawn(
            async move {
                let settled = report::report(Arc::clone(&task), Arc::clone(&session), fresh).await;
                if settled {
                    tasks.settle(&task);
                }
                if session.leaves_report(task.id) && settled {
                    // Offered again while its settlement was on the way.
                    tasks.answer(task.id, &session, None);
                }
            }
            .instrument(span),
        );
    }

    /// The control plane has all of a task.
    fn settle(&self, task: &Task) {
        let entry = Settled {
            task_id: task.id.to_string(),
            last_sequence: task.spool.last_sequence(),
        };
        if let Err(error) = self
            .0
            .journal
            .write(self.0.clock.now_ms(), vec![Event::Settled(entry)])
        {
            // Kept, and reported again in the next session.
            tracing::error!(task.id = %task.id, %error, "the journal cannot be written: {error}");
            return;
        }
        task.spool.forget();
        self.0.held.lock().remove(&task.id);
        self.0.settled.notify_waiters();
    }

    /// Takes nothing more, ends what runs, and waits for it. Reports go on meanwhile.
    pub(crate) async fn end_all(&self) {
        self.0.stopping.cancel();
        self.0.running.close();
        self.0.running.wait().await;
    }

    /// Waits a moment for the control plane to have everything.
    pub(crate) async fn settle_all(&self) {
        let settled = async {
            loop {
                let changed = self.0.settled.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.0.held.lock().is_empty() {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_LIMIT, settled).await;
    }
}

/// Until when a task may start, Unix milliseconds by the control plane's clock.
fn not_after_ms(sealed: &SealedOffer) -> i64 {
    sealed.not_after.as_ref().map_or(i64::MAX, |time| {
        time.seconds.saturating_mul(1000) + i64::from(time.nanos) / 1_000_000
    })
}

fn grace_of(sealed_offer: &Bytes) -> Duration {
    let kind = SealedOffer::decode(sealed_offer.clone())
        .ok()
        .and_then(|sealed| sealed.action?.kind);
    match kind {
        Some(action::Kind::Command(command)) => execution::grace(&command),
        None => execution::GRACE,
    }
}
