//! What is known about one task's output, without the bytes: what was taken, where it lies, what was
//! dropped. Pure: no clock, lock or I/O.
//!
//! Two ends move forward. `admit` takes the next chunk or gap in order of sequence, `place` says where
//! in the log it went. What is admitted and not yet placed lives in memory.

use super::item::Point;
use crate::model::{OutputSize, Stream};

/// Neighbouring frames of a task are found through one extent as long as it spans no more than this.
/// It bounds what is read to serve a small request, and how many extents a task can have: they cannot
/// outnumber the log's bytes divided by this, doubled, however tasks interleave.
pub(super) const EXTENT_BYTES_MAX: u64 = 256 << 10;

/// Where bytes lie in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Which segment.
    pub(super) segment: u32,
    /// The first byte in it.
    pub(super) start: u64,
    /// How many bytes. Between the task's own there may be other tasks' frames.
    pub(super) length: u64,
}

impl Place {
    fn end(self) -> u64 {
        self.start + self.length
    }
}

/// A run of sequences that are found at one place, or were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first sequence.
    pub(super) first: i64,
    /// The last sequence.
    pub(super) last: i64,
    /// Where the first begins.
    pub(super) from: Point,
    /// Where the last ends.
    pub(super) to: Point,
    /// Bytes of output kept in it.
    pub(super) kept: i64,
    /// Bytes of the log that are its own, headers included.
    pub(super) own: u64,
    /// Where to find it; `None` if it was dropped.
    pub(super) place: Option<Place>,
}

/// What is taken next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Counts chunks and gaps from 1.
    pub(super) sequence: i64,
    /// The stream of the entry.
    pub(super) stream: Stream,
    /// Bytes of this stream before.
    pub(super) offset: i64,
    /// Bytes it stands for.
    pub(super) length: i64,
    /// Whether these bytes are missing.
    pub(super) is_gap: bool,
}

impl Entry {
    /// Bytes it carries.
    fn kept(&self) -> i64 {
        if self.is_gap { 0 } else { self.length }
    }
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is the next one and begins here.
    Taken(Point),
    /// It was taken before.
    Duplicate,
}

/// Why an entry cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutOfOrder {
    /// Entries before it are missing.
    #[error("output sequence {got} came where {expected} was expected")]
    Sequence {
        /// The sequence that must come next.
        expected: i64,
        /// The one that came.
        got: i64,
    },
    /// It does not begin where its stream ended.
    #[error("output sequence {sequence} begins at byte {got} of its stream, which has {expected}")]
    Offset {
        /// Which entry.
        sequence: i64,
        /// Bytes that the stream has.
        expected: i64,
        /// Where the entry says that it begins.
        got: i64,
    },
    /// Its length is negative or beyond any output.
    #[error("output sequence {sequence} has an impossible length of {length} bytes")]
    Length {
        /// Which entry.
        sequence: i64,
        /// Its length.
        length: i64,
    },
}

/// More bytes than a task can ever have; what lies beyond is a fault of the sender. It keeps sums of
/// sizes far from overflow.
const OUTPUT_BYTES_MAX: i64 = 1 << 60;

/// One task's output without the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outline {
    extents: Vec<Extent>,
    /// The highest sequence taken.
    last: i64,
    /// Where the next entry begins.
    end: Point,
    /// Bytes of output kept, in the log or in memory.
    kept: i64,
    /// Bytes of the log that are this task's own and not dropped.
    own: u64,
    /// Extents dropped so far; tells whether any were since an earlier look.
    drops: u64,
}

impl Outline {
    /// As the index remembers it. Extents are in order and without holes.
    pub(super) fn remembered(mut extents: Vec<Extent>) -> Outline {
        extents.dedup_by(|later, earlier| {
            let both = later.place.is_none() && earlier.place.is_none();
            if both {
                (earlier.last, earlier.to) = (later.last, later.to);
            }
            both
        });
        let (last, end) = extents
            .last()
            .map_or((0, Point::default()), |e| (e.last, e.to));
        Outline {
            last,
            end,
            kept: extents.iter().map(|e| e.kept).sum(),
            own: extents.iter().map(|e| e.own).sum(),
            extents,
            drops: 0,
        }
    }

    /// The highest sequence taken.
    pub(super) fn last(&self) -> i64 {
        self.last
    }

    /// Where the next entry begins.
    pub(super) fn end(&self) -> Point {
        self.end
    }

    /// The highest sequence that has a place or was dropped.
    pub(super) fn placed(&self) -> i64 {
        self.extents.last().map_or(0, |e| e.last)
    }

