//! One task's output in memory: its outline, and the newest items.

use std::collections::VecDeque;

use bytes::Bytes;
use muster_proto::ids::TaskId;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    frame::{self, TaskKey},
    item::{Content, Item, Point, Stream},
    outline::{Admission, Entry, Extent, OutOfOrder, Outline, Place},
};
use crate::model::OutputSize;

/// Smaller chunks are copied: a slice keeps the whole message alive that it came with.
const COPY_BELOW: usize = 4 << 10;

/// One task's output in memory.
pub(super) struct Task {
    /// Which task.
    pub(super) id: TaskId,
    /// The same, as frames name it.
    pub(super) key: TaskKey,
    // Held for moments only, and never while another is waited for but the queue's.
    state: Mutex<State>,
    durable: watch::Sender<i64>,
}

struct State {
    outline: Outline,
    /// The newest items without a hole. All that have no place yet are among them.
    recent: VecDeque<Item>,
    /// The highest sequence in the index.
    indexed: i64,
    /// The outline's count of drops when it was last indexed.
    indexed_drops: u64,
    /// The writer knows that the index is behind.
    dirty: bool,
    /// It goes no more into the index.
    removed: bool,
}

impl State {
    fn forget(&mut self, sequence: i64) {
        let recent = &mut self.recent;
        while recent.front().is_some_and(|item| item.sequence <= sequence) {
            recent.pop_front();
        }
        if recent.is_empty() {
            recent.shrink_to_fit();
        }
    }
}

/// Where a reader finds what comes next.
pub(super) enum Next {
    /// There is nothing more.
    Nothing,
    /// In memory: here it is.
    Items(Vec<Item>),
    /// In the log, and here is where.
    Stored(Vec<Extent>),
}

/// What placing an entry led to.
pub(super) struct Placed {
    /// The index was up to date until now.
    pub(super) newly_dirty: bool,
    /// Dropped to stay within the limit.
    pub(super) dropped: Vec<Extent>,
}

/// What the index has not heard yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// New and changed extents; those without a place replace all within their sequences.
    pub(super) extents: Vec<Extent>,
    through: i64,
    drops: u64,
}

impl Changes {
    /// Everything that lies in the log.
    pub(super) fn all(outline: &Outline) -> Changes {
        Changes {
            extents: outline.extents().to_vec(),
            through: outline.placed(),
            drops: outline.drops(),
        }
    }
}

