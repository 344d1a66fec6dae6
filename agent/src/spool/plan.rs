//! Which output is kept where. Pure: knows of segments, sequences and sizes, not of files or bytes.
//!
//! Pieces of output are numbered as they come and put into segments. When more is waiting than the
//! head may hold, what follows goes, without numbers yet, to a tail, of which the oldest segments are
//! dropped: so the beginning and the end are kept. Once the reader has taken the head, the tail is
//! numbered behind it, with gaps for what was dropped.

use std::collections::VecDeque;

/// More pieces no task has.
const SEQUENCE_MAX: i64 = i64::MAX / 2;

/// Where a segment lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a file.
    Disk,
    /// In memory, because the disk has no room.
    Memory,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of the head on disk.
    pub(super) head: u64,
    /// Bytes of the tail on disk.
    pub(super) tail: u64,
    /// Bytes of each in memory.
    pub(super) memory: u64,
    /// A segment takes no further piece beyond this size.
    pub(super) segment: u64,
}

/// stdout, stderr, pty.
pub(super) const STREAMS: usize = 3;

/// Names a segment for as long as the spool lives.
pub(super) type SegmentId = u64;

/// A run of pieces.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) place: Place,
    /// Sequence of the first piece; 0 while it has none.
    pub(super) first: i64,
    pub(super) pieces: i64,
    pub(super) bytes: u64,
    /// For each stream, where its bytes in this segment begin and end.
    pub(super) begin: [i64; STREAMS],
    pub(super) end: [i64; STREAMS],
}

/// How large a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Bytes that are kept: none of a gap.
    pub(super) kept: u64,
    /// Bytes of the stream that it stands for.
    pub(super) length: i64,
}

/// Where a piece goes.
#[derive(Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) segment: SegmentId,
    pub(super) place: Place,
    /// The segment begins with this piece.
    pub(super) new: bool,
    /// 0 for a piece of the tail.
    pub(super) sequence: i64,
    pub(super) offset: i64,
    /// Where the streams stand at the beginning of the segment.
    pub(super) begin: [i64; STREAMS],
    /// Segments to be thrown away.
    pub(super) dropped: Vec<SegmentId>,
}

/// Output that was not kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Missing {
    pub(super) sequence: i64,
    pub(super) stream: usize,
    pub(super) offset: i64,
    pub(super) length: i64,
}

/// What joining the tail to the head came to.
#[derive(Debug, PartialEq)]
pub(super) struct Joined {
    /// The segment that holds the gaps, if anything was dropped.
    pub(super) gaps: Option<(SegmentId, Vec<Missing>)>,
    /// Segments that have numbers now.
    pub(super) numbered: Vec<SegmentId>,
}

#[derive(Debug)]
pub(super) struct Plan {
    limits: Limits,
    head: VecDeque<Segment>,
    tail: VecDeque<Segment>,
    /// What was dropped from the tail.
    hole: [(i64, i64); STREAMS],
    /// How many bytes each stream has had.
    end: [i64; STREAMS],
    next_sequence: i64,
    next_segment: SegmentId,
    acked: i64,
}

