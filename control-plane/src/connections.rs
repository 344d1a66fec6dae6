//! Which hosts are attached, and how to reach them.
//!
//! Each attach is a session with an epoch: the newest one of a host counts, frames of an older one
//! are refused. A session's stream ends with what its `End` says.

mod arrivals;
mod confined;
mod driver;
pub(crate) mod offer;
mod receipts;
mod reconcile;
pub(crate) mod renumber;
mod report;
mod upload;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    agent::v1::AttachResponse,
    ids::{HostId, TaskId},
    v1::AuditHead,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::arrivals::{ATTACHES, Pace};
pub(crate) use self::{driver::attach, receipts::Receipts, report::report, upload::upload};
use crate::{
    audit::Audit,
    hosts::{Bar, Inventory},
    jobs::Jobs,
    model::Fence,
    restores::Restores,
    rotation::Rotation,
    store::{Syncer, jobs::Heard},
};

/// Messages that may wait for a host's connection; more wait as tasks.
const QUEUE: usize = 256;

/// How agents are treated.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionSettings {
    /// How often agents give a sign of life.
    pub(crate) heartbeat_interval: Duration,
    /// A connection that is silent for this long is closed.
    pub(crate) offline_after: Duration,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(10),
            offline_after: Duration::from_secs(45),
        }
    }
}

/// What the streams of agents work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rooms {
    /// Jobs and tasks.
    pub(crate) jobs: Jobs,
    /// Which hosts are attached.
    pub(crate) connections: Connections,
    /// The hosts.
    pub(crate) inventory: Inventory,
    /// The output of tasks.
    pub(crate) output: crate::output::OutputStore,
    /// What is durable.
    pub(crate) syncer: Syncer,
    /// Restores, and what hosts owe after one.
    pub(crate) restores: Restores,
    /// Whom hosts are to trust.
    pub(crate) rotation: Rotation,
    /// Whether what hosts sign verifies.
    pub(crate) receipts: Receipts,
    /// What hosts do is recorded.
    pub(crate) audit: Audit,
    /// The newest head of that record, which hosts are given.
    pub(crate) head: watch::Receiver<Option<AuditHead>>,
    /// Hears how many bytes of output tasks of a principal wrote.
    pub(crate) written: Written,
    /// Intervals.
    pub(crate) settings: ConnectionSettings,
}

/// Hears of a principal and how many bytes its tasks wrote. Never waits.
pub(crate) type Written = Arc<dyn Fn(&Arc<str>, u64) + Send + Sync>;

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The agent said goodbye or its stream broke.
    Gone,
    /// A newer attach took over.
    Superseded,
    /// Two agents present this identity.
    Conflict,
    /// The host is locked.
    Locked,
    /// The host was removed.
    Removed,
    /// Nothing was heard for too long.
    Silent,
    /// The control plane stops.
    Stopping,
    /// A generation began: everybody attaches again.
    Restored,
}

/// One attach of a host.
pub(crate) struct Session {
    /// The host.
    pub(crate) host_id: HostId,
    /// The highest one of a host counts.
    pub(crate) epoch: i64,
    /// The host's boot and its agent's journal.
    pub(crate) fence: Fence,
    /// The journal came back with fewer entries than were ever heard of.
    pub(crate) rolled_back: bool,
    /// The agent takes values that look secret beside the offer, which it writes down, and does not write them down.
    pub(crate) keeps_secrets_apart: bool,
    wire: mpsc::Sender<Result<AttachResponse, Status>>,
    /// The welcome was sent; nothing else is before.
    greeted: AtomicBool,
    looked: Notify,
    ended: CancellationToken,
    end: Mutex<Option<End>>,
    heard: Mutex<Instant>,
    /// When another boot first claimed this identity.
    challenged: Mutex<Option<Instant>>,
    /// The agent's clock minus ours, milliseconds.
    clock_offset: AtomicI64,
    /// The streams that report its tasks.
    reports: Reports,
    /// What ends the upload that is under way, if one is: another takes its place.
    upload: Mutex<CancellationToken>,
    /// The host's facts are being written.
    // Held for a look only.
    facts: Mutex<FactsWriting>,
}

