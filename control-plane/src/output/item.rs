//! What output is made of: chunks, and gaps where bytes were not kept.

use bytes::Bytes;

use crate::model::Stream;

/// What a message spends on an item beside its bytes, at most.
const WIRE_BYTES: usize = 96;

/// Where something begins: how many bytes come before, of all streams and of each.
/// Bytes that were not kept count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Point {
    /// Bytes of all streams.
    pub(crate) position: i64,
    /// Bytes of each stream.
    pub(crate) offsets: [i64; 3],
}

impl Point {
    /// Bytes of all streams, or of one.
    pub(crate) fn of(self, stream: Option<Stream>) -> i64 {
        match stream {
            None => self.position,
            Some(stream) => self.offsets[stream.index()],
        }
    }

    /// The point after `length` more bytes of `stream`.
    pub(crate) fn after(mut self, stream: Stream, length: i64) -> Point {
        self.position += length;
        self.offsets[stream.index()] += length;
        self
    }
}

/// Some bytes from a host.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    /// Counts the task's chunks and gaps, from 1.
    pub(crate) sequence: i64,
    /// Where the bytes come from.
    pub(crate) stream: Stream,
    /// How many bytes of this stream come before.
    pub(crate) offset: i64,
    /// The bytes.
    pub(crate) data: Bytes,
    /// When they came, Unix milliseconds; only of what is recorded.
    pub(crate) time: Option<i64>,
}

/// Bytes that a host did not keep.
#[derive(Debug, Clone)]
pub(crate) struct Gap {
    /// Counts the task's chunks and gaps, from 1.
    pub(crate) sequence: i64,
    /// Where the bytes came from.
    pub(crate) stream: Stream,
    /// How many bytes of this stream come before.
    pub(crate) offset: i64,
    /// How many bytes are missing.
    pub(crate) length: i64,
    /// Why, in words.
    pub(crate) cause: String,
}

/// A piece of a task's output as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Reading goes on after this sequence.
    pub(crate) sequence: i64,
    /// Where the bytes come from.
    pub(crate) stream: Stream,
    /// How many bytes of this stream come before.
    pub(crate) offset: i64,
    /// How many bytes of all streams come before.
    pub(crate) position: i64,
    /// The bytes, or why there are none.
    pub(crate) content: Content,
    /// When they came, Unix milliseconds; only of what is recorded.
    pub(crate) time: Option<i64>,
}

/// What a piece of output holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// The bytes as the process wrote them.
    Data(Bytes),
    /// Bytes that were not kept.
    Missing {
        /// How many.
        length: i64,
        /// Why, in words.
        cause: String,
    },
}

impl Item {
    /// How many bytes of output it stands for, kept or not.
    pub(crate) fn length(&self) -> i64 {
        match &self.content {
            Content::Data(data) => data.len() as i64,
            Content::Missing { length, .. } => *length,
        }
    }

    /// How many bytes it carries.
    pub(crate) fn kept(&self) -> usize {
        match &self.content {
            Content::Data(data) => data.len(),
            Content::Missing { .. } => 0,
        }
    }

    /// Bytes that it takes in a message, about: many small items make a large one too.
    pub(crate) fn weight(&self) -> usize {
        WIRE_BYTES + self.kept()
    }

    /// The position at which the item ends.
    pub(crate) fn end_position(&self) -> i64 {
        self.position + self.length()
    }

    /// The part of it from byte `from` to byte `to`, both counted from its beginning.
    pub(crate) fn cut(mut self, from: i64, to: i64) -> Item {
        let to = to.clamp(0, self.length());
        let from = from.clamp(0, to);
        self.content = match self.content {
            Content::Data(data) => Content::Data(data.slice(from as usize..to as usize)),
            Content::Missing { cause, .. } => Content::Missing {
                length: to - from,
                cause,
            },
        };
        self.offset += from;
        self.position += from;
        self
    }
}