    /// All that has a place or was dropped, in order.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Changes whenever something is dropped.
    pub(super) fn drops(&self) -> u64 {
        self.drops
    }

    /// How much there is.
    pub(super) fn size(&self) -> OutputSize {
        let [stdout, stderr, pty] = self.end.offsets;
        OutputSize {
            stdout_bytes: stdout + pty,
            stderr_bytes: stderr,
            dropped_bytes: self.end.position - self.kept,
            last_sequence: self.last,
        }
    }

    /// Takes the next chunk or gap.
    pub(super) fn admit(&mut self, entry: Entry) -> Result<Admission, OutOfOrder> {
        let Entry {
            sequence,
            stream,
            offset,
            length,
            ..
        } = entry;
        if (1..=self.last).contains(&sequence) {
            return Ok(Admission::Duplicate);
        }
        if sequence != self.last + 1 {
            return Err(OutOfOrder::Sequence {
                expected: self.last + 1,
                got: sequence,
            });
        }
        let expected = self.end.offsets[stream.index()];
        if offset != expected {
            return Err(OutOfOrder::Offset {
                sequence,
                expected,
                got: offset,
            });
        }
        if !(0..=OUTPUT_BYTES_MAX - self.end.position).contains(&length) {
            return Err(OutOfOrder::Length { sequence, length });
        }
        let begins = self.end;
        self.last = sequence;
        self.end = begins.after(stream, length);
        self.kept += entry.kept();
        Ok(Admission::Taken(begins))
    }

    /// Says where an admitted entry went. Called in order of sequence.
    pub(super) fn place(&mut self, entry: Entry, from: Point, place: Place) {
        let to = from.after(entry.stream, entry.length);
        self.own += place.length;
        if let Some(extent) = self.extents.last_mut()
            && let Some(held) = &mut extent.place
            && held.segment == place.segment
            && place.end() - held.start <= EXTENT_BYTES_MAX
        {
            held.length = place.end() - held.start;
            extent.last = entry.sequence;
            extent.to = to;
            extent.kept += entry.kept();
            extent.own += place.length;
            return;
        }
        self.extents.push(Extent {
            first: entry.sequence,
            last: entry.sequence,
            from,
            to,
            kept: entry.kept(),
            own: place.length,
            place: Some(place),
        });
    }

    /// Drops the middle if more than `limit` bytes of the log are this task's: keeps the first half of the
    /// limit and the newest that fit. Drops a little more than it must, so that it has to less often.
    /// Returns what was dropped.
    pub(super) fn trim(&mut self, limit: u64) -> Vec<Extent> {
        if self.own <= limit {
            return Vec::new();
        }
        let mut head = 0;
        let mut begin = 0;
        while begin < self.extents.len() && head + self.extents[begin].own <= limit / 2 {
            head += self.extents[begin].own;
            begin += 1;
        }
        let target = limit - limit / 16;
        let mut left = self.own;
        let mut end = begin;
        // The newest extent stays: it may still grow, and a reader at the end wants it.
        while end + 1 < self.extents.len() && left > target {
            left -= self.extents[end].own;
            end += 1;
        }
        self.drop_range(begin, end)
    }

    /// Drops what lies in a segment. Returns what was dropped.
    pub(super) fn drop_segment(&mut self, segment: u32) -> Vec<Extent> {
        let mut dropped = Vec::new();
        while let Some(begin) = self
            .extents
            .iter()
            .position(|e| e.place.is_some_and(|p| p.segment == segment))
        {
            let end = begin
                + self.extents[begin..]
                    .iter()
                    .take_while(|e| e.place.is_some_and(|p| p.segment == segment))
                    .count();
            dropped.extend(self.drop_range(begin, end));
        }
        dropped
    }

