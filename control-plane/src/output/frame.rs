//! A chunk or gap as it lies in a segment: a header of 72 bytes, then the payload.
//!
//! ```text
//!  0  4  magic "MOF1"
//!  4  4  CRC-32 of bytes 8 to 72
//!  8  1  kind: 1 chunk, 2 gap, 3 chunk with its time
//!  9  1  stream: 0 stdout, 1 stderr, 2 terminal
//! 10  2  zero
//! 12  4  length of the payload
//! 16  4  CRC-32 of the payload
//! 20 20  task: the characters of its id after "t-"
//! 40  8  sequence
//! 48 24  bytes of stdout, stderr and terminal that come before
//! ```
//!
//! Numbers are little-endian. The payload is the bytes of a chunk, with its time before them (8, Unix
//! milliseconds) where it has one; for a gap the number of missing bytes (8) and the cause in UTF-8. The header has a checksum of its own, so that a walk can pass over a
//! payload that was dropped to free its space.

use crate::model::Stream;
use bytes::{BufMut, Bytes, BytesMut};
use muster_proto::ids::TaskId;

use super::{
    item::{Content, Item, Point},
    outline::Entry,
};

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 72;

/// More than any payload has: a chunk is at most 256 KiB on the wire, and no message exceeds 4 MiB.
pub(super) const PAYLOAD_BYTES_MAX: usize = 4 << 20;

const MAGIC: &[u8; 4] = b"MOF1";
const CHUNK: u8 = 1;
const GAP: u8 = 2;
const TIMED_CHUNK: u8 = 3;

/// Bytes of a number before a payload's own.
const NUMBER_BYTES: usize = 8;

/// A task as headers name it.
pub(super) type TaskKey = [u8; 20];

/// The key of a task.
pub(super) fn key(id: TaskId) -> TaskKey {
    let text = id.to_string();
    text.as_bytes()[2..]
        .try_into()
        .expect("an id has 20 characters after its prefix")
}

/// The task of a key.
pub(super) fn task_id(key: &TaskKey) -> Option<TaskId> {
    format!("t-{}", std::str::from_utf8(key).ok()?).parse().ok()
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    kind: u8,
    /// Where the bytes come from.
    pub(super) stream: Stream,
    /// Bytes of the payload, which follows.
    pub(super) payload_bytes: usize,
    payload_crc: u32,
    /// The task that wrote the bytes.
    pub(super) task: TaskKey,
    /// Counts the task's chunks and gaps, from 1.
    pub(super) sequence: i64,
    /// The point where the frame begins.
    pub(super) from: Point,
}

/// The bytes that follow a header: of a chunk its own, without a copy unless it has a time.
pub(super) fn payload(item: &Item) -> Bytes {
    let (number, bytes) = match (&item.content, item.time) {
        (Content::Data(data), None) => return data.clone(),
        (Content::Data(data), Some(time)) => (time, data.as_ref()),
        (Content::Missing { length, cause }, _) => (*length, cause.as_bytes()),
    };
    let mut payload = BytesMut::with_capacity(NUMBER_BYTES + bytes.len());
    payload.put_i64_le(number);
    payload.put_slice(bytes);
    payload.freeze()
}

/// How many they are.
pub(super) fn payload_bytes(item: &Item) -> usize {
    match (&item.content, item.time) {
        (Content::Data(data), None) => data.len(),
        (Content::Data(data), Some(_)) => NUMBER_BYTES + data.len(),
        (Content::Missing { cause, .. }, _) => NUMBER_BYTES + cause.len(),
    }
}

impl Header {
    /// The header of a chunk or gap.
    pub(super) fn new(
        entry: &Entry,
        timed: bool,
        task: TaskKey,
        from: Point,
        payload: &[u8],
    ) -> Header {
        Header {
            kind: match (entry.is_gap, timed) {
                (true, _) => GAP,
                (false, true) => TIMED_CHUNK,
                (false, false) => CHUNK,
            },
            stream: entry.stream,
            payload_bytes: payload.len(),
            payload_crc: crc32fast::hash(payload),
            task,
            sequence: entry.sequence,
            from,
        }
    }

