//! The journal's file: records of a length, a checksum and a message. Read from its beginning to its end, record by
//! record: it may hold millions.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Take, Write},
    iter,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{BufMut, BytesMut};
use prost::Message;

use super::{
    super::history::{At, read_whole},
    entry::{Entry, Header},
};

/// Says what the file is and how it is written.
const MAGIC: &[u8; 8] = b"mstjrnl1";

/// Length and checksum, little endian.
const RECORD_HEAD: usize = 8;

/// No entry is longer: an offer is at most a few megabytes.
const RECORD_MAX: usize = 16 << 20;

/// Read and written at once, bytes.
const BUFFER: usize = 256 << 10;

/// The file, open for appending.
pub(super) struct File {
    file: fs::File,
    size: AtomicU64,
}

impl File {
    /// Opens the file; `None` if there is none. A torn end is cut off; damage before the end is an error, because
    /// going on without those entries could start a task twice.
    pub(super) fn open(path: &Path) -> io::Result<Option<(Self, Header)>> {
        let file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let Some((header, mut records)) = Records::begin(&file, length)? else {
            return Err(io::Error::other(format!(
                "{} is not a journal of this version",
                path.display()
            )));
        };
        while records.next()?.is_some() {}
        let good = records.good;
        if good < length {
            if has_record_after(&file, good)? {
                return Err(io::Error::other(format!(
                    "{} is damaged at byte {good}; to go on with a new journal, move it away: \
                     what this host was doing then becomes LOST",
                    path.display()
                )));
            }
            let torn = length - good;
            tracing::warn!(
                torn,
                "the journal ends in {torn} torn bytes, which are dropped"
            );
            file.set_len(good)?;
            file.sync_all()?;
        }
        let size = AtomicU64::new(good);
        Ok(Some((Self { file, size }, header)))
    }

    /// Makes the file anew with these entries, beside what may be there; returns how many they were.
    pub(super) fn create(
        path: &Path,
        header: &Header,
        entries: impl Iterator<Item = io::Result<Entry>>,
    ) -> io::Result<(Self, i64)> {
        let new = beside(path);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&new)?;
        let mut bytes = BytesMut::from(&MAGIC[..]);
        put(&mut bytes, header);
        let (mut size, mut count) = (0, 0);
        let mut writer = BufWriter::with_capacity(BUFFER, &file);
        for entry in entries {
            put(&mut bytes, &entry?);
            writer.write_all(&bytes)?;
            size += bytes.len() as u64;
            count += 1;
            bytes.clear();
        }
        writer.write_all(&bytes)?;
        writer.flush()?;
        drop(writer);
        file.sync_all()?;
        let size = AtomicU64::new(size + bytes.len() as u64);
        Ok((Self { file, size }, count))
    }

    /// Puts a file that was made anew in the place of what was there.
    pub(super) fn take_place(&self, path: &Path) -> io::Result<()> {
        fs::rename(beside(path), path)
    }

    /// Appends entries with one write. Callers take turns.
    pub(super) fn append(&self, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = BytesMut::with_capacity(256);
        for entry in entries {
            put(&mut bytes, entry);
        }
        self.append_bytes(&bytes)
    }

    /// Appends what another file has after so many bytes. Callers take turns.
    pub(super) fn append_rest(&self, of: &Self, after: u64) -> io::Result<()> {
        let length = usize::try_from(of.size() - after).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        of.file.read_exact_at(&mut bytes, after)?;
        self.append_bytes(&bytes)
    }

    fn append_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let size = self.size();
        if let Err(error) = (&self.file).write_all(bytes) {
            // A part may have been written, and no later entry may follow it.
            self.file.set_len(size)?;
            return Err(error);
        }
        self.size
            .store(size + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that an entry takes.
    pub(super) fn size_of(entry: &Entry) -> u64 {
        (RECORD_HEAD + entry.encoded_len()) as u64
    }

    /// The entries that the file had when it had so many bytes.
    pub(super) fn entries(
        &self,
        size: u64,
    ) -> io::Result<impl Iterator<Item = io::Result<Entry>> + '_> {
        let (_, mut records) = Records::begin(&self.file, size)?
            .ok_or_else(|| io::Error::other("the journal has lost its header"))?;
        Ok(iter::from_fn(move || match records.next() {
            Ok(Some(record)) => Some(Entry::decode(&*record).map_err(io::Error::other)),
            Ok(None) if records.good == size => None,
            Ok(None) => {
                let damaged = format!("the journal is damaged at byte {}", records.good);
                Some(Err(io::Error::other(damaged)))
            }
            Err(error) => Some(Err(error)),
        }))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
}

/// Makes the names in the file's directory safe: a name is as important as the bytes.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

/// The name of the file that is to take the place of this one.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn put(bytes: &mut BytesMut, message: &impl Message) {
    let head = bytes.len();
    bytes.put_u32_le(u32::try_from(message.encoded_len()).expect("entries are small"));
    bytes.put_u32_le(0);
    message.encode(bytes).expect("the buffer grows as needed");
    let sum = crc32fast::hash(&bytes[head + RECORD_HEAD..]);
    bytes[head + 4..head + RECORD_HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// The records of a file, up to the first that is not whole.
struct Records<'a> {
    reader: BufReader<Take<At<'a>>>,
    /// Bytes of those that were read.
    good: u64,
}

impl<'a> Records<'a> {
    /// Those after the header, of so many bytes; `None` if it is no such file.
    fn begin(file: &'a fs::File, size: u64) -> io::Result<Option<(Header, Self)>> {
        let from = At { file, at: 0 }.take(size);
        let mut records = Self {
            reader: BufReader::with_capacity(BUFFER, from),
            good: MAGIC.len() as u64,
        };
        let mut magic = [0; MAGIC.len()];
        if !read_whole(&mut records.reader, &mut magic)? || magic != *MAGIC {
            return Ok(None);
        }
        let header = records.next()?;
        let header = header.and_then(|header| Header::decode(&*header).ok());
        Ok(header.map(|header| (header, records)))
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let record = take(&mut self.reader)?;
        if let Some(record) = &record {
            self.good += (RECORD_HEAD + record.len()) as u64;
        }
        Ok(record)
    }
}

/// The next record; `None` if it is not whole.
fn take(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; RECORD_HEAD];
    if !read_whole(from, &mut head)? {
        return Ok(None);
    }
    let [sum, length] = [&head[4..], &head[..4]]
        .map(|part| u32::from_le_bytes(part.try_into().expect("it has four bytes")));
    let length = length as usize;
    if length == 0 || length > RECORD_MAX {
        return Ok(None);
    }
    let mut record = vec![0; length];
    let whole = read_whole(from, &mut record)? && crc32fast::hash(&record) == sum;
    Ok(whole.then_some(record))
}

/// Whether a whole record stands behind the broken one there: then this is no torn end.
fn has_record_after(file: &fs::File, broken: u64) -> io::Result<bool> {
    let mut length = [0; 4];
    if !read_whole(&mut At { file, at: broken }, &mut length)? {
        return Ok(false);
    }
    let after = broken + RECORD_HEAD as u64 + u64::from(u32::from_le_bytes(length));
    Ok(take(&mut At { file, at: after })?.is_some())
}
