//! The tasks that this agent holds: taken, run, reported, settled.

mod execution;
mod history;
pub(crate) mod journal;
mod offers;
mod overflow;
mod recovery;
mod report;
pub(crate) mod spool;
mod task;
mod upload;

use std::{
    collections::HashMap, io, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use muster_client::audit::Hash;
use muster_proto::{
    agent::v1::{SealedOffer, task_state},
    ids::TaskId,
    v1::{Command, Reason, action, task::State},
};
use nix::unistd::Pid;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub(crate) use self::journal::{Journal, random_id};
use self::{
    execution::Over,
    history::History,
    journal::{Ended, Event, Held, Phase, Settled, Starting},
    overflow::Overflow,
    spool::Room,
    task::Task,
};
use crate::{
    connection::{Clock, Session},
    failpoint,
    memory::{self, Leftovers},
    policy::Policy,
    process::{Sandbox, StartError, Tree, end_left_over, sweep_groups},
    receipts::Receipts,
    supervision::{
        self, Left, Link, Pool, SupervisorId,
        protocol::{self, Cause, Order},
    },
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

/// What an offer comes to.
struct Admitted {
    command: Command,
    /// How far it is confined; `None` is not at all.
    sandbox: Option<Sandbox>,
}

/// How long a task's tree may take to end when the control plane does not want this host any more.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// So many supervisors may end before they hear of a task that begins.
const STARTS: usize = 3;

/// How long a stopping agent waits for its last reports to be taken.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// The tasks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Inner>);

/// What a receipt says of a task besides how it ended.
pub(crate) struct TaskEnd<'a> {
    pub(crate) id: TaskId,
    pub(crate) host_id: &'a str,
    pub(crate) sealed_offer: &'a Bytes,
    /// What is known of its start, if it started.
    pub(crate) started: Option<task_state::Started>,
    pub(crate) output: Option<Hash>,
}

struct Inner {
    receipts: Receipts,
    supervisors: Arc<Pool>,
    /// Where supervisors leave what they cannot hand over.
    left: PathBuf,
    host_id: String,
    boot_id: String,
    journal: Arc<Journal>,
    history: Arc<History>,
    room: Arc<Room>,
    clock: Arc<Clock>,
    policy: Arc<Policy>,
    limits: Limits,
    // A plain lock: it is held to look up, insert and remove.
    held: Mutex<HashMap<TaskId, Arc<Task>>>,
    /// Of an earlier agent that took them and had not started them; they wait for the time to be told.
    waiting: Mutex<Vec<Arc<Task>>>,
    running: TaskTracker,
    settled: Notify,
    leftovers: Leftovers,
    stopping: CancellationToken,
}

impl Tasks {
    /// Opens journal and spool in the agent's directory and takes up what an earlier agent left.
    #[allow(clippy::too_many_arguments)] // Each is a part of its own, made by whoever knows it.
    pub(crate) fn open(
        directory: PathBuf,
        supervisors: Arc<Pool>,
        host_id: String,
        boot_id: String,
        clock: Arc<Clock>,
        policy: Arc<Policy>,
        limits: Limits,
        receipts: Receipts,
    ) -> io::Result<Self> {
        let spool = directory.join(spool::DIRECTORY);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&spool)?;
        let (journal, unsettled) = Journal::open(&directory, &boot_id, clock.now_ms())?;
        let held = unsettled.iter().map(|held| held.task_id).collect();
        spool::sweep(&spool, &held)?;
        sweep_groups(|task_id| {
            let phase = journal.find(task_id).map(|held| held.phase);
            matches!(phase, Some(Phase::Ended(_) | Phase::Settled { .. }))
        });
        let left = directory.join(supervision::DIRECTORY);
        let alive = supervision::sweep(&left, &held)?;
        let tasks = Self(Arc::new(Inner {
            supervisors,
            left,
            host_id,
            boot_id,
            journal,
            history: Arc::new(History::open(&directory)?),
            room: Arc::new(Room::new(spool, limits.spool, limits.free_percent)),
            clock,
            policy,
            limits,
            receipts,
            held: Mutex::default(),
            waiting: Mutex::default(),
            running: TaskTracker::new(),
            settled: Notify::new(),
            leftovers: Leftovers::default(),
            stopping: CancellationToken::new(),
        }));
        tasks.recover(unsettled, alive);
        Ok(tasks)
    }

    /// What this host permits.
    pub(crate) fn policy(&self) -> &Policy {
        &self.0.policy
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
    /// expects. Returns the expected tasks that were never seen. `upload`: the control plane was restored, and wants
    /// to know of settled tasks too.
    pub(crate) fn attach(
        &self,
        session: &Arc<Session>,
        expected: &[String],
        upload: bool,
    ) -> Vec<String> {
        self.start_waiting();
        let held: Vec<Arc<Task>> = self.0.held.lock().values().cloned().collect();
        for task in held {
            self.report(task, session, false);
        }
        let (mut unknown, mut settled) = (Vec::new(), Vec::new());
        for text in expected {
            let known = text.parse().is_ok_and(|task_id| {
                if upload && self.is_settled(&task_id) {
                    // The upload says more than a report could, whose output is gone.
                    settled.push(task_id);
                    return true;
                }
                self.answer(task_id, session, None)
            });
            if !known {
                unknown.push(text.clone());
            }
        }
        if upload {
            let (tasks, session) = (self.clone(), Arc::clone(session));
            tokio::spawn(upload::upload(tasks, session, settled));
        }
        unknown
    }

    fn is_settled(&self, task_id: &TaskId) -> bool {
        self.find(task_id).is_none()
            && self
                .0
                .journal
                .find(task_id)
                .is_some_and(|held| matches!(held.phase, Phase::Settled { .. }))
    }

    fn find(&self, task_id: &TaskId) -> Option<Arc<Task>> {
        self.0.held.lock().get(task_id).cloned()
    }

    /// Writes to the journal.
    fn write(&self, events: Vec<Event>) -> io::Result<i64> {
        self.0.journal.write(self.0.clock.now_ms(), events)
    }

    /// Runs a task that stands in the journal: as starting below the supervisor at the other end of the link, or
    /// as taken without one. A supervisor that waits hears of it before anything else is done.
    fn run(&self, task: Arc<Task>, admitted: Admitted, mut link: Option<Link>) {
        if task.cancel.borrow().is_some() {
            self.finish(&task, self.cancelled_before_start());
            return self.give_back(link);
        }
        let mut start = match execution::start(task.id, admitted.command) {
            Ok(start) => start,
            Err(StartError { reason, message }) => {
                self.finish(&task, self.over(State::Failed, reason, message));
                return self.give_back(link);
            }
        };
        start.sandbox = admitted.sandbox;
        let overflow = self.overflow(&task);
        let keep = overflow.keep();
        start.spool_bytes = keep.bytes;
        start.keep_newest = keep.newest;
        start.block_at_bytes = overflow.blocks().then_some(overflow.bytes);
        start.spool_free_percent = self.0.limits.free_percent;
        start.spools_bytes = Some(self.0.limits.spool);
        let start = protocol::frame(Order::Start(start));
        if let Some(waiting) = &mut link
            && waiting.send_frame(&start).is_err()
        {
            // It is gone, and has not heard of the task.
            self.0.supervisors.lost();
            link = None;
        }
        let tasks = self.clone();
        let span = tracing::Span::current();
        let executing = async move { tasks.execute(&task, start, link).await };
        self.0.running.spawn(executing.instrument(span));
    }

    async fn execute(&self, task: &Arc<Task>, start: Bytes, link: Option<Link>) {
        let mut link = match link {
            Some(link) => link,
            None => match self.start_below_a_new_one(task, start).await {
                Ok(link) => link,
                Err(refusal) => {
                    self.finish(task, refusal);
                    return;
                }
            },
        };
        failpoint::reached("sent").await;
        let over = self.hear(task, &mut link).await;
        self.conclude(task, link, over).await;
    }

    /// Starts a task for which no supervisor was at hand.
    async fn start_below_a_new_one(
        &self,
        task: &Task,
        start: Bytes,
    ) -> Result<Link, task_state::Ended> {
        failpoint::reached("accepted").await;
        let failed = |message| self.over(State::Failed, Reason::StartFailed, message);
        for _ in 0..STARTS {
            let mut link = self.0.supervisors.fresh().await.map_err(|error| {
                failed(format!(
                    "no process to supervise the task could be started: {error}"
                ))
            })?;
            if task.cancel.borrow().is_some() {
                self.0.supervisors.put(link);
                return Err(self.cancelled_before_start());
            }
            if let Err(error) = self.write(vec![starting(task.id, link.id())]) {
                self.0.supervisors.put(link);
                return Err(self.unwritten(task, &error));
            }
            failpoint::reached("starting").await;
            if link.send_frame(&start).is_ok() {
                return Ok(link);
            }
            self.0.supervisors.lost();
        }
        let message =
            "the processes that supervise tasks end as soon as they begin; see who ends them";
        Err(failed(message.to_owned()))
    }

    /// Writes down how a task ended that a supervisor held, and lets that go.
    async fn conclude(&self, task: &Arc<Task>, link: Link, over: Over) {
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

    /// What becomes of a task's output that is more than is kept.
    fn overflow(&self, task: &Task) -> Overflow {
        task.overflow(self.0.limits.task_spool)
    }

    /// A supervisor that was to start a task waits for another one.
    fn give_back(&self, link: Option<Link>) {
        if let Some(link) = link {
            self.0.supervisors.put(link);
        }
    }

    /// Whether it is known that a task's process began, and all that came of it.
    fn tree(&self, task: &Task) -> (bool, Tree) {
        let started = self.0.journal.find(&task.id).and_then(|held| {
            let pid = held.started?.pid;
            Some(Tree::new(Pid::from_raw(pid), held.start_time, task.id))
        });
        let known = started.is_some();
        (known, started.unwrap_or_else(|| Tree::of_task(task.id)))
    }

    /// What a task came to whose supervisor is gone without a word. What is left of its processes is ended.
    async fn after_supervisor(&self, task: &Task, mine: bool) -> task_state::Ended {
        let (known, tree) = self.tree(task);
        end_left_over(task.id);
        let mut found = tree.end(grace_of(&task.sealed_offer)).await;
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

    fn judge(&self, ended: protocol::Ended) -> task_state::Ended {
        let (state, reason) = match (ended.cause(), ended.exit_code) {
            (Cause::TimedOut, _) => (State::TimedOut, Reason::Timeout),
            (Cause::Cancelled, _) => (State::Cancelled, Reason::CancelRequested),
            (Cause::ByItself, Some(0)) => (State::Succeeded, Reason::Unspecified),
            (Cause::ByItself, _) => (State::Failed, Reason::Unspecified),
        };
        task_state::Ended {
            exit_code: ended.exit_code,
            signal: ended.signal,
            run_time: Duration::from_micros(ended.run_time_us).try_into().ok(),
            time: ended.time,
            ..self.over(state, reason, ended.note)
        }
    }

    /// A task whose process could not be started, or was not to be.
    fn not_started(&self, refusal: protocol::NotStarted) -> task_state::Ended {
        let state = match refusal.reason() {
            Reason::LimitUnsupported
            | Reason::ModeUnenforceable
            | Reason::NetworkUnenforceable
            | Reason::PathDenied
            | Reason::ProgramDenied => State::Rejected,
            _ => State::Failed,
        };
        self.over(state, refusal.reason(), refusal.message)
    }

    /// Writes down that a task is over, and lets its report go on. Says whether it could be written; if not, whoever
    /// else knows the end has to keep it.
    fn finish(&self, task: &Task, mut ended: task_state::Ended) -> bool {
        // Signed before it is written down, so that whoever tells of the end, now or later, tells the same.
        ended.receipt = self.0.receipts.sign(
            &TaskEnd {
                id: task.id,
                host_id: &self.0.host_id,
                sealed_offer: &task.sealed_offer,
                started: task.started_as(),
                output: task.spool.digest(),
            },
            &ended,
        );
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
    fn over(&self, state: State, reason: Reason, message: String) -> task_state::Ended {
        task_state::Ended {
            state: state.into(),
            reason: reason.into(),
            message,
            exit_code: None,
            signal: String::new(),
            run_time: None,
            time: Some(self.0.clock.host_time()),
            receipt: Bytes::new(),
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

    /// Called now and then: gives memory back, if there is some to give and no task that it would hold up.
    pub(crate) fn give_memory_back(&self) {
        if self.0.held.lock().is_empty() && self.0.leftovers.take() {
            tokio::task::spawn_blocking(memory::give_back);
        }
    }

    /// Takes nothing more, and ends what runs.
    pub(crate) async fn end_all(&self) {
        for task in self.0.held.lock().values() {
            task.cancel.send_replace(Some(STOP_GRACE));
        }
        self.0.running.close();
        self.0.running.wait().await;
        self.leave().await;
    }

    /// Takes nothing more, and leaves what runs to its supervisors.
    pub(crate) async fn leave(&self) {
        self.0.stopping.cancel();
        self.0.running.close();
        self.0.running.wait().await;
        self.0.supervisors.close();
    }

    /// Waits a moment for the control plane to have everything of what is over.
    pub(crate) async fn settle_all(&self) {
        let settled = async {
            loop {
                let changed = self.0.settled.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !self.0.held.lock().values().any(|task| task.is_over()) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_LIMIT, settled).await;
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

/// That a task is about to be started below this supervisor.
fn starting(task_id: TaskId, supervisor: SupervisorId) -> Event {
    Event::Starting(Starting {
        task_id: task_id.to_string(),
        supervisor_pid: supervisor.pid,
        supervisor_start_time: supervisor.start_time,
    })
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
