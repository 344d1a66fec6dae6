//! One task: what it is, where it stands, and what a report says of it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{Input, InputResult, TaskState, task_state},
    ids::TaskId,
    v1::InputStatus,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::overflow::Overflow;
use crate::{actions, spool::Spool, supervision::Link};

/// Inputs that wait for the supervisor; more are refused.
const INPUTS: usize = 64;

/// Results of inputs that wait for a report. Beyond, the oldest are dropped: their writers have gone.
const RESULTS: usize = 1024;

/// A task that this agent holds.
pub(crate) struct Task {
    pub(crate) id: TaskId,
    /// The offer and its seal, as they came; empty for a task that was cancelled before it came.
    pub(crate) sealed_offer: Bytes,
    pub(crate) seal: Bytes,
    /// Its output.
    pub(crate) spool: Arc<Spool>,
    /// Read from the offer once.
    overflow: OnceLock<Overflow>,
    /// It wrote more than it may.
    overflowed: AtomicBool,
    /// Holds how politely the task is to be ended, once it is.
    pub(crate) cancel: watch::Sender<Option<Duration>>,
    // A plain lock: it is held to look and to set.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    started: Option<TaskState>,
    ended: Option<TaskState>,
    /// To the supervisor, while the process runs.
    inputs: Option<mpsc::Sender<Input>>,
    results: VecDeque<InputResult>,
    /// Holds the end until the journal does.
    supervisor: Option<Link>,
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
            overflow: OnceLock::new(),
            overflowed: AtomicBool::new(false),
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

    /// What becomes of output that is more than is kept, on a host that keeps so much for one task.
    pub(crate) fn overflow(&self, host_bytes: u64) -> Overflow {
        let read = || Overflow::of(actions::output_limit(&self.sealed_offer), host_bytes);
        *self.overflow.get_or_init(read)
    }

    /// It wrote more than it may; says whether that is news.
    pub(crate) fn overflows(&self) -> bool {
        !self.overflowed.swap(true, Ordering::Relaxed)
    }

    /// Whether it wrote more than it may.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// It is over.
    pub(crate) fn ended(&self, position: i64, ended: task_state::Ended) {
        self.spool.end();
        let state = TaskState {
            journal_position: position,
            event: Some(task_state::Event::Ended(ended)),
        };
        self.change(|inner| {
            inner.ended = Some(state);
            inner.inputs = None;
        });
    }

    /// From now on, inputs go to the receiver.
    pub(crate) fn take_inputs(&self) -> mpsc::Receiver<Input> {
        let (sender, receiver) = mpsc::channel(INPUTS);
        self.inner.lock().inputs = Some(sender);
        receiver
    }

    /// Something for the process; what becomes of it is among the [`results`](Self::pop_result).
    pub(crate) fn put(&self, input: Input) {
        let write_id = input.write_id.clone();
        let mut refused = None;
        {
            let inner = self.inner.lock();
            if inner.ended.is_some() {
                refused = Some(InputStatus::Closed);
            } else if inner.started.is_none() {
                refused = Some(InputStatus::Starting);
            } else if let Some(inputs) = &inner.inputs {
                if inputs.try_send(input).is_err() {
                    refused = Some(InputStatus::Full);
                }
            } else {
                // What an earlier agent started is being looked for.
                refused = Some(InputStatus::Starting);
            }
        }
        if let Some(status) = refused {
            self.answered(InputResult {
                write_id,
                status: status.into(),
            });
        }
    }

    /// What became of an input.
    pub(crate) fn answered(&self, result: InputResult) {
        self.change(|inner| {
            if inner.results.len() == RESULTS {
                inner.results.pop_front();
            }
            inner.results.push_back(result);
        });
    }

    /// The next result of an input that no report has taken.
    pub(crate) fn pop_result(&self) -> Option<InputResult> {
        self.inner.lock().results.pop_front()
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

    /// When its process started, by this host's clock, and how far it is confined.
    pub(crate) fn started_as(&self) -> Option<task_state::Started> {
        match self.start()?.event? {
            task_state::Event::Started(started) => Some(started),
            task_state::Event::Ended(_) => None,
        }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.inner.lock().ended.is_some()
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

    /// The same, if it is over.
    pub(crate) fn ended_as(&self) -> Option<task_state::Ended> {
        match self.inner.lock().ended.clone()?.event? {
            task_state::Event::Ended(ended) => Some(ended),
            task_state::Event::Started(_) => None,
        }
    }

    /// Its supervisor is not to forget how it ended before it is [released](Self::release).
    pub(crate) fn keep(&self, supervisor: Link) {
        self.inner.lock().supervisor = Some(supervisor);
    }

    /// The end is in the journal. Returns the supervisor, if it is there and may forget it.
    pub(crate) fn release(&self) -> Option<Link> {
        let mut supervisor = self.inner.lock().supervisor.take()?;
        supervisor.release().ok()?;
        Some(supervisor)
    }

    /// Calls this waker when the state changes.
    pub(crate) fn wake_on_change(&self, waker: &Waker) {
        self.inner.lock().waker = Some(waker.clone());
    }
}
