//! The output of one task, kept until the control plane has it, whatever becomes of the network.
//!
//! The process's side appends and never waits. The report's side takes pieces in order of their
//! sequence: usually at once and from memory, after an interruption from the files. What is kept
//! where, and what has to go when there is too much, is [`plan`]'s business.

mod disk;
mod plan;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    path::Path,
    sync::Arc,
    task::Waker,
};

use bytes::Bytes;
use muster_proto::{ids::TaskId, v1::OutputStream};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::disk::Room;
use self::{
    disk::SegmentFile,
    plan::{Limits, Missing, Place, Placed, Plan, STREAMS, Segment, SegmentId},
};

/// Pieces stay in memory for the report up to this many bytes; a slower report reads the files.
const RECENT_MAX: usize = 1 << 20;

/// More than this that no report has taken is a backlog, bytes.
const BACKLOG: usize = 256 << 10;

/// A segment of a spool, on disk, bytes.
const SEGMENT: u64 = 8 << 20;

/// Kept in memory, for each of head and tail, when the disk has no room, bytes.
const MEMORY: u64 = 1 << 20;

/// Read from a file at once, bytes.
const READ_MAX: usize = 1 << 20;

/// Some output of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) sequence: i64,
    stream: usize,
    pub(crate) offset: i64,
    pub(crate) content: Content,
}

/// What a piece holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// Bytes as the process wrote them.
    Data(Bytes),
    /// Nothing: so many bytes were not kept.
    Missing { length: i64, cause: String },
}

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

/// How much output there was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Produced {
    pub(crate) stdout: i64,
    pub(crate) stderr: i64,
}

/// The output of one task.
pub(crate) struct Spool {
    task_id: TaskId,
    room: Arc<Room>,
    // A plain lock: it is held for bookkeeping only, never for a file.
    inner: Mutex<Inner>,
}

struct Inner {
    plan: Plan,
    place: Place,
    /// The newest pieces of the head that no report has taken.
    recent: VecDeque<Piece>,
    recent_bytes: usize,
    files: HashMap<SegmentId, Arc<SegmentFile>>,
    memory: HashMap<SegmentId, Vec<Piece>>,
    ended: bool,
    warned: bool,
    waker: Option<Waker>,
    backlog: Arc<Notify>,
}

/// Where a report reads in the files.
#[derive(Debug, Default)]
pub(crate) struct Position {
    segment: Option<SegmentId>,
    sequence: i64,
    at: u64,
}

impl Piece {
    pub(crate) fn stream(&self) -> OutputStream {
        OutputStream::try_from(self.stream as i32 + 1).unwrap_or(OutputStream::Unspecified)
    }
}

impl Content {
    /// How many bytes of the stream it stands for.
    pub(crate) fn length(&self) -> i64 {
        match self {
            Self::Data(data) => data.len() as i64,
            Self::Missing { length, .. } => *length,
        }
    }

    fn kept(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Missing { .. } => 0,
        }
    }
}

fn limits(task_limit: u64) -> Limits {
    Limits {
        disk: task_limit / 2,
        memory: MEMORY,
        segment: SEGMENT.min(task_limit / 8).max(1),
    }
}

