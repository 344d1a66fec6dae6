//! What a start finds in the log beyond the index: reads it again, and cuts off what a crash left torn.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
};

use bytes::Bytes;
use muster_proto::ids::TaskId;

use super::{
    OutputError,
    frame::{HEADER_BYTES, Header, task_id},
    item::{Content, Point},
    log::LogEnd,
    outline::{Admission, Entry, Outline, Place},
    segments::Segments,
};

/// A whole frame that the index may not know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    task_id: TaskId,
    entry: Entry,
    from: Point,
    place: Place,
}

impl Found {
    fn new(header: &Header, content: &Content, segment: u32, start: u64) -> Option<Found> {
        let (length, is_gap) = match content {
            Content::Data(data) => (data.len() as i64, false),
            Content::Missing { length, .. } => (*length, true),
        };
        Some(Found {
            task_id: task_id(&header.task)?,
            entry: Entry {
                sequence: header.sequence,
                stream: header.stream,
                offset: header.from.offsets[header.stream.index()],
                length,
                is_gap,
            },
            from: header.from,
            place: Place {
                segment,
                start,
                length: header.frame_bytes() as u64,
            },
        })
    }
}

/// What lies in the log after an end of it.
pub(super) struct Tail {
    /// The frames, in order.
    pub(super) frames: Vec<Found>,
    /// Where the log ends.
    pub(super) end: LogEnd,
}

/// Reads the log after `from`, or all of it if the index is new. Cuts every segment off at its first byte
/// that is no whole frame: nothing after it was ever called durable.
pub(super) fn read_tail(segments: &Segments, from: Option<LogEnd>) -> Result<Tail, OutputError> {
    // A log that was indexed before may have payloads whose space was given back: these are passed over.
    // After a checkpoint there are none yet.
    let damaged = if from.is_some() {
        Damaged::Torn
    } else {
        Damaged::Dropped
    };
    let from = from.unwrap_or((0, 0));
    let mut tail = Tail {
        frames: Vec::new(),
        end: from,
    };
    for segment in segments.list()? {
        let number = segment.number;
        if number < from.0 {
            continue;
        }
        let start = if number == from.0 { from.1 } else { 0 };
        let Some(file) = segments.read(number)? else {
            continue;
        };
        let frames = &mut tail.frames;
        let end = walk(&file, start, damaged, |header, start, content| {
            frames.extend(Found::new(header, content, number, start));
        })
        .map_err(segments.error(number))?;
        segments.cut(number, end)?;
        tail.end = (number, end);
    }
    Ok(tail)
}

/// What a frame is whose payload does not fit its checksum.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Damaged {
    Torn,
    Dropped,
}

/// Calls `found` for every whole frame after `start`, with where it is. Returns where they end.
fn walk(
    mut file: &File,
    start: u64,
    damaged: Damaged,
    mut found: impl FnMut(&Header, u64, &Content),
) -> io::Result<u64> {
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut at = start;
    loop {
        let mut bytes = [0; HEADER_BYTES];
        if !read_whole(&mut reader, &mut bytes)? {
            return Ok(at);
        }
        let Some(header) = Header::decode(&bytes) else {
            return Ok(at);
        };
        let mut payload = vec![0; header.payload_bytes];
        if !read_whole(&mut reader, &mut payload)? {
            return Ok(at);
        }
        match header.item(Bytes::from(payload)) {
            Some(item) => found(&header, at, &item.content),
            None if damaged == Damaged::Torn => return Ok(at),
            None => {}
        }
        at += header.frame_bytes() as u64;
    }
}

fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

/// Adds the frames to what the index knows of their tasks. A frame that does not follow is left out: it
/// stands after a hole that a power cut made, and its host still has it.
pub(super) fn replay(outlines: &mut HashMap<TaskId, Outline>, frames: &[Found]) {
    for found in frames {
        let outline = outlines.entry(found.task_id).or_default();
        if outline.end() == found.from
            && let Ok(Admission::Taken(from)) = outline.admit(found.entry)
        {
            outline.place(found.entry, from, found.place);
        }
    }
}

/// The tasks of the frames, each once.
pub(super) fn tasks(frames: &[Found]) -> Vec<TaskId> {
    let mut ids: Vec<TaskId> = frames.iter().map(|found| found.task_id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