    /// Replaces extents by one without a place, and merges that with its neighbours of the same kind.
    fn drop_range(&mut self, begin: usize, end: usize) -> Vec<Extent> {
        if begin >= end {
            return Vec::new();
        }
        let dropped: Vec<Extent> = self.extents[begin..end]
            .iter()
            .filter(|e| e.place.is_some())
            .copied()
            .collect();
        self.kept -= dropped.iter().map(|e| e.kept).sum::<i64>();
        self.own -= dropped.iter().map(|e| e.own).sum::<u64>();
        self.drops += 1;

        let gone = |e: &Extent| e.place.is_none();
        let begin = begin - usize::from(begin > 0 && gone(&self.extents[begin - 1]));
        let end = end + usize::from(self.extents.get(end).is_some_and(gone));
        let (first, last) = (self.extents[begin], self.extents[end - 1]);
        self.extents.splice(
            begin..end,
            [Extent {
                first: first.first,
                last: last.last,
                from: first.from,
                to: last.to,
                kept: 0,
                own: 0,
                place: None,
            }],
        );
        dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(outline: &Outline, stream: Stream, length: i64, gap: bool) -> Entry {
        Entry {
            sequence: outline.last() + 1,
            stream,
            offset: outline.end().offsets[stream.index()],
            length,
            is_gap: gap,
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append {
            stream: usize,
            length: i64,
            gap: bool,
            foreign: u64,
        },
        Trim(u64),
        DropSegment(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..3usize, 0..200_000i64, prop::bool::weighted(0.1), 0..100_000u64).prop_map(
                |(stream, length, gap, foreign)| Step::Append { stream, length, gap, foreign }
            ),
            1 => (1..2_000_000u64).prop_map(Step::Trim),
            1 => (0..4u32).prop_map(Step::DropSegment),
        ]
    }

    proptest! {
        #[test]
        fn every_byte_is_kept_in_one_place_or_counted_as_dropped(steps in prop::collection::vec(step(), 1..80)) {
            let mut outline = Outline::default();
            let (mut segment, mut at) = (0, 0);
            for step in steps {
                match step {
                    Step::Append { stream, length, gap, foreign } => {
                        let entry = entry(&outline, Stream::ALL[stream], length, gap);
                        let Admission::Taken(from) = outline.admit(entry).unwrap() else {
                            panic!("a new entry is no duplicate");
                        };
                        prop_assert_eq!(outline.admit(entry).unwrap(), Admission::Duplicate);
                        let bytes = 64 + entry.kept() as u64;
                        at += foreign;
                        if at + bytes > 1 << 20 {
                            segment += 1;
                            at = 0;
                        }
                        outline.place(entry, from, Place { segment, start: at, length: bytes });
                        at += bytes;
                    }
                    Step::Trim(limit) => {
                        let newest = outline.extents().last().copied();
                        let dropped = outline.trim(limit);
                        prop_assert!(dropped.iter().all(|e| Some(*e) != newest));
                        let head: u64 = outline.extents().iter().take_while(|e| e.place.is_some()).map(|e| e.own).sum();
                        if !dropped.is_empty() && head > 0 {
                            prop_assert!(head <= limit / 2);
                        }
                    }
                    Step::DropSegment(gone) => {
                        outline.drop_segment(gone);
                        prop_assert!(outline.extents().iter().all(|e| e.place.is_none_or(|p| p.segment != gone)));
                    }
                }
                // Without holes or overlaps, in sequences and in bytes.
                let (mut sequence, mut point) = (1, Point::default());
                for (index, extent) in outline.extents().iter().enumerate() {
                    prop_assert_eq!(extent.first, sequence);
                    prop_assert!(extent.last >= extent.first);
                    prop_assert_eq!(extent.from, point);
                    if let Some(place) = extent.place {
                        prop_assert!(place.length <= EXTENT_BYTES_MAX.max(200_064));
                        prop_assert!(place.length >= extent.own);
                    } else {
                        prop_assert_eq!(extent.kept, 0);
                        prop_assert!(index == 0 || outline.extents()[index - 1].place.is_some());
                    }
                    sequence = extent.last + 1;
                    point = extent.to;
                }
                prop_assert_eq!(sequence, outline.last() + 1);
                prop_assert_eq!(point, outline.end());
                let size = outline.size();
                let kept: i64 = outline.extents().iter().map(|e| e.kept).sum();
                prop_assert_eq!(size.stdout_bytes + size.stderr_bytes - size.dropped_bytes, kept);
                // The index brings back the same.
                let mut again = Outline::remembered(outline.extents().to_vec());
                again.drops = outline.drops;
                prop_assert_eq!(&again, &outline);
            }
        }
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let mut outline = Outline::default();
        let next = entry(&outline, Stream::Stdout, 10, false);
        let hole = Entry {
            sequence: 2,
            ..next
        };
        assert_eq!(
            outline.admit(hole),
            Err(OutOfOrder::Sequence {
                expected: 1,
                got: 2
            })
        );
        assert!(outline.admit(Entry { offset: 3, ..next }).is_err());
        assert!(outline.admit(Entry { length: -1, ..next }).is_err());
        let absurd = Entry {
            length: i64::MAX,
            ..next
        };
        assert!(outline.admit(absurd).is_err());
        assert!(outline.admit(next).is_ok());
        assert_eq!(outline.size().stdout_bytes, 10);
    }
}
