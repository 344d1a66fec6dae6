//! One task: what it is, where it stands, and what a report says of it.

use std::{
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{TaskState, task_state},
    ids::TaskId,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::spool::Spool;

/// A task that this agent holds.
pub(crate) struct Task {
    pub(crate) id: TaskId,
    /// The offer and its seal, as they came; empty for a task that was cancelled before it came.
    pub(crate) sealed_offer: Bytes,
    pub(crate) seal: Bytes,
    /// Its output.
    pub(crate) spool: Arc<Spool>,
    /// Holds how politely the task is to be ended, once it is.
    pub(crate) cancel: watch::Sender<Option<Duration>>,
    // A plain lock: it is held to look and to set.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    started: Option<TaskState>,
    ended: Option<TaskState>,
    waker: Option<Waker>,
}

impl Task {
    /// A task that has not started.
    pub(crate) fn new(
        id: TaskId,
        sealed_offer: Bytes,
        seal: Bytes,
        spool: Arc<Spool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            sealed_offer,
            seal,
            spool,
            cancel: watch::Sender::new(None),
            inner: Mutex::default(),
        })
    }

    /// Its process runs.
    pub(crate) fn started(&self, position: i64, started: task_state::Started) {
        let state = TaskState {
            journal_position: position,
            event: Some(task_state::Event::Started(started)),
        };
        self.change(|inner| inner.started = Some(state));
    }

    /// It is over.
    pub(crate) fn ended(&self, position: i64, ended: task_state::Ended) {
        self.spool.end();
        let state = TaskState {
            journal_position: position,
            event: Some(task_state::Event::Ended(ended)),
        };
        self.change(|inner| inner.ended = Some(state));
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock();
        change(&mut inner);
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// That its process runs, if it does and that is known.
    pub(crate) fn start(&self) -> Option<TaskState> {
        self.inner.lock().started.clone()
    }

    /// How it ended, once it has.
    pub(crate) fn poll_end(&self, waker: &Waker) -> Poll<TaskState> {
        let mut inner = self.inner.lock();
        match &inner.ended {
            Some(ended) => Poll::Ready(ended.clone()),
            None => {
                inner.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }

    /// Calls this waker when the state changes.
    pub(crate) fn wake_on_change(&self, waker: &Waker) {
        self.inner.lock().waker = Some(waker.clone());
    }
}
