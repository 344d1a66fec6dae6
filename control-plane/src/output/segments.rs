//! The segment files: where they are, reading from them, giving their space back.

use crate::model::Stream;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    OutputError,
    frame::{HEADER_BYTES, Header, TaskKey},
    item::{Content, Item},
    log::LogEnd,
    outline::{Extent, Place},
};

const DROPPED: &str = "dropped by the control plane to stay within its limits";
const DAMAGED: &str = "damaged on the control plane's disk";

/// How many work on the files at once. More would not make a disk faster; but each is a thread, and what a thread has
/// read stays with it for a while after others have let go of it: with a thread for each of 64 readers that was a GiB.
const AT_ONCE: usize = 8;

/// The directory of the segments.
#[derive(Debug, Clone)]
pub(super) struct Segments {
    directory: PathBuf,
    turns: Arc<Semaphore>,
}

/// One segment file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Its number; later ones are newer.
    pub(super) number: u32,
    /// Bytes that it takes on the disk; less than its length where holes were made.
    pub(super) disk_bytes: u64,
    /// When it was last written to.
    pub(super) written: SystemTime,
}

impl Segments {
    /// Segments in a directory that exists.
    pub(super) fn new(directory: &Path) -> Segments {
        Segments {
            directory: directory.to_owned(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Waits until fewer than may work on the files do.
    pub(super) async fn turn(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.expect("the semaphore is never closed")
    }

    /// Where a segment is.
    pub(super) fn path(&self, segment: u32) -> PathBuf {
        self.directory.join(format!("{segment:08x}.segment"))
    }

    /// What went wrong with a segment.
    pub(super) fn error(&self, segment: u32) -> impl FnOnce(io::Error) -> OutputError {
        let path = self.path(segment);
        move |source| OutputError::File { path, source }
    }

    /// All segments, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Segment>, OutputError> {
        let error = |source| OutputError::File {
            path: self.directory.clone(),
            source,
        };
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            let Some(number) = name
                .to_str()
                .and_then(|name| name.strip_suffix(".segment"))
                .and_then(|number| u32::from_str_radix(number, 16).ok())
            else {
                continue;
            };
            let metadata = entry.metadata().map_err(error)?;
            segments.push(Segment {
                number,
                disk_bytes: metadata.blocks() * 512,
                written: metadata.modified().map_err(error)?,
            });
        }
        segments.sort_by_key(|segment| segment.number);
        Ok(segments)
    }

    /// Makes a segment and makes its name durable.
    pub(super) fn create(&self, segment: u32) -> io::Result<File> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.path(segment))?;
        // An earlier attempt may have left something.
        file.set_len(0)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }

    /// Opens a segment to read; `None` if it was dropped.
    pub(super) fn read(&self, segment: u32) -> Result<Option<File>, OutputError> {
        match File::open(self.path(segment)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(segment)(error)),
        }
    }

    /// Cuts off what a segment has beyond a length, and makes what it has durable.
    pub(super) fn cut(&self, segment: u32, length: u64) -> Result<(), OutputError> {
        OpenOptions::new()
            .write(true)
            .open(self.path(segment))
            .and_then(|file| {
                if file.metadata()?.len() > length {
                    file.set_len(length)?;
                }
                file.sync_all()
            })
            .map_err(self.error(segment))
    }

    /// Opens the segment to write to after `end`: the one that ends there, or else a new one.
    pub(super) fn open_end(&self, end: LogEnd) -> Result<(File, LogEnd), OutputError> {
        let (segment, length) = end;
        match OpenOptions::new().append(true).open(self.path(segment)) {
            Ok(file) if file.metadata().is_ok_and(|m| m.len() == length) => Ok((file, end)),
            _ => {
                let next = segment + 1;
                let file = self.create(next).map_err(self.error(next))?;
                Ok((file, (next, 0)))
            }
        }
    }

    /// Drops a segment; it may be gone already.
    pub(super) fn remove(&self, segment: u32) -> Result<(), OutputError> {
        match fs::remove_file(self.path(segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.error(segment)(error))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of the disk that are free.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.directory)?;
        Ok(stat.blocks_available() as u64 * stat.fragment_size())
    }

    /// Gives the space of a task's payloads within a place back. Headers stay, so that the walk over other
    /// tasks' frames finds its way.
    pub(super) fn punch(&self, place: Place, task: &TaskKey) -> Result<(), OutputError> {
        let file = match OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(place.segment))
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(self.error(place.segment))?,
        };
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let mut at = place.start;
        while at < place.start + place.length {
            let mut bytes = [0; HEADER_BYTES];
            file.read_exact_at(&mut bytes, at)
                .map_err(self.error(place.segment))?;
            let Some(header) = Header::decode(&bytes) else {
                break;
            };
            if header.task == *task && header.payload_bytes > 0 {
                let from = at + HEADER_BYTES as u64;
                fallocate(&file, mode, from as i64, header.payload_bytes as i64)
                    .map_err(|errno| self.error(place.segment)(errno.into()))?;
            }
            at += header.frame_bytes() as u64;
        }
        Ok(())
    }

    /// The items of an extent, as slices of what was read. What cannot be read any more becomes a gap.
    pub(super) fn items(&self, extent: &Extent, task: &TaskKey) -> Result<Vec<Item>, OutputError> {
        let Some(place) = extent.place else {
            return Ok(missing(extent, DROPPED));
        };
        let Some(file) = self.read(place.segment)? else {
            return Ok(missing(extent, DROPPED));
        };
        let mut buffer = vec![0; place.length as usize];
        match file.read_exact_at(&mut buffer, place.start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(missing(extent, DAMAGED));
            }
            read => read.map_err(self.error(place.segment))?,
        }
        let buffer = Bytes::from(buffer);
        let mut items = Vec::new();
        let mut at = 0;
        while let Some(header) = Header::decode(&buffer[at..]) {
            let end = at + header.frame_bytes();
            if end > buffer.len() {
                break;
            }
            if header.task == *task && (extent.first..=extent.last).contains(&header.sequence) {
                match header.item(buffer.slice(at + HEADER_BYTES..end)) {
                    Some(item) => items.push(item),
                    None => return Ok(missing(extent, DAMAGED)),
                }
            }
            at = end;
        }
        let whole = items.len() as i64 == extent.last - extent.first + 1;
        Ok(if whole {
            items
        } else {
            missing(extent, DAMAGED)
        })
    }
}

/// One gap for each stream that misses bytes. The last one carries the last sequence, so that reading goes
/// on after it.
fn missing(extent: &Extent, cause: &str) -> Vec<Item> {
    let lengths = Stream::ALL.map(|stream| {
        let index = stream.index();
        (
            stream,
            extent.to.offsets[index] - extent.from.offsets[index],
        )
    });
    let lengths = lengths.into_iter().filter(|(_, length)| *length > 0);
    let first = extent.last - lengths.clone().count() as i64 + 1;
    let mut position = extent.from.position;
    (first..)
        .zip(lengths)
        .map(|(sequence, (stream, length))| {
            let gap = Item {
                sequence,
                stream,
                offset: extent.from.offsets[stream.index()],
                position,
                content: Content::Missing {
                    length,
                    cause: cause.to_owned(),
                },
                time: None,
            };
            position += length;
            gap
        })
        .collect()
}
