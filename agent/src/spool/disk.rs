//! The files of a spool: one for each segment, "TASK-ID.SEGMENT", a head and then frames.

use std::{
    fs::{self, OpenOptions},
    io::{self, IoSlice, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use muster_proto::ids::TaskId;
use nix::sys::statvfs::statvfs;

use super::{
    Content, Piece,
    plan::{Place, STREAMS, Segment, SegmentId},
};

/// Says what the file is and how it is written. The sequence of its first piece follows, 0 if it has
/// none yet, and where each stream stood; all numbers are little endian.
const MAGIC: &[u8; 8] = b"mstspl01";
const FILE_HEAD: usize = 16 + 8 * STREAMS;

/// Length of what follows, checksum of the rest, offset in the stream, stream, kind.
const FRAME_HEAD: usize = 18;

const KIND_DATA: u8 = 0;
const KIND_MISSING: u8 = 1;

/// Who may use a file: its owner alone.
const MODE: u32 = 0o600;

/// The same of a file whose numbers a control plane may know otherwise. That is noted where it takes no space, which
/// there may be none of.
const MODE_UNSURE: u32 = 0o700;

/// A piece is at most this long.
const PAYLOAD_MAX: usize = 1 << 20;

/// What the spools of an agent may take together.
#[derive(Debug)]
pub(crate) struct Room {
    directory: PathBuf,
    limit: u64,
    /// Percent of the disk that stay free.
    free_percent: u64,
    used: AtomicU64,
    /// What others use too, and how much all may.
    shared: Option<(Vec<PathBuf>, u64)>,
}

impl Room {
    pub(crate) fn new(directory: PathBuf, limit: u64, free_percent: u64) -> Self {
        Self {
            directory,
            limit,
            free_percent,
            used: AtomicU64::new(0),
            shared: None,
        }
    }

    /// The same, where others who write to these directories may take so much together with us. It holds but for a
    /// segment that each of them may have begun at once.
    pub(crate) fn shared(self, directories: Vec<PathBuf>, limit: u64) -> Self {
        Self {
            shared: Some((directories, limit)),
            ..self
        }
    }

    /// Has no room from now on, or has it again.
    #[cfg(test)]
    pub(super) fn fill(&self, is_full: bool) {
        const MORE_THAN_ANY: u64 = 1 << 50;
        match is_full {
            true => self.used.fetch_add(MORE_THAN_ANY, Ordering::Relaxed),
            false => self.used.fetch_sub(MORE_THAN_ANY, Ordering::Relaxed),
        };
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the next segment of this size belongs.
    pub(super) fn choose(&self, segment: u64) -> Place {
        let shared = self.shared.as_ref();
        let within = self.used.load(Ordering::Relaxed) + segment <= self.limit
            && shared.is_none_or(|(all, limit)| sizes(all) + segment <= *limit);
        let free = statvfs(&self.directory).is_ok_and(|disk| {
            let percent = u128::from(disk.blocks_available()) * 100;
            percent > u128::from(disk.blocks()) * u128::from(self.free_percent)
        });
        if within && free {
            Place::Disk
        } else {
            Place::Memory
        }
    }
}

/// Bytes of the files in these directories.
fn sizes(directories: &[PathBuf]) -> u64 {
    let entries = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum()
}

/// A segment's file. Its space is counted until it is dropped, and the file goes with the last holder.
#[derive(Debug)]
pub(super) struct SegmentFile {
    file: fs::File,
    path: PathBuf,
    size: AtomicU64,
    room: Arc<Room>,
    /// Stays on disk when dropped: the agent stops, the task is not settled.
    keep: AtomicBool,
}

impl SegmentFile {
    pub(super) fn create(
        room: &Arc<Room>,
        task_id: TaskId,
        id: SegmentId,
        first: i64,
        begin: [i64; STREAMS],
        unsure: bool,
    ) -> io::Result<Self> {
        let path = room.directory.join(format!("{task_id}.{id}"));
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(if unsure { MODE_UNSURE } else { MODE })
            .open(&path)?;
        let mut head = [0; FILE_HEAD];
        head[..8].copy_from_slice(MAGIC);
        for (number, place) in [first].iter().chain(&begin).zip(head[8..].chunks_mut(8)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let segment = Self {
            file,
            path,
            size: AtomicU64::new(0),
            room: Arc::clone(room),
            keep: AtomicBool::new(true),
        };
        segment.write(&[IoSlice::new(&head)])?;
        Ok(segment)
    }

    /// Appends a piece with one write. One writer at a time.
    pub(super) fn append(&self, stream: usize, offset: i64, content: &Content) -> io::Result<()> {
        let (kind, payload) = match content {
            Content::Data(data) => (KIND_DATA, data.clone()),
            Content::Missing { length, cause } => {
                let mut payload = BytesMut::with_capacity(8 + cause.len());
                payload.put_i64_le(*length);
                payload.put_slice(cause.as_bytes());
                (KIND_MISSING, payload.freeze())
            }
        };
        let mut head = [0; FRAME_HEAD];
        head[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[8..16].copy_from_slice(&offset.to_le_bytes());
        head[16] = stream as u8;
        head[17] = kind;
        let sum = checksum(&head, &payload);
        head[4..8].copy_from_slice(&sum.to_le_bytes());
        self.write(&[IoSlice::new(&head), IoSlice::new(&payload)])
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let size = self.size.load(Ordering::Relaxed);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let written = loop {
            match (&self.file).write_vectored(parts) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match written {
            Ok(written) if written == length => {
                self.size.store(size + length as u64, Ordering::Relaxed);
                self.room.used.fetch_add(length as u64, Ordering::Relaxed);
                Ok(())
            }
            other => {
                // A part may stand there, and no later frame may follow it.
                self.file.set_len(size)?;
                (&self.file).seek(SeekFrom::Start(size))?;
                Err(other
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::StorageFull.into()))
            }
        }
    }

    /// Notes the sequence of the first piece.
    pub(super) fn number(&self, first: i64) -> io::Result<()> {
        self.file.write_all_at(&first.to_le_bytes(), 8)
    }

    /// Reads pieces from a place in the file on, up to about `max_bytes` and at least one; returns them
    /// and where they end.
    pub(super) fn read(
        &self,
        mut at: u64,
        mut sequence: i64,
        pieces: i64,
        max_bytes: usize,
    ) -> io::Result<(Vec<Piece>, u64)> {
        at = at.max(FILE_HEAD as u64);
        let (mut found, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes && (found.len() as i64) < pieces {
            let (stream, offset, content, next) = self.frame(at)?;
            bytes += content.kept();
            at = next;
            found.push(Piece {
                sequence,
                stream,
                offset,
                content,
            });
            sequence += 1;
        }
        Ok((found, at))
    }

    fn frame(&self, at: u64) -> io::Result<(usize, i64, Content, u64)> {
        let damaged =
            || io::Error::other(format!("{} is damaged at byte {at}", self.path.display()));
        let mut head = [0; FRAME_HEAD];
        self.file.read_exact_at(&mut head, at)?;
        let length = u32::from_le_bytes(head[..4].try_into().expect("4 bytes")) as usize;
        let sum = u32::from_le_bytes(head[4..8].try_into().expect("4 bytes"));
        let offset = i64::from_le_bytes(head[8..16].try_into().expect("8 bytes"));
        let (stream, kind) = (usize::from(head[16]), head[17]);
        if length > PAYLOAD_MAX || stream >= STREAMS {
            return Err(damaged());
        }
        let mut payload = vec![0; length];
        self.file
            .read_exact_at(&mut payload, at + FRAME_HEAD as u64)?;
        if checksum(&head, &payload) != sum {
            return Err(damaged());
        }
        let mut payload = Bytes::from(payload);
        let content = match kind {
            KIND_DATA => Content::Data(payload),
            KIND_MISSING if length >= 8 => Content::Missing {
                length: payload.get_i64_le(),
                cause: String::from_utf8_lossy(&payload).into_owned(),
            },
            _ => return Err(damaged()),
        };
        Ok((stream, offset, content, at + (FRAME_HEAD + length) as u64))
    }

    /// Notes for a later agent whether a control plane may know the numbers of this file otherwise.
    pub(super) fn set_unsure(&self, unsure: bool) -> io::Result<()> {
        let mode = if unsure { MODE_UNSURE } else { MODE };
        self.file.set_permissions(fs::Permissions::from_mode(mode))
    }

    /// Whether an earlier agent has noted that.
    pub(super) fn is_unsure(&self) -> bool {
        let found = self.file.metadata();
        found.is_ok_and(|found| found.permissions().mode() & 0o777 == MODE_UNSURE)
    }

    /// Lets go of the file.
    pub(super) fn throw_away(&self) {
        self.keep.store(false, Ordering::Relaxed);
    }

    /// Opens what an earlier agent left of a segment. What is torn at its end is cut off.
    pub(super) fn recover(
        room: &Arc<Room>,
        path: PathBuf,
        id: SegmentId,
    ) -> io::Result<(Self, Segment)> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut head = [0; FILE_HEAD];
        file.read_exact_at(&mut head, 0)?;
        if &head[..8] != MAGIC {
            return Err(io::Error::other(format!(
                "{} is no spool file",
                path.display()
            )));
        }
        let length = file.metadata()?.len();
        let segment_file = Self {
            file,
            path,
            size: AtomicU64::new(0),
            room: Arc::clone(room),
            keep: AtomicBool::new(true),
        };
        let mut numbers = head[8..]
            .chunks(8)
            .map(|number| i64::from_le_bytes(number.try_into().expect("8 bytes")));
        let first = numbers.next().unwrap_or(0);
        let mut begin = [0; STREAMS];
        for (stand, number) in begin.iter_mut().zip(numbers) {
            *stand = number;
        }
        let mut segment = Segment {
            id,
            place: Place::Disk,
            first,
            pieces: 0,
            bytes: 0,
            begin,
            end: begin,
        };
        let mut at = FILE_HEAD as u64;
        while let Ok((stream, offset, content, next)) = segment_file.frame(at) {
            segment.pieces += 1;
            segment.bytes += content.kept() as u64;
            segment.end[stream] = offset + content.length();
            at = next;
        }
        if at < length {
            segment_file.file.set_len(at)?;
        }
        // More may be appended.
        (&segment_file.file).seek(SeekFrom::Start(at))?;
        segment_file.size.store(at, Ordering::Relaxed);
        room.used.fetch_add(at, Ordering::Relaxed);
        Ok((segment_file, segment))
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed) {
            let size = self.size.load(Ordering::Relaxed);
            self.room.used.fetch_sub(size, Ordering::Relaxed);
            if let Err(error) = fs::remove_file(&self.path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "could not remove {}: {error}", self.path.display());
            }
        }
    }
}

fn checksum(head: &[u8; FRAME_HEAD], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..4]);
    hasher.update(&head[8..]);
    hasher.update(payload);
    hasher.finalize()
}

/// The segment files of a task that an earlier agent left, by segment.
pub(super) fn left_behind(
    directory: &Path,
    task_id: TaskId,
) -> io::Result<Vec<(SegmentId, PathBuf)>> {
    let prefix = format!("{task_id}.");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let id = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(&prefix)?.parse().ok());
        if let Some(id) = id {
            found.push((id, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}
