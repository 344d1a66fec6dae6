//! The output of one task, kept until the control plane has it, whatever becomes of the network.
//!
//! The process's side appends and never waits. The report's side takes pieces in order of their
//! sequence: usually at once and from memory, after an interruption from the files. What is kept
//! where, and what has to go when there is too much, is [`plan`]'s business.

mod disk;
mod held;
mod keep;
mod numbers;
mod piece;
mod plan;
mod recovery;
mod stored;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    task::{Poll, Waker},
};

use bytes::Bytes;
use muster_client::audit::{Hash, OutputDigest};
use muster_proto::{agent::v1::Kept, ids::TaskId, v1::OutputStream};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::{
    disk::Room,
    keep::Keep,
    piece::{Content, Piece},
    recovery::sweep,
};
use self::{
    disk::SegmentFile,
    held::Inner,
    numbers::Numbers,
    plan::{Place, Placed, Plan, STREAMS, SegmentId, Size},
};

/// The directory of the agent's spools, in the agent's.
pub(crate) const DIRECTORY: &str = "spool";

/// Pieces stay in memory for the report up to this many bytes; a slower report reads the files.
const RECENT_MAX: usize = 1 << 20;

/// More than this that no report has taken is a backlog, bytes.
const BACKLOG: usize = 256 << 10;

/// A segment of a spool, on disk, bytes.
const SEGMENT: u64 = 8 << 20;

/// Why output is missing that the host has had.
pub(crate) const NOT_KEPT: &str =
    "the host had it in memory only when its agent ended, or lost it when its power was cut";

/// Read from a file at once, bytes.
const READ_MAX: usize = 1 << 20;

/// What there is for a report.
#[derive(Debug)]
pub(crate) enum Next {
    /// The next piece.
    Piece(Piece),
    /// It has to be read: call [`Spool::read`] where blocking is allowed.
    Stored,
    /// Nothing yet; the waker will be called.
    Nothing,
    /// It was acknowledged and thrown away, and nothing can follow without it.
    Gone,
    /// Nothing more, ever; this was the last sequence.
    End { last_sequence: i64 },
}

/// How much output there was: of standard output, standard error and the terminal, bytes.
pub(crate) type Produced = [i64; STREAMS];

/// The output of one task.
pub(crate) struct Spool {
    task_id: TaskId,
    room: Arc<Room>,
    // A plain lock: it is held for bookkeeping only, never for a file.
    inner: Mutex<Inner>,
    /// Notified when the control plane has more.
    room_made: Notify,
    /// The digest of what was written, for the receipt. One caller at a time adds to it.
    digest: Mutex<OutputDigest>,
}

/// Where a report reads in the files.
#[derive(Debug, Default)]
pub(crate) struct Position {
    segment: Option<SegmentId>,
    sequence: i64,
    at: u64,
}

impl Spool {
    /// For a task that begins.
    pub(crate) fn new(task_id: TaskId, room: Arc<Room>, keep: impl Into<Keep>) -> Self {
        Self::with_plan(task_id, room, Plan::new(keep.into().limits()))
    }

    /// For a task whose streams have come this far.
    pub(crate) fn new_at(
        task_id: TaskId,
        room: Arc<Room>,
        keep: Keep,
        ends: [i64; STREAMS],
    ) -> Self {
        let spool = Self::with_plan(task_id, room, Plan::new_at(keep.limits(), ends));
        if ends.iter().any(|end| *end > 0) {
            // What came before was not seen by this process.
            spool.miss();
        }
        spool
    }

    fn with_plan(task_id: TaskId, room: Arc<Room>, plan: Plan) -> Self {
        Self {
            task_id,
            room,
            inner: Mutex::new(Inner {
                plan,
                place: Place::Disk,
                recent: VecDeque::new(),
                recent_bytes: 0,
                files: HashMap::new(),
                memory: HashMap::new(),
                numbers: Numbers::Same,
                ended: false,
                warned: false,
                waker: None,
                backlog: Arc::new(Notify::new()),
            }),
            room_made: Notify::new(),
            digest: Mutex::default(),
        }
    }

    /// Something was written that this process has not seen.
    pub(crate) fn miss(&self) {
        self.digest.lock().miss();
    }