    /// As it is written.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[8..];
        out.put_u8(self.kind);
        out.put_u8(self.stream.index() as u8);
        out.put_u16_le(0);
        out.put_u32_le(self.payload_bytes as u32);
        out.put_u32_le(self.payload_crc);
        out.put_slice(&self.task);
        out.put_i64_le(self.sequence);
        for offset in self.from.offsets {
            out.put_i64_le(offset);
        }
        let crc = crc32fast::hash(&bytes[8..]);
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` if these bytes are none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| {
            let low = u64::from(number(at));
            (low | u64::from(number(at + 4)) << 32) as i64
        };
        if &bytes[..4] != MAGIC || number(4) != crc32fast::hash(&bytes[8..]) {
            return None;
        }
        let payload_bytes = number(12) as usize;
        if !matches!(bytes[8], CHUNK | GAP | TIMED_CHUNK) || payload_bytes > PAYLOAD_BYTES_MAX {
            return None;
        }
        let offsets = [long(48), long(56), long(64)];
        Some(Header {
            kind: bytes[8],
            stream: Stream::at(usize::from(bytes[9]))?,
            payload_bytes,
            payload_crc: number(16),
            task: bytes[20..40].try_into().ok()?,
            sequence: long(40),
            from: Point {
                position: offsets.iter().sum(),
                offsets,
            },
        })
    }

    /// Bytes of header and payload.
    pub(super) fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes
    }

    /// The item, without a copy; `None` if the payload is damaged or was dropped.
    pub(super) fn item(&self, payload: Bytes) -> Option<Item> {
        if payload.len() != self.payload_bytes || crc32fast::hash(&payload) != self.payload_crc {
            return None;
        }
        let (content, time) = if self.kind == CHUNK {
            (Content::Data(payload), None)
        } else {
            let (number, rest) = payload.split_first_chunk::<NUMBER_BYTES>()?;
            let number = i64::from_le_bytes(*number);
            match self.kind {
                TIMED_CHUNK => (Content::Data(payload.slice(NUMBER_BYTES..)), Some(number)),
                _ => {
                    let cause = String::from_utf8_lossy(rest).into_owned();
                    let length = number;
                    (Content::Missing { length, cause }, None)
                }
            }
        };
        Some(Item {
            sequence: self.sequence,
            stream: self.stream,
            offset: self.from.offsets[self.stream.index()],
            position: self.from.position,
            content,
            time,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(content: &Content, time: Option<i64>) -> (Header, Bytes) {
        let item = Item {
            sequence: 9,
            stream: Stream::Stderr,
            offset: 20,
            position: 60,
            content: content.clone(),
            time,
        };
        let payload = payload(&item);
        assert_eq!(payload.len(), payload_bytes(&item));
        let id = TaskId::from_bytes(&[7; 32]);
        let from = Point {
            position: 60,
            offsets: [10, 20, 30],
        };
        let entry = Entry {
            sequence: 9,
            stream: Stream::Stderr,
            offset: 20,
            length: 10,
            is_gap: matches!(content, Content::Missing { .. }),
        };
        let header = Header::new(&entry, time.is_some(), key(id), from, &payload);
        (header, payload)
    }

    #[test]
    fn a_frame_reads_back_as_written() {
        let bytes = || Content::Data(Bytes::from_static(b"some bytes"));
        let missing = Content::Missing {
            length: 1 << 40,
            cause: "spool full".to_owned(),
        };
        for (content, time) in [(bytes(), None), (bytes(), Some(1)), (missing, None)] {
            let (header, payload) = example(&content, time);
            let again = Header::decode(&header.encode()).unwrap();
            assert_eq!(again, header);
            let item = again.item(payload).unwrap();
            assert_eq!((item.sequence, item.offset, item.position), (9, 20, 60));
            assert_eq!((&item.content, item.time), (&content, time));
            assert_eq!(task_id(&again.task), Some(TaskId::from_bytes(&[7; 32])));
        }
    }

    #[test]
    fn damage_anywhere_is_noticed() {
        let (header, payload) = example(&Content::Data(Bytes::from_static(b"some bytes")), None);
        let bytes = header.encode();
        for at in 0..HEADER_BYTES {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert_eq!(Header::decode(&damaged), None, "byte {at}");
        }
        assert!(header.item(payload.slice(1..)).is_none());
        assert!(header.item(Bytes::from_static(b"some byteZ")).is_none());
    }
}
