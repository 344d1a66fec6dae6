//! Pieces: some output of a task, or that so much of it is missing.

use bytes::Bytes;
use muster_proto::v1::OutputStream;

use super::plan::{Missing, Size};

/// Some output of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) sequence: i64,
    pub(super) stream: usize,
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

impl Piece {
    /// The number of the piece's stream: standard output 0, standard error 1, the terminal 2.
    pub(crate) fn stream_index(&self) -> usize {
        self.stream
    }

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

    /// How many bytes it holds.
    pub(crate) fn kept(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Missing { .. } => 0,
        }
    }
}

impl Size {
    pub(super) fn of(content: &Content) -> Self {
        Self {
            kept: content.kept() as u64,
            length: content.length(),
        }
    }
}

pub(super) fn gap(missing: Missing) -> Piece {
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