    /// The digest of all that was written; `None` if that was too much, or not all was seen.
    pub(crate) fn digest(&self) -> Option<Hash> {
        self.digest.lock().digest()
    }

    /// Takes output of the process: for the report at once, then into the file. Blocks for one write to
    /// the page cache. One caller at a time.
    pub(crate) fn append(&self, stream: OutputStream, data: Bytes) {
        let stream = (stream as usize).saturating_sub(1).min(STREAMS - 1);
        self.digest.lock().add(stream, &data);
        self.put(stream, Content::Data(data));
    }

    /// Notes that so much of a stream was not kept by whoever had it before.
    pub(crate) fn append_gap(&self, stream: usize, length: i64, cause: String) {
        self.miss();
        self.put(stream.min(STREAMS - 1), Content::Missing { length, cause });
    }

    fn put(&self, stream: usize, content: Content) {
        let size = Size::of(&content);
        let mut inner = self.inner.lock();
        if inner.plan.turns(size.kept) {
            inner.place = self.room.choose(SEGMENT);
        }
        let place = inner.place;
        let placed = inner.plan.place(stream, size, place);
        let piece = Piece {
            sequence: placed.sequence,
            stream,
            offset: placed.offset,
            content: content.clone(),
        };
        let gone = inner.remove(&placed.dropped);
        if placed.place == Place::Memory {
            inner
                .memory
                .entry(placed.segment)
                .or_default()
                .push(piece.clone());
        }
        if placed.sequence > 0 {
            inner.publish(piece);
        }
        let file = inner.files.get(&placed.segment).cloned();
        let unsure = inner.is_unsure();
        drop(inner);
        throw_away(gone);

        if placed.place == Place::Disk
            && let Err(error) = self.write(&placed, file, unsure, stream, &content)
        {
            self.hold(&placed, stream, content, &error);
        }
    }

    fn write(
        &self,
        placed: &Placed,
        file: Option<Arc<SegmentFile>>,
        unsure: bool,
        stream: usize,
        content: &Content,
    ) -> io::Result<()> {
        let file = match file {
            Some(file) => file,
            None => {
                let file = SegmentFile::create(
                    &self.room,
                    self.task_id,
                    placed.segment,
                    placed.sequence,
                    placed.begin,
                    unsure,
                )?;
                let file = Arc::new(file);
                let mut inner = self.inner.lock();
                inner.files.insert(placed.segment, Arc::clone(&file));
                file
            }
        };
        file.append(stream, placed.offset, content)
    }

    /// Keeps a piece in memory that could not be written.
    fn hold(&self, placed: &Placed, stream: usize, content: Content, error: &io::Error) {
        let mut inner = self.inner.lock();
        if !std::mem::replace(&mut inner.warned, true) {
            tracing::warn!(task.id = %self.task_id, %error, "output cannot be written, so little of it can be kept: {error}");
        }
        inner.place = Place::Memory;
        let segment = inner
            .plan
            .move_last_to_memory(placed, stream, Size::of(&content));
        let emptied = inner
            .plan
            .segments()
            .all(|segment| segment.id != placed.segment);
        let gone = if emptied {
            inner.remove(&[placed.segment])
        } else {
            Vec::new()
        };
        inner.memory.insert(
            segment,
            vec![Piece {
                sequence: placed.sequence,
                stream,
                offset: placed.offset,
                content,
            }],
        );
        drop(inner);
        throw_away(gone);
    }

