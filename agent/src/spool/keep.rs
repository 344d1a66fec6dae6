//! How much of a task's output is kept, and what of it where there is more.

use super::{SEGMENT, plan::Limits};

/// Kept in memory, for each of head and tail, when the disk has no room, bytes.
const MEMORY: u64 = 1 << 20;

/// How much of a task's output is kept on disk until the control plane has it, and what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Bytes in all.
    pub(crate) bytes: u64,
    /// The newest matters; of the beginning a segment is enough. Otherwise each has a half.
    pub(crate) newest: bool,
}

impl From<u64> for Keep {
    fn from(bytes: u64) -> Self {
        Self {
            bytes,
            newest: false,
        }
    }
}

impl Keep {
    pub(super) fn limits(self) -> Limits {
        let segment = SEGMENT.min(self.bytes / 8).max(1);
        let head = match self.newest {
            true => segment,
            false => self.bytes / 2,
        };
        Limits {
            head,
            tail: self.bytes - head.min(self.bytes),
            memory: MEMORY,
            segment,
        }
    }
}