/// Facts are written one time after the other, however often they change.
#[derive(Default)]
struct FactsWriting {
    busy: bool,
    again: bool,
}

/// One stream reports a task at a time: the newest.
// Held for a look only.
#[derive(Default)]
struct Reports(Mutex<HashMap<TaskId, CancellationToken>>);

impl Reports {
    /// Another stream reports the task from now on. Returns what is cancelled when yet another does.
    fn begin(&self, task: TaskId) -> CancellationToken {
        let superseded = CancellationToken::new();
        let mut reports = self.0.lock();
        // Under the lock: else the older one could take itself for the newest, and remove this one.
        if let Some(older) = reports.insert(task, superseded.clone()) {
            older.cancel();
        }
        superseded
    }

    /// That stream is over.
    fn end(&self, task: TaskId, superseded: &CancellationToken) {
        let mut reports = self.0.lock();
        if !superseded.is_cancelled() {
            reports.remove(&task);
        }
    }
}

impl Session {
    /// Puts a message on the road; `false` if there is no room, or the session has ended. Never waits.
    pub(crate) fn send(&self, message: AttachResponse) -> bool {
        self.greeted.load(Ordering::Acquire)
            && !self.ended.is_cancelled()
            && self.wire.try_send(Ok(message)).is_ok()
    }

    /// Sends the welcome, after which everything else may be sent.
    fn greet(&self, welcome: AttachResponse) {
        // The queue is empty.
        let _ = self.wire.try_send(Ok(welcome));
        self.greeted.store(true, Ordering::Release);
    }

    /// The same, but waits for room; `false` if the session has ended.
    pub(crate) async fn send_patiently(&self, message: AttachResponse) -> bool {
        tokio::select! {
            sent = self.wire.send(Ok(message)) => sent.is_ok(),
            () = self.ended.cancelled() => false,
        }
    }

    /// There may be something for the host.
    pub(crate) fn look(&self) {
        self.looked.notify_one();
    }

    /// Whether this session still counts.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Returns when the session ends.
    pub(crate) async fn ended(&self) -> End {
        self.ended.cancelled().await;
        self.end.lock().unwrap_or(End::Gone)
    }

    /// Ends the session; the first reason stays.
    pub(crate) fn end(&self, end: End) {
        self.end.lock().get_or_insert(end);
        self.ended.cancel();
    }

    fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    fn set_clock_offset(&self, milliseconds: i64) {
        self.clock_offset.store(milliseconds, Ordering::Relaxed);
    }

    /// A time of the agent's clock by ours, Unix milliseconds; never in the future, nor before there were any.
    fn our_time(&self, theirs: Option<i64>, now: i64) -> i64 {
        theirs.map_or(now, |time| {
            let offset = self.clock_offset.load(Ordering::Relaxed);
            // An agent may say anything.
            time.saturating_sub(offset).clamp(0, now.max(0))
        })
    }
}

/// The sessions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Shared>);

struct Shared {
    // Each held for a look-up only.
    sessions: Mutex<HashMap<HostId, Arc<Session>>>,
    fences: Mutex<HashMap<HostId, Heard>>,
    arrivals: Mutex<HashMap<HostId, Pace>>,
    next_epoch: AtomicI64,
    stopping: CancellationToken,
}

impl Connections {
    /// No sessions yet. `starts` counts the starts of this control plane: later starts give higher
    /// epochs. `fences`: what was last heard of each host.
    pub(crate) fn new(starts: i64, fences: HashMap<HostId, Heard>) -> Self {
        Self(Arc::new(Shared {
            sessions: Mutex::default(),
            fences: Mutex::new(fences),
            arrivals: Mutex::default(),
            next_epoch: AtomicI64::new((starts << 32) + 1),
            stopping: CancellationToken::new(),
        }))
    }

    /// The session of a host, if it is attached.
    pub(crate) fn current(&self, host: HostId) -> Option<Arc<Session>> {
        let session = self.0.sessions.lock().get(&host).cloned();
        session.filter(|session| session.is_open())
    }

    /// Whether a host may attach now, as far as it has not done so all the time.
    fn may_attach(&self, host: HostId) -> bool {
        let now = Instant::now();
        let mut arrivals = self.0.arrivals.lock();
        arrivals
            .entry(host)
            .or_insert_with(|| Pace::new(ATTACHES, now))
            .take(now)
            .is_ok()
    }