impl Task {
    /// A task whose output is durable and in the index up to here.
    pub(super) fn new(id: TaskId, outline: Outline) -> Task {
        let last = outline.last();
        Task {
            id,
            key: frame::key(id),
            state: Mutex::new(State {
                indexed: last,
                indexed_drops: outline.drops(),
                outline,
                recent: VecDeque::new(),
                dirty: false,
                removed: false,
            }),
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

    /// The highest durable sequence, and each change of it.
    pub(super) fn watch_durable(&self) -> watch::Receiver<i64> {
        self.durable.subscribe()
    }

    /// Takes an item unless it was taken before; hands it to `queue` under the lock, so that items of one
    /// task are queued in their order whoever brings them.
    pub(super) fn take(
        &self,
        mut item: Item,
        queue: impl FnOnce(Entry, Point, &Item),
    ) -> Result<Admission, OutOfOrder> {
        let entry = Entry {
            sequence: item.sequence,
            stream: item.stream,
            offset: item.offset,
            length: item.length(),
            is_gap: matches!(item.content, Content::Missing { .. }),
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
            queue(entry, from, &item);
            state.recent.push_back(item);
        }
        Ok(admission)
    }

    /// Says where an item went, and keeps the task within its limit.
    pub(super) fn place(&self, entry: Entry, from: Point, place: Place, limit: u64) -> Placed {
        let mut state = self.state.lock();
        state.outline.place(entry, from, place);
        let dropped = state.outline.trim(limit);
        if let Some(last) = dropped.last() {
            state.forget(last.last);
        }
        let newly_dirty = !std::mem::replace(&mut state.dirty, true);
        Placed {
            newly_dirty,
            dropped,
        }
    }

    /// Lets items go from memory up to a sequence; they have places.
    pub(super) fn forget(&self, sequence: i64) {
        self.state.lock().forget(sequence);
    }

    /// Notes that all up to a sequence is durable.
    pub(super) fn synced(&self, sequence: i64) {
        self.durable.send_if_modified(|durable| {
            let further = sequence > *durable;
            if further {
                *durable = sequence;
            }
            further
        });
    }

    /// What the index has not heard yet.
    pub(super) fn changes(&self) -> Changes {
        let mut state = self.state.lock();
        state.dirty = false;
        if state.removed {
            return Changes::default();
        }
        let drops = state.outline.drops();
        let dropped = drops != state.indexed_drops;
        Changes {
            extents: state
                .outline
                .extents()
                .iter()
                .filter(|e| e.last > state.indexed || dropped && e.place.is_none())
                .copied()
                .collect(),
            through: state.outline.placed(),
            drops,
        }
    }

    /// Notes that the index has heard this.
    pub(super) fn indexed(&self, changes: &Changes) {
        let mut state = self.state.lock();
        state.indexed = state.indexed.max(changes.through);
        state.indexed_drops = state.indexed_drops.max(changes.drops);
    }

    /// Notes that the index forgets the task.
    pub(super) fn removed(&self) {
        self.state.lock().removed = true;
    }

    /// Drops what lies in a segment.
    pub(super) fn drop_segment(&self, segment: u32) {
        self.state.lock().outline.drop_segment(segment);
    }

    /// Whether nothing is lost if it leaves memory, and nobody follows it.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.recent.is_empty()
            && !state.dirty
            && state.indexed == state.outline.last()
            && self.durable.receiver_count() == 0
    }

    /// What comes after a sequence: at most `max_bytes`, and at least one item if there is one.
    pub(super) fn after(&self, sequence: i64, max_bytes: usize) -> Next {
        let state = self.state.lock();
        if sequence >= state.outline.last() {
            return Next::Nothing;
        }
        let recent = state
            .recent
            .front()
            .and_then(|first| usize::try_from(sequence + 1 - first.sequence).ok());
        if let Some(skip) = recent {
            let mut items = Vec::new();
            let mut bytes = 0;
            for item in state.recent.range(skip..) {
                bytes += item.weight();
                if bytes > max_bytes && !items.is_empty() {
                    break;
                }
                items.push(item.clone());
            }
            return Next::Items(items);
        }
        let extents = state.outline.extents();
        let first = extents.partition_point(|e| e.last <= sequence);
        let mut bytes = 0;
        let needed = extents[first..]
            .iter()
            .take_while(|e| {
                let wanted = bytes < max_bytes;
                bytes += e.kept as usize;
                wanted
            })
            .copied()
            .collect();
        Next::Stored(needed)
    }

    /// The highest sequence taken, and how many bytes all streams have, or one of them.
    pub(super) fn end(&self, stream: Option<Stream>) -> (i64, i64) {
        let state = self.state.lock();
        (state.outline.last(), state.outline.end().of(stream))
    }

    /// The sequence after which the item is read that holds a byte: one of all streams, or of one of them.
    pub(super) fn before(&self, stream: Option<Stream>, at: i64) -> i64 {
        let state = self.state.lock();
        let extents = state.outline.extents();
        let found = extents.partition_point(|e| e.to.of(stream) <= at);
        match extents.get(found) {
            Some(extent) => extent.first - 1,
            None => extents.last().map_or(0, |e| e.last),
        }
    }

    /// The sequence after which the newest items are read that end at `sequence`, a block of them: what
    /// memory has beyond the log, or one extent.
    pub(super) fn block_before(&self, sequence: i64) -> i64 {
        let state = self.state.lock();
        let extents = state.outline.extents();
        let placed = state.outline.placed();
        if sequence > placed {
            return placed;
        }
        let found = extents.partition_point(|e| e.last < sequence);
        extents.get(found).map_or(0, |e| e.first - 1)
    }
}
