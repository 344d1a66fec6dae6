//! One file of the intake: records of a length, a checksum and the name of their turn.
//!
//! A file is written from its beginning in each turn, over what the turn before left. The random name
//! of the turn stands in every record, so that an old record behind the last new one is never read, and
//! a turn ends with a mark over its first record.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

/// Bytes ahead of each record: length and checksum (4 each, little endian) and the turn (8).
const HEAD_BYTES: usize = 16;

/// No record is longer, bytes: a job of as many hosts as may be, with the longest action.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// An open file.
pub(super) struct LogFile {
    path: PathBuf,
    size: u64,
    // A plain lock: it is held for one write to the page cache.
    inner: Mutex<Inner>,
}

struct Inner {
    file: Arc<File>,
    turn: u64,
    /// Where the next record goes.
    len: u64,
}

impl LogFile {
    /// Opens the file, or makes it with `size` bytes, and returns the records of its last turn. Nothing
    /// may be appended before a new turn begins.
    pub(super) fn open(path: PathBuf, size: u64) -> io::Result<(Self, Vec<Vec<u8>>)> {
        let bytes = whole(&path)?;
        let (turn, records) = parse(&bytes);
        let len = records
            .iter()
            .map(|record| HEAD_BYTES + record.len())
            .sum::<usize>();
        let file = if bytes.len() as u64 >= size {
            Arc::new(File::options().read(true).write(true).open(&path)?)
        } else {
            made(&path, &bytes[..len], size)?
        };
        let log = Self {
            path,
            size,
            inner: Mutex::new(Inner {
                file,
                turn: turn.unwrap_or_else(rand::random),
                len: len as u64,
            }),
        };
        Ok((log, records))
    }

    /// The records of the file's last turn, beside whoever writes it. What is being written is not among them.
    pub(super) fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
        Ok(parse(&whole(path)?).1)
    }

    /// Everything in the file is of no use any more, and is not read again.
    pub(super) fn begin_anew(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.len == 0 {
            return Ok(());
        }
        // Without its first record a turn has none.
        inner.file.write_all_at(&[0; HEAD_BYTES], 0)?;
        if inner.len > 2 * self.size {
            // It had to take more than it was made for.
            inner.file.set_len(self.size)?;
        }
        inner.turn = rand::random();
        inner.len = 0;
        Ok(())
    }

    /// How much of the file this turn has taken.
    pub(super) fn len(&self) -> u64 {
        self.inner.lock().len
    }

    /// Writes a record behind the last one, with one write. After an error the next one takes its place.
    pub(super) fn append(&self, record: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + record.len());
        put(&mut bytes, inner.turn, record);
        inner.file.write_all_at(&bytes, inner.len)?;
        inner.len += bytes.len() as u64;
        Ok(())
    }

    /// Makes durable what was written.
    pub(super) fn sync(&self) -> io::Result<()> {
        let file = Arc::clone(&self.inner.lock().file);
        file.sync_data()
    }

    /// Puts a new, durable file with these records in the place of this one.
    pub(super) fn replace<'a>(&self, records: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let mut bytes = Vec::new();
        records.for_each(|record| put(&mut bytes, inner.turn, record));
        inner.file = made(&self.path, &bytes, self.size)?;
        inner.len = bytes.len() as u64;
        Ok(())
    }
}

/// Makes a file that begins with these bytes and has zeros behind them; durable, and then in its place.
fn made(path: &Path, begin: &[u8], size: u64) -> io::Result<Arc<File>> {
    let new = path.with_extension("new");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    let mut bytes = begin.to_vec();
    bytes.resize(bytes.len().max(usize::try_from(size).unwrap_or(0)), 0);
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(Arc::new(file))
}

fn put(bytes: &mut Vec<u8>, turn: u64, record: &[u8]) {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(turn, record).to_le_bytes());
    bytes.extend_from_slice(&turn.to_le_bytes());
    bytes.extend_from_slice(record);
}

/// The bytes of a file; none if there is none.
fn whole(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// The last turn and its records.
fn parse(mut bytes: &[u8]) -> (Option<u64>, Vec<Vec<u8>>) {
    let (mut turn, mut records) = (None, Vec::new());
    while let Some((found, record)) = read(bytes)
        && *turn.get_or_insert(found) == found
    {
        records.push(record.to_vec());
        bytes = &bytes[HEAD_BYTES + record.len()..];
    }
    (turn, records)
}

/// The turn and the record at the beginning of `bytes`, if a whole one stands there.
fn read(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let turn = u64::from_le_bytes(head[8..].try_into().ok()?);
    let record = rest.get(..length).filter(|_| length > 0)?;
    (length <= RECORD_BYTES_MAX && checksum(turn, record) == sum).then_some((turn, record))
}

fn checksum(turn: u64, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&turn.to_le_bytes());
    hasher.update(record);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever stood there before and wherever the file is torn, the records before the tear are read
        /// and none of an earlier turn.
        #[test]
        fn a_torn_file_gives_the_records_before_the_tear(
            before in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..12),
            now in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..12),
            tear in any::<prop::sample::Index>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("intake");
            let (file, _) = LogFile::open(path.clone(), 4096).unwrap();
            before.iter().for_each(|record| file.append(record).unwrap());
            file.begin_anew().unwrap();
            prop_assert!(LogFile::open(path.clone(), 4096).unwrap().1.is_empty());
            let mut ends = vec![0];
            for record in &now {
                file.append(record).unwrap();
                ends.push(file.len());
            }
            let end = file.len();
            let at = tear.index(end.max(1) as usize) as u64;
            let whole = ends.iter().filter(|end| **end > 0 && **end <= at).count();
            let mut bytes = fs::read(&path).unwrap();
            if at < end {
                bytes[at as usize] ^= 0x55;
                fs::write(&path, bytes).unwrap();
                let (_, records) = LogFile::open(path, 4096).unwrap();
                prop_assert_eq!(&records, &now[..whole]);
            }
        }
    }
}