impl Spool {
    /// For a task that begins.
    pub(crate) fn new(task_id: TaskId, room: Arc<Room>, task_limit: u64) -> Self {
        Self::with_plan(task_id, room, Plan::new(limits(task_limit)))
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
                ended: false,
                warned: false,
                waker: None,
                backlog: Arc::new(Notify::new()),
            }),
        }
    }

    /// For a task of an earlier agent: what it left, and a gap for what is known to be missing. Complete.
    pub(crate) fn recover(
        task_id: TaskId,
        room: Arc<Room>,
        task_limit: u64,
        produced: Option<Produced>,
    ) -> io::Result<Self> {
        let (mut head, mut tail): (Vec<Segment>, Vec<Segment>) = Default::default();
        let mut files = HashMap::new();
        for (id, path) in disk::left_behind(room.directory(), task_id)? {
            match SegmentFile::recover(&room, path.clone(), id) {
                Ok((file, segment)) => {
                    files.insert(id, Arc::new(file));
                    if segment.first > 0 {
                        &mut head
                    } else {
                        &mut tail
                    }
                    .push(segment);
                }
                Err(error) => {
                    tracing::warn!(task.id = %task_id, %error, "output of an earlier agent is lost: {error}");
                }
            }
        }
        head.sort_by_key(|segment| segment.first);
        // A file whose beginning was cut leaves a hole in the sequences, and nothing can follow one.
        let mut expected = None;
        let whole = head
            .iter()
            .take_while(|segment| {
                let follows = expected.is_none_or(|next| next == segment.first);
                expected = Some(segment.first + segment.pieces);
                follows
            })
            .count();
        head.truncate(whole);
        let spool = Self::with_plan(
            task_id,
            room,
            Plan::recovered(limits(task_limit), head, tail),
        );
        {
            let mut inner = spool.inner.lock();
            inner.files = files;
            // Without a file, all of it was acknowledged, or nobody can say what was not.
            if let Some(produced) = produced.filter(|_| !inner.files.is_empty()) {
                inner.miss(produced);
            }
            inner.ended = true;
        }
        Ok(spool)
    }

    /// Takes output of the process: for the report at once, then into the file. Blocks for one write to
    /// the page cache. One caller at a time.
    pub(crate) fn append(&self, stream: OutputStream, data: Bytes) {
        let stream = (stream as usize).saturating_sub(1).min(STREAMS - 1);
        let length = data.len() as u64;
        let mut inner = self.inner.lock();
        if inner.plan.turns(length) {
            inner.place = self.room.choose(SEGMENT);
        }
        let place = inner.place;
        let placed = inner.plan.place(stream, length, place);
        let content = Content::Data(data);
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
        drop(inner);
        throw_away(gone);

        if placed.place == Place::Disk
            && let Err(error) = self.write(&placed, file, stream, &content)
        {
            self.hold(&placed, stream, content, &error);
        }
    }

    fn write(
        &self,
        placed: &Placed,
        file: Option<Arc<SegmentFile>>,
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
            .move_last_to_memory(placed, stream, content.kept() as u64);
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

    /// How much output there has been.
    pub(crate) fn produced(&self) -> Produced {
        let end = self.inner.lock().plan.end();
        Produced {
            stdout: end[0] + end[2],
            stderr: end[1],
        }
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

    /// Reads what comes after a sequence from where it is stored. Blocks.
    pub(crate) fn read(&self, after: i64, place: &mut Position) -> io::Result<Vec<Piece>> {
        let wanted = after + 1;
        let mut inner = self.inner.lock();
        if wanted >= inner.plan.next_sequence() && inner.plan.has_tail() {
            self.join(&mut inner);
        }
        let Some(segment) = inner.plan.find(wanted).cloned() else {
            return Ok(Vec::new());
        };
        if let Some(pieces) = inner.memory.get(&segment.id) {
            let skip = usize::try_from(wanted - segment.first).unwrap_or(0);
            return Ok(pieces.iter().skip(skip).cloned().collect());
        }
        let file = inner.files.get(&segment.id).cloned();
        drop(inner);
        let Some(file) = file else {
            return Ok(lost(&segment, wanted, None));
        };

        let known = place.segment == Some(segment.id) && place.sequence <= wanted;
        let (mut at, mut sequence) = if known {
            (place.at, place.sequence)
        } else {
            (0, segment.first)
        };
        let end = segment.first + segment.pieces;
        loop {
            match file.read(at, sequence, end - sequence, READ_MAX) {
                Ok((mut pieces, next)) => {
                    at = next;
                    sequence += pieces.len() as i64;
                    pieces.retain(|piece| piece.sequence >= wanted);
                    if !pieces.is_empty() || sequence >= end {
                        *place = Position {
                            segment: Some(segment.id),
                            sequence,
                            at,
                        };
                        return Ok(pieces);
                    }
                }
                Err(error) => {
                    tracing::error!(task.id = %self.task_id, %error, "kept output cannot be read: {error}");
                    // What can be read comes first, piece by piece; the rest is a gap.
                    if let Ok((pieces, next)) = file.read(at, sequence, 1, 1) {
                        at = next;
                        sequence += 1;
                        if pieces.iter().any(|piece| piece.sequence >= wanted) {
                            *place = Position {
                                segment: Some(segment.id),
                                sequence,
                                at,
                            };
                            return Ok(pieces);
                        }
                        continue;
                    }
                    return Ok(lost(&segment, wanted, Some((&file, sequence))));
                }
            }
        }
    }

    /// Puts the tail behind the head, with gaps for what was dropped between.
    fn join(&self, inner: &mut Inner) {
        let joined = inner.plan.join();
        if let Some((id, missing)) = joined.gaps {
            let pieces: Vec<Piece> = missing.into_iter().map(gap).collect();
            // On disk too, for a later agent; in memory for this one.
            if let Err(error) = self.write_gaps(inner, id, &pieces) {
                tracing::warn!(task.id = %self.task_id, %error, "a gap cannot be written: {error}");
            }
            inner.memory.insert(id, pieces);
        }
        for id in joined.numbered {
            let Some(first) = inner
                .plan
                .segments()
                .find(|segment| segment.id == id)
                .map(|segment| segment.first)
            else {
                continue;
            };
            if let Some(file) = inner.files.get(&id)
                && let Err(error) = file.number(first)
            {
                tracing::warn!(task.id = %self.task_id, %error, "a segment cannot be numbered: {error}");
            }
            for (piece, sequence) in inner.memory.get_mut(&id).into_iter().flatten().zip(first..) {
                piece.sequence = sequence;
            }
        }
    }

    fn write_gaps(&self, inner: &mut Inner, id: SegmentId, pieces: &[Piece]) -> io::Result<()> {
        let first = pieces.first().map_or(0, |piece| piece.sequence);
        let begin = inner
            .plan
            .find(first)
            .map_or([0; STREAMS], |segment| segment.begin);
        let file = SegmentFile::create(&self.room, self.task_id, id, first, begin)?;
        for piece in pieces {
            file.append(piece.stream, piece.offset, &piece.content)?;
        }
        inner.files.insert(id, Arc::new(file));
        Ok(())
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
        throw_away(gone);
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

    /// Up to where all is acknowledged.
    pub(crate) fn acknowledged(&self) -> i64 {
        self.inner.lock().plan.acked()
    }
}

impl Inner {
    fn publish(&mut self, piece: Piece) {
        self.recent_bytes += piece.content.kept();
        self.recent.push_back(piece);
        if self.recent_bytes > BACKLOG {
            self.backlog.notify_one();
        }
        // The newest stays, as it may not be in its file yet.
        while self.recent_bytes > RECENT_MAX && self.recent.len() > 1 {
            self.pop();
        }
        self.wake();
    }

    fn pop(&mut self) -> Option<Piece> {
        let piece = self.recent.pop_front()?;
        self.recent_bytes -= piece.content.kept();
        Some(piece)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn remove(&mut self, segments: &[SegmentId]) -> Vec<Arc<SegmentFile>> {
        segments
            .iter()
            .filter_map(|id| {
                self.memory.remove(id);
                self.files.remove(id)
            })
            .collect()
    }

    /// Adds gaps for what the process wrote and no file has.
    fn miss(&mut self, produced: Produced) {
        let end = self.plan.end();
        for (stream, expected) in [produced.stdout, produced.stderr].into_iter().enumerate() {
            let length = expected - end[stream];
            if length <= 0 {
                continue;
            }
            let placed = self.plan.place(stream, length as u64, Place::Memory);
            self.memory
                .entry(placed.segment)
                .or_default()
                .push(gap(Missing {
                    sequence: placed.sequence,
                    stream,
                    offset: placed.offset,
                    length,
                }));
        }
    }
}

fn gap(missing: Missing) -> Piece {
    Piece {
        sequence: missing.sequence,
        stream: missing.stream,
        offset: missing.offset,
        content: Content::Missing {
            length: missing.length,
            cause: "the host had no room to keep it".to_owned(),
        },
    }
}

/// Gaps for what is left of a segment that cannot be read, one for each sequence.
fn lost(segment: &Segment, wanted: i64, readable: Option<(&SegmentFile, i64)>) -> Vec<Piece> {
    let mut begin = segment.begin;
    let mut sequence = segment.first;
    if let Some((file, reached)) = readable {
        // Everything before was readable: the streams stand where it ends.
        if let Ok((pieces, _)) = file.read(0, segment.first, reached - segment.first, usize::MAX) {
            for piece in &pieces {
                begin[piece.stream] = piece.offset + piece.content.length();
            }
        }
        sequence = reached;
    }
    let mut pieces = Vec::new();
    let end = segment.first + segment.pieces;
    for (stream, begin) in begin.iter().enumerate() {
        let length = segment.end[stream] - begin;
        if length > 0 && sequence < end {
            pieces.push(lost_piece(sequence, stream, *begin, length));
            sequence += 1;
        }
    }
    while sequence < end {
        pieces.push(lost_piece(sequence, 0, segment.end[0], 0));
        sequence += 1;
    }
    pieces.retain(|piece| piece.sequence >= wanted);
    pieces
}

fn lost_piece(sequence: i64, stream: usize, offset: i64, length: i64) -> Piece {
    Piece {
        sequence,
        stream,
        offset,
        content: Content::Missing {
            length,
            cause: "the host's disk lost it".to_owned(),
        },
    }
}

/// Removes the output of tasks that the journal does not hold any more.
pub(crate) fn sweep(directory: &Path, held: &HashSet<TaskId>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let task_id = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse().ok());
        if task_id.is_some_and(|task_id| !held.contains(&task_id)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes files outside of the lock, as soon as no reader holds them.
fn throw_away(files: Vec<Arc<SegmentFile>>) {
    for file in files {
        file.throw_away();
    }
}

#[cfg(test)]
mod tests;