    /// Nothing more will be written.
    pub(crate) fn end(&self) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        inner.wake();
    }

    /// How far each stream has come.
    pub(crate) fn produced(&self) -> Produced {
        self.inner.lock().plan.end()
    }

    /// The highest sequence so far.
    pub(crate) fn last_sequence(&self) -> i64 {
        self.inner.lock().plan.next_sequence() - 1
    }

    /// What comes after a sequence. Takes it out of memory: the next report reads it from the file.
    pub(crate) fn next(&self, after: i64, waker: &Waker) -> Next {
        let mut inner = self.inner.lock();
        let wanted = after + 1;
        while inner
            .recent
            .front()
            .is_some_and(|piece| piece.sequence < wanted)
        {
            inner.pop();
        }
        match inner.recent.front() {
            Some(piece) if piece.sequence == wanted => {
                return inner.pop().map_or(Next::Nothing, Next::Piece);
            }
            _ if inner.plan.is_gone(wanted) => return Next::Gone,
            _ if wanted < inner.plan.next_sequence() || inner.plan.has_tail() => {
                return Next::Stored;
            }
            _ => {}
        }
        if inner.ended {
            return Next::End {
                last_sequence: inner.plan.next_sequence() - 1,
            };
        }
        inner.waker = Some(waker.clone());
        Next::Nothing
    }

    /// Ready once there is output, or nothing more will come.
    pub(crate) fn poll_any(&self, waker: &Waker) -> Poll<()> {
        let mut inner = self.inner.lock();
        if inner.ended || inner.plan.next_sequence() > 1 {
            return Poll::Ready(());
        }
        inner.waker = Some(waker.clone());
        Poll::Pending
    }

    /// The first sequence that is kept, and how much of each stream comes before; `None` where that is not known any
    /// more, as of a task that was settled before this agent began.
    pub(crate) fn kept(&self) -> Option<(i64, Kept)> {
        let inner = self.inner.lock();
        let (first, [stdout, stderr, pty]) = inner.plan.begin()?;
        let known = first == 1 || stdout + stderr + pty > 0;
        let kept = Kept {
            stdout_offset: stdout,
            stderr_offset: stderr,
            pty_offset: pty,
        };
        known.then_some((first, kept))
    }

    /// Notified when a report does not keep up.
    pub(crate) fn backlog(&self) -> Arc<Notify> {
        Arc::clone(&self.inner.lock().backlog)
    }

    /// Whether so much waits behind a sequence that it should not ride with others.
    pub(crate) fn has_backlog(&self, after: i64) -> bool {
        let inner = self.inner.lock();
        let waiting = match inner.recent.front() {
            Some(piece) if piece.sequence <= after + 1 => inner.recent_bytes as u64,
            _ => inner.plan.bytes_from(after + 1),
        };
        waiting > BACKLOG as u64
    }

    /// All up to this sequence is durable at the control plane.
    pub(crate) fn acknowledge(&self, sequence: i64) {
        let mut inner = self.inner.lock();
        let done = inner.plan.acknowledge(sequence);
        if inner.plan.is_headless() {
            // Numbered before the head's files go: a later agent could not tell the numbers any more.
            self.join(&mut inner);
        }
        let gone = inner.remove(&done);
        drop(inner);
        self.room_made.notify_waiters();
        throw_away(gone);
    }

    /// Bytes that the control plane does not have.
    pub(crate) fn waiting(&self) -> u64 {
        let inner = self.inner.lock();
        inner.plan.bytes_from(inner.plan.acked() + 1)
    }

    /// Returns once fewer bytes than this wait for the control plane.
    pub(crate) async fn has_room(&self, bytes: u64) {
        loop {
            let made = self.room_made.notified();
            tokio::pin!(made);
            // Before the look, so that no change is missed.
            made.as_mut().enable();
            if self.waiting() < bytes {
                return;
            }
            made.await;
        }
    }

    /// The control plane has everything, or nobody will ask again.
    pub(crate) fn forget(&self) {
        let mut inner = self.inner.lock();
        let all: Vec<SegmentId> = inner.files.keys().copied().collect();
        let gone = inner.remove(&all);
        inner.memory.clear();
        inner.recent.clear();
        inner.recent_bytes = 0;
        drop(inner);
        throw_away(gone);
    }

    /// Whether all of it is acknowledged.
    pub(crate) fn is_acknowledged(&self) -> bool {
        let inner = self.inner.lock();
        !inner.plan.has_tail() && inner.plan.acked() + 1 == inner.plan.next_sequence()
    }

    /// Whether all of it is in files, so that it outlives this process.
    pub(crate) fn is_in_files(&self) -> bool {
        self.inner.lock().memory.is_empty()
    }

    /// Up to where all is acknowledged.
    pub(crate) fn acknowledged(&self) -> i64 {
        self.inner.lock().plan.acked()
    }
}

/// Removes files outside of the lock, as soon as no reader holds them.
fn throw_away(files: Vec<Arc<SegmentFile>>) {
    for file in files {
        file.throw_away();
    }
}

#[cfg(test)]
mod tests;
