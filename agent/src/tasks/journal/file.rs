//! The journal's file: records of a length, a checksum and a message.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::entry::{Entry, Header};

/// Says what the file is and how it is written.
const MAGIC: &[u8; 8] = b"mstjrnl1";

/// Length and checksum, little endian.
const RECORD_HEAD: usize = 8;

/// No entry is longer: an offer is at most a few megabytes.
const RECORD_MAX: usize = 16 << 20;

/// An open journal file, its header and its entries.
pub(super) type Whole = (File, Header, Vec<Entry>);

/// The file, open for appending.
pub(super) struct File {
    file: fs::File,
    size: AtomicU64,
}

impl File {
    /// Opens the file and reads it; `None` if there is none. A torn end is cut off; damage before the
    /// end is an error, because going on without those entries could start a task twice.
    pub(super) fn open(path: &Path) -> io::Result<Option<Whole>> {
        let mut file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let bytes = Bytes::from(bytes);
        let Some((header, entries, good)) = parse(&bytes) else {
            return Err(io::Error::other(format!(
                "{} is not a journal of this version",
                path.display()
            )));
        };
        if good < bytes.len() {
            if has_record_after(&bytes.slice(good..)) {
                return Err(io::Error::other(format!(
                    "{} is damaged at byte {good}; to go on with a new journal, move it away: \
                     what this host was doing then becomes LOST",
                    path.display()
                )));
            }
            let torn = bytes.len() - good;
            tracing::warn!(
                torn,
                "the journal ends in {torn} torn bytes, which are dropped"
            );
            file.set_len(good as u64)?;
            file.sync_all()?;
        }
        let size = AtomicU64::new(good as u64);
        Ok(Some((Self { file, size }, header, entries)))
    }

    /// Makes the file anew with these entries, safely in the place of what was there.
    pub(super) fn create(path: &Path, header: Header, entries: Vec<Entry>) -> io::Result<Whole> {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        put(&mut bytes, &header);
        for entry in &entries {
            put(&mut bytes, entry);
        }
        let new = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The name is as important as the bytes.
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::File::open(directory)?.sync_all()?;
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        let size = AtomicU64::new(bytes.len() as u64);
        Ok((Self { file, size }, header, entries))
    }

    /// Appends entries with one write. Callers take turns.
    pub(super) fn append(&self, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = BytesMut::with_capacity(256);
        for entry in entries {
            put(&mut bytes, entry);
        }
        let size = self.size.load(Ordering::Relaxed);
        if let Err(error) = (&self.file).write_all(&bytes) {
            // A part may have been written, and no later entry may follow it.
            self.file.set_len(size)?;
            return Err(error);
        }
        self.size
            .store(size + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; usize::try_from(self.size()).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, 0)?;
        parse(&bytes.into())
            .map(|(_, entries, _)| entries)
            .ok_or_else(|| io::Error::other("the journal has lost its header"))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
}

fn put(bytes: &mut BytesMut, message: &impl Message) {
    let head = bytes.len();
    bytes.put_u32_le(u32::try_from(message.encoded_len()).expect("entries are small"));
    bytes.put_u32_le(0);
    message.encode(bytes).expect("the buffer grows as needed");
    let sum = crc32fast::hash(&bytes[head + RECORD_HEAD..]);
    bytes[head + 4..head + RECORD_HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// The header, the entries, and how many bytes they take.
fn parse(bytes: &Bytes) -> Option<(Header, Vec<Entry>, usize)> {
    let mut rest = bytes.clone();
    if !rest.starts_with(MAGIC) {
        return None;
    }
    rest.advance(MAGIC.len());
    let header = Header::decode(take(&mut rest)?).ok()?;
    let mut entries = Vec::new();
    let mut good = bytes.len() - rest.len();
    // Decoded from a slice, so that an entry copies what it keeps and the whole file can go.
    while let Some(entry) = take(&mut rest).and_then(|record| Entry::decode(&*record).ok()) {
        entries.push(entry);
        good = bytes.len() - rest.len();
    }
    Some((header, entries, good))
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let length = length(rest)?;
    let sum = u32::from_le_bytes(rest[4..RECORD_HEAD].try_into().ok()?);
    if rest.len() - RECORD_HEAD < length {
        return None;
    }
    let record = rest.slice(RECORD_HEAD..RECORD_HEAD + length);
    if crc32fast::hash(&record) != sum {
        return None;
    }
    rest.advance(RECORD_HEAD + length);
    Some(record)
}

fn length(rest: &Bytes) -> Option<usize> {
    let length = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    (rest.len() >= RECORD_HEAD && length > 0 && length <= RECORD_MAX).then_some(length)
}

/// Whether a whole record stands behind a broken one: then this is no torn end.
fn has_record_after(broken: &Bytes) -> bool {
    length(broken).is_some_and(|length| {
        broken.len() > RECORD_HEAD + length
            && take(&mut broken.slice(RECORD_HEAD + length..)).is_some()
    })
}