impl Plan {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            head: VecDeque::new(),
            tail: VecDeque::new(),
            hole: [(0, 0); STREAMS],
            end: [0; STREAMS],
            next_sequence: 1,
            next_segment: 0,
            acked: 0,
        }
    }

    /// For streams that have come this far.
    pub(super) fn new_at(limits: Limits, end: [i64; STREAMS]) -> Self {
        Self {
            end,
            ..Self::new(limits)
        }
    }

    /// Goes on with segments found on disk: those of the head in order, then those of the tail.
    pub(super) fn recovered(limits: Limits, head: Vec<Segment>, tail: Vec<Segment>) -> Self {
        let mut plan = Self::new(limits);
        for segment in head.iter().chain(&tail) {
            plan.next_segment = plan.next_segment.max(segment.id + 1);
        }
        if let Some(last) = head.last() {
            plan.next_sequence = last.first + last.pieces;
            plan.end = last.end;
        }
        if let Some(first) = head.first() {
            plan.acked = first.first - 1;
        }
        if let Some(first) = tail.first() {
            for stream in 0..STREAMS {
                plan.hole[stream] = (plan.end[stream], first.begin[stream]);
            }
        }
        if let Some(last) = tail.last() {
            plan.end = last.end;
        }
        plan.head = head.into();
        plan.tail = tail.into();
        plan
    }

    /// The sequence that the next piece of the head will have.
    pub(super) fn next_sequence(&self) -> i64 {
        self.next_sequence
    }

    /// Up to where all is acknowledged.
    pub(super) fn acked(&self) -> i64 {
        self.acked
    }

    /// How many bytes each stream has had, kept or not.
    pub(super) fn end(&self) -> [i64; STREAMS] {
        self.end
    }

    /// The first sequence that is kept, and how many bytes of each stream come before it; `None` while the tail waits for
    /// its numbers.
    pub(super) fn begin(&self) -> Option<(i64, [i64; STREAMS])> {
        match self.head.front() {
            Some(first) => Some((first.first, first.begin)),
            None => (!self.has_tail()).then_some((self.next_sequence, self.end)),
        }
    }

    /// Whether pieces wait without numbers.
    pub(super) fn has_tail(&self) -> bool {
        !self.tail.is_empty() || self.hole.iter().any(|(from, to)| to > from)
    }

    /// Bytes that wait behind a sequence, about: segments count as a whole.
    pub(super) fn bytes_from(&self, sequence: i64) -> u64 {
        let head = self.head.iter().rev();
        let waiting = head.take_while(|segment| segment.first + segment.pieces > sequence);
        waiting.chain(&self.tail).map(|segment| segment.bytes).sum()
    }

    /// Whether there is a tail and nothing before it.
    pub(super) fn is_headless(&self) -> bool {
        self.head.is_empty() && self.has_tail()
    }

    /// Whether the next piece would begin a segment, so that its place is to be chosen.
    pub(super) fn turns(&self, length: u64) -> bool {
        let open = if self.has_tail() {
            self.tail.back()
        } else {
            self.head.back()
        };
        open.is_none_or(|open| !self.takes(open, length))
    }

    /// Whether an open segment takes a piece of this length.
    fn takes(&self, open: &Segment, length: u64) -> bool {
        let limit = match open.place {
            Place::Disk => self.limits.segment,
            // Acknowledged as a whole, so that small ones make room sooner.
            Place::Memory => self.limits.memory / 4,
        };
        open.bytes + length <= limit
    }

    /// Finds room for a piece. `place` counts if it begins a segment.
    pub(super) fn place(&mut self, stream: usize, size: Size, place: Place) -> Placed {
        let offset = self.end[stream];
        let (length, bytes) = (size.kept, size.length);
        let limit = |place, disk| match place {
            Place::Disk => disk,
            Place::Memory => self.limits.memory,
        };
        let held = |segments: &VecDeque<Segment>, place| -> u64 {
            let same = segments.iter().filter(|segment| segment.place == place);
            same.map(|segment| segment.bytes).sum()
        };
        let open = self.head.back().filter(|open| self.takes(open, length));
        let to = open.map_or(place, |open| open.place);
        let within =
            self.head.is_empty() || held(&self.head, to) + length <= limit(to, self.limits.head);
        let fits = within && !self.has_tail();

        let open = if fits {
            self.head.back()
        } else {
            self.tail.back()
        };
        let new = open.is_none_or(|open| !self.takes(open, length));
        let segments = if fits { &mut self.head } else { &mut self.tail };
        let sequence = if fits { self.next_sequence } else { 0 };
        if new {
            segments.push_back(Segment {
                id: self.next_segment,
                place,
                first: sequence,
                pieces: 0,
                bytes: 0,
                begin: self.end,
                end: self.end,
            });
            self.next_segment += 1;
        }
        let segment = segments
            .back_mut()
            .expect("one was there or has been added");
        segment.pieces += 1;
        segment.bytes += length;
        segment.end[stream] += bytes;
        let (id, place, begin) = (segment.id, segment.place, segment.begin);
        self.end[stream] += bytes;
        if fits {
            self.next_sequence += 1;
        }

        let mut dropped = Vec::new();
        while self.tail.len() > 1 && held(&self.tail, place) > limit(place, self.limits.tail) {
            // The oldest goes, wherever it is: what is dropped has to be in one piece.
            let Some(segment) = self.tail.pop_front() else {
                break;
            };
            for stream in 0..STREAMS {
                let (from, to) = &mut self.hole[stream];
                if *from == *to {
                    *from = segment.begin[stream];
                }
                *to = segment.end[stream];
            }
            dropped.push(segment.id);
        }
        Placed {
            segment: id,
            place,
            new,
            sequence,
            offset,
            begin,
            dropped,
        }
    }

    /// Moves the last piece, which could not be written, to a new segment in memory.
    pub(super) fn move_last_to_memory(
        &mut self,
        placed: &Placed,
        stream: usize,
        size: Size,
    ) -> SegmentId {
        let segments = if placed.sequence > 0 {
            &mut self.head
        } else {
            &mut self.tail
        };
        let (length, bytes) = (size.kept, size.length);
        let last = segments.back_mut().expect("the piece was placed in it");
        last.pieces -= 1;
        last.bytes -= length;
        last.end[stream] -= bytes;
        let begin = last.end;
        if last.pieces == 0 {
            segments.pop_back();
        }
        let id = self.next_segment;
        self.next_segment += 1;
        segments.push_back(Segment {
            id,
            place: Place::Memory,
            first: placed.sequence,
            pieces: 1,
            bytes: length,
            begin,
            end: self.end,
        });
        id
    }

    /// Numbers the tail. To be called when the reader has taken the head.
    pub(super) fn join(&mut self) -> Joined {
        let mut missing = Vec::new();
        let begin = self.head.back().map_or([0; STREAMS], |last| last.end);
        for (stream, (from, to)) in self.hole.iter_mut().enumerate() {
            if to > from {
                missing.push(Missing {
                    sequence: self.next_sequence,
                    stream,
                    offset: *from,
                    length: *to - *from,
                });
                self.next_sequence += 1;
            }
            *from = 0;
            *to = 0;
        }
        let mut gaps = None;
        if let Some(first) = missing.first().map(|missing| missing.sequence) {
            let mut segment = Segment {
                id: self.next_segment,
                place: Place::Disk,
                first,
                pieces: i64::try_from(missing.len()).expect("one for each stream at most"),
                bytes: 0,
                begin,
                end: begin,
            };
            for missing in &missing {
                segment.begin[missing.stream] = missing.offset;
                segment.end[missing.stream] = missing.offset + missing.length;
            }
            self.next_segment += 1;
            gaps = Some((segment.id, missing));
            self.head.push_back(segment);
        }
        let mut numbered = Vec::new();
        for mut segment in self.tail.drain(..) {
            segment.first = self.next_sequence;
            self.next_sequence += segment.pieces;
            numbered.push(segment.id);
            self.head.push_back(segment);
        }
        Joined { gaps, numbered }
    }

    /// All up to this sequence is safe elsewhere. Returns the segments to be thrown away.
    pub(super) fn acknowledge(&mut self, sequence: i64) -> Vec<SegmentId> {
        if sequence > SEQUENCE_MAX {
            // No task writes so much: whoever says it has it makes it up.
            return Vec::new();
        }
        if self.head.is_empty() && !self.has_tail() && sequence >= self.next_sequence {
            // Found nothing on disk, since all of it was acknowledged before the agent stopped.
            self.next_sequence = sequence + 1;
        }
        self.acked = self.acked.max(sequence.min(self.next_sequence - 1));
        let mut done = Vec::new();
        while let Some(first) = self.head.front() {
            // The open segment stays: it spares a file for each line of a slow writer, and tells a later agent
            // how far numbers and streams have come.
            let open = self.head.len() == 1 && first.place == Place::Disk;
            if open || first.first + first.pieces - 1 > self.acked {
                break;
            }
            done.push(first.id);
            self.head.pop_front();
        }
        done
    }

    /// The segment that holds a piece of the head.
    pub(super) fn find(&self, sequence: i64) -> Option<&Segment> {
        self.head
            .iter()
            .find(|segment| (segment.first..segment.first + segment.pieces).contains(&sequence))
    }

    /// Whether a piece was acknowledged and thrown away.
    pub(super) fn is_gone(&self, sequence: i64) -> bool {
        let first = self
            .head
            .front()
            .map_or(self.next_sequence, |first| first.first);
        sequence < first
    }

    /// Every segment there is.
    pub(super) fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.head.iter().chain(&self.tail)
    }
}
