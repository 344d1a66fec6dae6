//! One attach of a host: what can be said to it, and how it ends.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use muster_proto::{
    agent::v1::AttachResponse,
    ids::{HostId, TaskId},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::signatures::Signatures;
use crate::model::Fence;

/// Messages that may wait for a host's connection; more wait as tasks.
const QUEUE: usize = 256;

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
    wire: mpsc::Sender<AttachResponse>,
    /// The welcome was sent; nothing else is before.
    greeted: AtomicBool,
    pub(crate) looked: Notify,
    pub(crate) ended: CancellationToken,
    end: Mutex<Option<End>>,
    pub(crate) heard: Mutex<Instant>,
    /// When another boot first claimed this identity.
    pub(crate) challenged: Mutex<Option<Instant>>,
    /// The agent's clock minus ours, milliseconds.
    clock_offset: AtomicI64,
    /// What the host has signed.
    pub(crate) signatures: Signatures,
    /// The streams that report its tasks.
    pub(crate) reports: Reports,
    /// What ends the upload that is under way, if one is: another takes its place.
    pub(crate) upload: Mutex<CancellationToken>,
    /// The host's facts are being written.
    // Held for a look only.
    pub(crate) facts: Mutex<FactsWriting>,
}

/// Facts are written one time after the other, however often they change.
#[derive(Default)]
pub(crate) struct FactsWriting {
    /// They are being written.
    pub(crate) busy: bool,
    /// They changed meanwhile.
    pub(crate) again: bool,
}

/// One stream reports a task at a time: the newest.
// Held for a look only.
#[derive(Default)]
pub(crate) struct Reports(Mutex<HashMap<TaskId, CancellationToken>>);

impl Reports {
    /// Another stream reports the task from now on. Returns what is cancelled when yet another does.
    pub(crate) fn begin(&self, task: TaskId) -> CancellationToken {
        let superseded = CancellationToken::new();
        let mut reports = self.0.lock();
        // Under the lock: else the older one could take itself for the newest, and remove this one.
        if let Some(older) = reports.insert(task, superseded.clone()) {
            older.cancel();
        }
        superseded
    }

    /// That stream is over.
    pub(crate) fn end(&self, task: TaskId, superseded: &CancellationToken) {
        let mut reports = self.0.lock();
        if !superseded.is_cancelled() {
            reports.remove(&task);
        }
    }
}

impl Session {
    /// A session that nothing was said in yet, and what its stream is to carry.
    pub(super) fn new(
        host_id: HostId,
        epoch: i64,
        fence: Fence,
        rolled_back: bool,
        keeps_secrets_apart: bool,
    ) -> (Self, mpsc::Receiver<AttachResponse>) {
        let (wire, messages) = mpsc::channel(QUEUE);
        let session = Self {
            host_id,
            epoch,
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
            signatures: Signatures::default(),
            reports: Reports::default(),
            upload: Mutex::new(CancellationToken::new()),
            facts: Mutex::default(),
        };
        (session, messages)
    }

    /// Puts a message on the road; `false` if there is no room, or the session has ended. Never waits.
    pub(crate) fn send(&self, message: AttachResponse) -> bool {
        self.greeted.load(Ordering::Acquire)
            && !self.ended.is_cancelled()
            && self.wire.try_send(message).is_ok()
    }

    /// Sends the welcome, after which everything else may be sent.
    pub(crate) fn greet(&self, welcome: AttachResponse) {
        // The queue is empty.
        let _ = self.wire.try_send(welcome);
        self.greeted.store(true, Ordering::Release);
    }

    /// The same, but waits for room; `false` if the session has ended.
    pub(crate) async fn send_patiently(&self, message: AttachResponse) -> bool {
        tokio::select! {
            sent = self.wire.send(message) => sent.is_ok(),
            () = self.ended.cancelled() => false,
        }
    }

    /// There may be something for the host.
    pub(crate) fn look(&self) {
        self.looked.notify_one();
    }

    /// Whether the welcome was sent.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.load(Ordering::Acquire)
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

    pub(crate) fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    pub(crate) fn set_clock_offset(&self, milliseconds: i64) {
        self.clock_offset.store(milliseconds, Ordering::Relaxed);
    }

    /// A time of the agent's clock by ours, Unix milliseconds; never in the future, nor before there were any.
    pub(crate) fn our_time(&self, theirs: Option<i64>, now: i64) -> i64 {
        theirs.map_or(now, |time| {
            let offset = self.clock_offset.load(Ordering::Relaxed);
            // An agent may say anything.
            time.saturating_sub(offset).clamp(0, now.max(0))
        })
    }
}
