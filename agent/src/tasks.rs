//! The tasks that this agent holds: taken, run, reported, settled.

mod awake;
mod ending;
mod execution;
mod history;
pub(crate) mod journal;
mod offers;
mod overflow;
mod recovery;
mod report;
mod task;
mod upload;

use std::{
    collections::HashMap, io, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{SealedOffer, task_state},
    ids::TaskId,
    v1::{Reason, task::State},
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub(crate) use self::journal::Journal;
use self::{
    history::History,
    journal::{Event, Phase, Starting},
    overflow::Overflow,
    task::Task,
};
use crate::{
    actions::Kind,
    clock::Clock,
    failpoint,
    memory::{self, Leftovers},
    policy::Policy,
    process::{Sandbox, StartError, sweep_groups},
    receipts::Receipts,
    session::Session,
    spool::{self, Room},
    supervision::{
        self, Link, Pool, SupervisorId,
        protocol::{self, Order},
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
    kind: Box<dyn Kind>,
    /// How far it is confined; `None` is not at all.
    sandbox: Option<Sandbox>,
}

/// What a supervisor is told to start.
struct Wanted {
    /// The order as it is sent.
    start: Bytes,
    /// The kind of action that it has to have a worker for, if that is what is started.
    worker: Option<&'static str>,
}

/// How long a task's tree may take to end when the control plane does not want this host any more.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Supervisors that are tried for a task before it is given up: each ended before it heard of the task.
const STARTS: usize = 3;

/// How long a stopping agent waits for its last reports to be taken.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// The tasks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Inner>);

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
    /// Tasks that an earlier agent took and did not start; they wait until the control plane has told the time.
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

    /// What signs for tasks that are over.
    pub(crate) fn receipts(&self) -> &Receipts {
        &self.0.receipts
    }

    /// The host whose tasks they are.
    pub(crate) fn host_id(&self) -> &str {
        &self.0.host_id
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
        let worker = admitted.kind.declared().worker();
        let mut start = match execution::start(task.id, admitted.kind) {
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
        let wanted = Wanted {
            start: protocol::frame(Order::Start(start)),
            worker,
        };
        if let Some(waiting) = &mut link
            && waiting.start(&wanted.start, worker.is_some()).is_err()
        {
            // It is gone, and has not heard of the task.
            self.0.supervisors.lost();
            link = None;
        }
        let tasks = self.clone();
        let span = tracing::Span::current();
        let executing = async move { tasks.execute(&task, wanted, link).await };
        self.0.running.spawn(executing.instrument(span));
    }

    async fn execute(&self, task: &Arc<Task>, wanted: Wanted, link: Option<Link>) {
        let mut link = match link {
            Some(link) => link,
            None => match self.start_below_a_new_one(task, wanted).await {
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
        Wanted { start, worker }: Wanted,
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
            if worker.is_some_and(|kind| !link.can_work(kind)) {
                self.0.supervisors.put(link);
                let message =
                    "the program of this agent was replaced by an older one: start the agent again";
                let (state, reason) = (State::Rejected, Reason::ActionUnsupported);
                return Err(self.over(state, reason, message.to_owned()));
            }
            if let Err(error) = self.write(vec![starting(task.id, link.id())]) {
                self.0.supervisors.put(link);
                return Err(self.unwritten(task, &error));
            }
            failpoint::reached("starting").await;
            if link.start(&start, worker.is_some()).is_ok() {
                return Ok(link);
            }
            self.0.supervisors.lost();
        }
        let message =
            "the processes that supervise tasks end as soon as they begin; see who ends them";
        Err(failed(message.to_owned()))
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