    /// Ends a host's session, if it has one.
    pub(crate) fn end(&self, host: HostId, end: End) {
        if let Some(session) = self.current(host) {
            session.end(end);
        }
    }

    /// Tells a host that is attached what operators lowered it to. One that attaches meanwhile hears it in its
    /// welcome, or right after.
    pub(crate) fn tell_policy(&self, host: HostId, inventory: &Inventory) {
        if let Some(session) = self.current(host)
            && !session.send(driver::policy(inventory, host))
            && session.greeted.load(Ordering::Acquire)
        {
            // Its queue is full: it hears it when it attaches again, which it does now.
            session.end(End::Gone);
        }
    }

    /// Ends the session of every host that may not take part.
    pub(crate) fn end_barred(&self, inventory: &Inventory) {
        for session in self.0.sessions.lock().values() {
            match inventory.bar(session.host_id) {
                None => {}
                Some(Bar::Locked(_)) => session.end(End::Locked),
                Some(Bar::Removed(_)) => session.end(End::Removed),
            }
        }
    }

    /// Cancelled once the control plane stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Tells every agent to come back later, and refuses those that come.
    pub(crate) fn stop(&self) {
        self.0.stopping.cancel();
        for session in self.0.sessions.lock().values() {
            session.end(End::Stopping);
        }
    }

    /// Ends every session, so that all agents attach again.
    fn end_all(&self, end: End) {
        for session in self.0.sessions.lock().values() {
            session.end(end);
        }
    }

    fn open(
        &self,
        host_id: HostId,
        fence: Fence,
        rolled_back: bool,
        keeps_secrets_apart: bool,
    ) -> (Arc<Session>, mpsc::Receiver<Result<AttachResponse, Status>>) {
        let (wire, messages) = mpsc::channel(QUEUE);
        let session = Arc::new(Session {
            host_id,
            epoch: self.0.next_epoch.fetch_add(1, Ordering::Relaxed),
            fence,
            rolled_back,
            keeps_secrets_apart,
            wire,
            greeted: AtomicBool::new(false),
            looked: Notify::new(),
            ended: CancellationToken::new(),
            end: Mutex::new(None),
            heard: Mutex::new(Instant::now()),
            challenged: Mutex::new(None),
            clock_offset: AtomicI64::new(0),
            reports: Reports::default(),
            upload: Mutex::new(CancellationToken::new()),
            facts: Mutex::default(),
        });
        (session, messages)
    }

    fn enter(&self, session: &Arc<Session>) {
        let old = self
            .0
            .sessions
            .lock()
            .insert(session.host_id, Arc::clone(session));
        if let Some(old) = old {
            old.end(End::Superseded);
        }
        if self.0.stopping.is_cancelled() {
            session.end(End::Stopping);
        }
    }

    /// Takes the session out, unless a newer one stands there; says whether it did.
    fn leave(&self, session: &Session) -> bool {
        let mut sessions = self.0.sessions.lock();
        let own = sessions
            .get(&session.host_id)
            .is_some_and(|current| current.epoch == session.epoch);
        if own {
            sessions.remove(&session.host_id);
        }
        own
    }

    /// The journal was heard at `position`. Returns what is now known of it, if that is new.
    fn hear(&self, host: HostId, fence: &Fence, position: i64) -> Option<Heard> {
        let mut fences = self.0.fences.lock();
        let heard = Heard {
            fence: fence.clone(),
            position,
        };
        match fences.get_mut(&host) {
            Some(known) if known.fence.journal_id == fence.journal_id => {
                let new = known.fence != *fence || known.position < position;
                known.fence = fence.clone();
                known.position = known.position.max(position);
                new.then(|| known.clone())
            }
            _ => {
                fences.insert(host, heard.clone());
                Some(heard)
            }
        }
    }

    /// Whether the journal has fewer entries than were ever heard of.
    fn is_rolled_back(&self, host: HostId, fence: &Fence, position: i64) -> bool {
        self.0.fences.lock().get(&host).is_some_and(|known| {
            known.fence.journal_id == fence.journal_id && position < known.position
        })
    }
}

#[cfg(test)]
mod tests;
