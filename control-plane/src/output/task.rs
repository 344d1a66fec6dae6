//! One task's output in memory: its outline, and the newest items.

use std::collections::VecDeque;

use bytes::Bytes;
use muster_proto::ids::TaskId;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    item::{Content, Item, OutputSize, Point, Stream},
    outline::{Admission, Entry, OutOfOrder, Outline},
};

/// Smaller chunks are copied: a slice keeps the whole message alive that it came with.
const COPY_BELOW: usize = 4 << 10;

/// One task's output in memory.
pub(super) struct Task {
    /// Which task.
    pub(super) id: TaskId,
    state: Mutex<State>,
    taken: watch::Sender<i64>,
    durable: watch::Sender<i64>,
}

struct State {
    outline: Outline,
    /// The newest items without a hole. All that have no place yet are among them.
    recent: VecDeque<Item>,
}

/// Where a reader finds what comes next.
pub(super) enum Next {
    /// There is nothing more.
    Nothing,
    /// In memory: here it is.
    Items(Vec<Item>),
    /// In the log.
    Stored,
}

impl Task {
    /// A task whose output is known up to here, all of it durable.
    pub(super) fn new(id: TaskId, outline: Outline) -> Task {
        let last = outline.last();
        Task {
            id,
            state: Mutex::new(State {
                outline,
                recent: VecDeque::new(),
            }),
            taken: watch::Sender::new(last),
            durable: watch::Sender::new(last),
        }
    }

    /// The highest sequence taken.
    pub(super) fn last(&self) -> i64 {
        self.state.lock().outline.last()
    }

    /// How much there is.
    pub(super) fn size(&self) -> OutputSize {
        self.state.lock().outline.size()
    }

    /// The highest sequence taken, and each change of it.
    pub(super) fn watch_taken(&self) -> watch::Receiver<i64> {
        self.taken.subscribe()
    }

    /// The highest durable sequence, and each change of it.
    pub(super) fn watch_durable(&self) -> watch::Receiver<i64> {
        self.durable.subscribe()
    }

    /// Takes an item unless it was taken before; hands it to `queue` under the lock, so that items of one
    /// task are queued in their order whoever brings them.
    pub(super) fn take(
        &self,
        sequence: i64,
        stream: Stream,
        offset: i64,
        content: Content,
        queue: impl FnOnce(Entry, Point, &Content),
    ) -> Result<Admission, OutOfOrder> {
        let mut item = Item {
            sequence,
            stream,
            offset,
            position: 0,
            content,
        };
        let entry = Entry {
            sequence,
            stream,
            offset,
            length: item.length(),
            kept: item.kept() as i64,
        };
        let mut state = self.state.lock();
        let admission = state.outline.admit(entry)?;
        if let Admission::Taken(from) = admission {
            item.position = from.position;
            if let Content::Data(data) = &mut item.content
                && data.len() < COPY_BELOW
            {
                *data = Bytes::copy_from_slice(data);
            }
            queue(entry, from, &item.content);
            state.recent.push_back(item);
            drop(state);
            self.taken.send_replace(sequence);
        }
        Ok(admission)
    }

    /// What comes after a sequence: at most `max_bytes`, and at least one item if there is one.
    pub(super) fn after(&self, sequence: i64, max_bytes: usize) -> Next {
        let state = self.state.lock();
        if sequence >= state.outline.last() {
            return Next::Nothing;
        }
        let Some(skip) = state
            .recent
            .front()
            .and_then(|first| usize::try_from(sequence + 1 - first.sequence).ok())
        else {
            return Next::Stored;
        };
        let mut items = Vec::new();
        let mut bytes = 0;
        for item in state.recent.range(skip..) {
            bytes += item.kept();
            if bytes > max_bytes && !items.is_empty() {
                break;
            }
            items.push(item.clone());
        }
        Next::Items(items)
    }
}
