//! Makes what was written durable, in groups: the second thread of the store. Writing goes on meanwhile.

use std::{
    fs::File,
    io, mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use tracing::error;

use super::{
    log::{Log, LogEnd},
    task::Task,
};

/// What was written is synced after this at the latest; it has waited 5 ms to be written.
const SYNC_AGE: Duration = Duration::from_millis(45);
/// It is synced at once when there is so much of it.
const SYNC_BYTES: u64 = 4 << 20;

/// What is written and not yet durable.
pub(super) struct Syncing {
    state: Mutex<State>,
    wake: Condvar,
    /// `None` once a sync has failed.
    synced: watch::Sender<Option<LogEnd>>,
}

struct State {
    end: LogEnd,
    bytes: u64,
    since: Option<Instant>,
    /// In order of writing; the last is still written to.
    files: Vec<Arc<File>>,
    touched: Vec<(Arc<Task>, i64)>,
    closed: bool,
}

/// What is synced in one go.
struct Group {
    end: LogEnd,
    files: Vec<Arc<File>>,
    touched: Vec<(Arc<Task>, i64)>,
}

impl Syncing {
    /// Everything up to `end` is durable.
    pub(super) fn new(end: LogEnd) -> Syncing {
        Syncing {
            state: Mutex::new(State {
                end,
                bytes: 0,
                since: None,
                files: Vec::new(),
                touched: Vec::new(),
                closed: false,
            }),
            wake: Condvar::new(),
            synced: watch::Sender::new(Some(end)),
        }
    }

    /// Follows how far the log is durable; `None` once that cannot be told any more.
    pub(super) fn watch(&self) -> watch::Receiver<Option<LogEnd>> {
        self.synced.subscribe()
    }

    /// Notes that `file` was written up to `end`, and what that made of each task's output.
    pub(super) fn written(
        &self,
        file: Arc<File>,
        end: LogEnd,
        bytes: u64,
        touched: Vec<(Arc<Task>, i64)>,
    ) {
        let mut state = self.state.lock();
        let first = state.bytes == 0;
        state.end = end;
        state.bytes += bytes;
        state.since.get_or_insert_with(Instant::now);
        state.touched.extend(touched);
        if state
            .files
            .last()
            .is_none_or(|last| !Arc::ptr_eq(last, &file))
        {
            state.files.push(file);
        }
        if first || state.bytes >= SYNC_BYTES {
            self.wake.notify_one();
        }
    }

    /// Lets the thread finish.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// Syncs until closed. A failed sync stops the store: what the disk lost cannot be told, so nothing
    /// more is called durable and nothing more is taken. The next start reads what is really there.
    pub(super) fn start(self: Arc<Self>, log: Arc<Log>) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new()
            .name("output-sync".to_owned())
            .spawn(move || {
                while let Some(group) = self.next() {
                    if let Err(error) = group.files.iter().try_for_each(|file| file.sync_data()) {
                        error!(%error, "the output store cannot sync, and takes nothing until the next start: {error}");
                        log.fail(&format!("its disk failed: {error}"));
                        self.synced.send_replace(None);
                        return;
                    }
                    for (task, sequence) in group.touched {
                        task.synced(sequence);
                    }
                    self.synced.send_replace(Some(group.end));
                }
            })
    }

    /// Waits until something is due.
    fn next(&self) -> Option<Group> {
        let mut state = self.state.lock();
        loop {
            match state.since {
                None if state.closed => return None,
                None => self.wake.wait(&mut state),
                Some(since) => {
                    let deadline = since + SYNC_AGE;
                    let due =
                        state.closed || state.bytes >= SYNC_BYTES || Instant::now() >= deadline;
                    if due {
                        break;
                    }
                    self.wake.wait_until(&mut state, deadline);
                }
            }
        }
        state.bytes = 0;
        state.since = None;
        Some(Group {
            end: state.end,
            files: mem::take(&mut state.files),
            touched: mem::take(&mut state.touched),
        })
    }
}
