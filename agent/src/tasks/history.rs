//! What this agent remembers of settled tasks, so that a control plane that was restored from a backup can have its
//! history back.
//!
//! The journal proves that nothing starts twice and forgets what was asked; this keeps the sealed offer and the end.
//! Two files, appended to in turn: when one is full, the older one goes. Nothing hangs on it: a task whose record is
//! lost stays as the backup has it.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use muster_client::audit::{OutputDigest, fold, unfold};
use muster_proto::{
    agent::v1::{RecalledTask, task_state},
    ids::TaskId,
    v1::Receipt,
};
use parking_lot::Mutex;
use prost::Message;

use super::journal::{Held, Phase};
use crate::receipts::{TaskEnd, receipt};

/// A full file. About 100,000 tasks with a short command fit, and there may be two.
const FILE_MAX: u64 = 64 << 20;

/// The older file goes after this, full or not: no backup that is restored is older.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is kept of a settled task: the fields of `RecalledTask`, but for the receipt, most of which the others say.
#[derive(Clone, PartialEq, prost::Message)]
struct Remembered {
    #[prost(string, tag = "1")]
    task_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    sealed_offer: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    seal: Bytes,
    #[prost(message, optional, tag = "4")]
    started: Option<task_state::Started>,
    #[prost(message, optional, tag = "5")]
    ended: Option<task_state::Ended>,
    #[prost(int64, tag = "6")]
    stdout_bytes: i64,
    #[prost(int64, tag = "7")]
    stderr_bytes: i64,
    /// The receipt, as far as nobody expects it.
    #[prost(bytes = "bytes", tag = "15")]
    receipt: Bytes,
}

impl Remembered {
    /// `None` if nobody could use it: without an offer, or settled before.
    fn of(held: Held) -> Option<Self> {
        let Phase::Ended(mut ended) = held.phase else {
            return None;
        };
        if held.sealed_offer.is_empty() {
            return None;
        }
        let produced = held.produced.unwrap_or_default();
        let mut remembered = Self {
            task_id: held.task_id.to_string(),
            sealed_offer: held.sealed_offer,
            seal: held.seal,
            started: held.started,
            ended: None,
            stdout_bytes: produced[0] + produced[2],
            stderr_bytes: produced[1],
            receipt: Bytes::new(),
        };
        let receipt = std::mem::take(&mut ended.unsigned_receipt);
        if !receipt.is_empty() {
            remembered.receipt = fold(&receipt, &remembered.expected(held.task_id, &ended));
        }
        remembered.ended = Some(ended);
        Some(remembered)
    }

    /// The receipt that the other fields let expect, of a task that wrote nothing.
    fn expected(&self, id: TaskId, ended: &task_state::Ended) -> Receipt {
        let task = TaskEnd {
            id,
            sealed_offer: &self.sealed_offer,
            started: self.started.clone(),
            output: Some(OutputDigest::of_nothing()),
        };
        receipt(&task, ended)
    }

    fn recalled(mut self) -> RecalledTask {
        let id = self.task_id.parse().ok();
        if let (Some(id), Some(mut ended)) = (id, self.ended.take()) {
            let receipt = unfold(&self.receipt, &self.expected(id, &ended));
            ended.unsigned_receipt = receipt.unwrap_or_default();
            self.ended = Some(ended);
        }
        RecalledTask {
            task_id: self.task_id,
            sealed_offer: self.sealed_offer,
            seal: self.seal,
            started: self.started,
            ended: self.ended,
            stdout_bytes: self.stdout_bytes,
            stderr_bytes: self.stderr_bytes,
        }
    }
}

/// Length and checksum, little endian.
const HEAD: usize = 8;

/// No record is longer: an offer is at most a few megabytes.
const RECORD_MAX: usize = 16 << 20;

/// The settled tasks.
pub(crate) struct History {
    path: PathBuf,
    // A plain lock: it is held for one write to the page cache.
    open: Mutex<Open>,
}

struct Open {
    file: fs::File,
    size: u64,
}

/// Where a record stands.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) task_id: TaskId,
    file: Arc<fs::File>,
    at: u64,
    length: usize,
}

impl History {
    /// Opens the history in this directory, or makes it. A torn end is cut off.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("history");
        let old = older(&path);
        let aged = |metadata: fs::Metadata| {
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            written.elapsed().is_ok_and(|age| age > AGE_MAX)
        };
        if fs::metadata(&old).is_ok_and(aged) {
            fs::remove_file(&old)?;
        }
        let file = append_to(&path)?;
        let size = walk(&file, |_, _, _| {})?;
        file.set_len(size)?;
        Ok(Self {
            path,
            open: Mutex::new(Open { file, size }),
        })
    }

    /// Remembers a task that is being settled, as the journal knows it. One that failed to be remembered is settled all
    /// the same.
    pub(crate) fn remember(&self, held: Held) {
        let task_id = held.task_id;
        let Some(record) = Remembered::of(held) else {
            return;
        };
        if let Err(error) = self.append(&record) {
            tracing::warn!(task.id = %task_id, %error, "a settled task is not remembered: {error}");
        }
    }

    fn append(&self, record: &Remembered) -> io::Result<()> {
        let mut bytes = vec![0; HEAD];
        record.encode(&mut bytes).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len() - HEAD).map_err(io::Error::other)?;
        let sum = crc32fast::hash(&bytes[HEAD..]);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());

        let mut open = self.open.lock();
        if open.size > 0 && open.size + bytes.len() as u64 > FILE_MAX {
            fs::rename(&self.path, older(&self.path))?;
            open.file = append_to(&self.path)?;
            open.size = 0;
        }
        if let Err(error) = open.file.write_all(&bytes) {
            // No later record may follow a torn one.
            open.file.set_len(open.size)?;
            return Err(error);
        }
        open.size += bytes.len() as u64;
        Ok(())
    }

    /// Where every task's newest record stands. Reads both files through: not for the runtime's threads.
    pub(crate) fn places(&self) -> io::Result<Vec<Place>> {
        let mut places = Vec::new();
        for path in [older(&self.path), self.path.clone()] {
            let file = match fs::File::open(&path) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            walk(&file, |task_id, at, length| {
                places.push(Place {
                    task_id,
                    file: Arc::clone(&file),
                    at,
                    length,
                });
            })?;
        }
        // Stable, so that of a task's records the newest comes last.
        places.sort_by_key(|place| place.task_id);
        places.dedup_by(|later, earlier| {
            let same = later.task_id == earlier.task_id;
            if same {
                *earlier = later.clone();
            }
            same
        });
        Ok(places)
    }
}

impl Place {
    /// Bytes of the record.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Reads the record.
    pub(crate) fn read(&self) -> io::Result<RecalledTask> {
        let mut bytes = vec![0; self.length];
        self.file.read_exact_at(&mut bytes, self.at)?;
        let record = Remembered::decode(&bytes[..]).map_err(io::Error::other)?;
        Ok(record.recalled())
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("old")
}

fn append_to(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Calls `found` for every whole record. Returns where they end.
fn walk(file: &fs::File, mut found: impl FnMut(TaskId, u64, usize)) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(256 << 10, At { file, at: 0 });
    let mut at = 0;
    let mut payload = Vec::new();
    loop {
        let mut head = [0; HEAD];
        if !read_whole(&mut reader, &mut head)? {
            return Ok(at);
        }
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let (length, sum) = (number(&head[..4]) as usize, number(&head[4..]));
        if length == 0 || length > RECORD_MAX {
            return Ok(at);
        }
        payload.resize(length, 0);
        if !read_whole(&mut reader, &mut payload)? || crc32fast::hash(&payload) != sum {
            return Ok(at);
        }
        let start = at + HEAD as u64;
        at = start + length as u64;
        // The id is all of a record that is looked at now.
        let id = Remembered::decode(&payload[..])
            .ok()
            .and_then(|record| record.task_id.parse().ok());
        if let Some(task_id) = id {
            found(task_id, start, length);
        }
    }
}

/// Fills the buffer; `false` if there is not so much.
pub(super) fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

/// Reads a file from a place of its own, whoever else appends to it.
pub(super) struct At<'a> {
    pub(super) file: &'a fs::File,
    pub(super) at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::agent::v1::SealedOffer;

    use super::*;

    fn task(number: u8, message: &str) -> Remembered {
        Remembered {
            task_id: TaskId::from_bytes(&[number; 32]).to_string(),
            sealed_offer: vec![number; 300].into(),
            ended: Some(muster_proto::agent::v1::task_state::Ended {
                message: message.to_owned(),
                ..Default::default()
            }),
            ..Remembered::default()
        }
    }

    fn recalled<const N: usize>(tasks: [Remembered; N]) -> Vec<RecalledTask> {
        tasks.into_iter().map(Remembered::recalled).collect()
    }

    fn read(history: &History) -> Vec<RecalledTask> {
        let places = history.places().unwrap();
        let mut tasks: Vec<_> = places.iter().map(|place| place.read().unwrap()).collect();
        tasks.sort_by(|a, b| a.sealed_offer.cmp(&b.sealed_offer));
        tasks
    }

    #[test]
    fn what_was_settled_is_remembered_once_and_a_torn_end_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path()).unwrap();
        history.append(&task(1, "first")).unwrap();
        history.append(&task(2, "other")).unwrap();
        history.append(&task(1, "again")).unwrap();
        assert_eq!(
            read(&history),
            recalled([task(1, "again"), task(2, "other")])
        );
        drop(history);
        let path = directory.path().join("history");
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([9, 0, 0]);
        fs::write(&path, bytes).unwrap();
        let history = History::open(directory.path()).unwrap();
        history.append(&task(3, "after")).unwrap();
        let expected = recalled([task(1, "again"), task(2, "other"), task(3, "after")]);
        assert_eq!(read(&history), expected);
    }

    #[test]
    fn a_receipt_comes_back_to_the_byte_and_takes_next_to_nothing() {
        let offer = SealedOffer {
            job_id: "j-1".to_owned(),
            host_id: "h-1".to_owned(),
            ..SealedOffer::default()
        };
        let id = TaskId::from_bytes(&[1; 32]);
        let sealed_offer = Bytes::from(offer.encode_to_vec());
        let mut ended = task_state::Ended {
            exit_code: Some(0),
            ..task_state::Ended::default()
        };
        for output in [OutputDigest::of_nothing(), [7; 32]] {
            let end = TaskEnd {
                id,
                sealed_offer: &sealed_offer,
                started: None,
                output: Some(output),
            };
            let signed = Bytes::from(receipt(&end, &ended).encode_to_vec());
            ended.unsigned_receipt = signed.clone();
            let held = Held {
                sealed_offer: sealed_offer.clone(),
                ..Held::new(id, "", Phase::Ended(ended.clone()))
            };
            let remembered = Remembered::of(held).unwrap();
            let most = if output == [7; 32] { 42 } else { 4 };
            assert!(remembered.receipt.len() <= most);
            let recalled = remembered.recalled().ended.unwrap();
            assert_eq!(recalled.unsigned_receipt, signed);
            ended.unsigned_receipt = Bytes::new();
        }
    }

    #[test]
    fn a_full_file_makes_room_for_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path()).unwrap();
        for number in 1..=3 {
            history.append(&task(number, "")).unwrap();
            history.open.lock().size = FILE_MAX;
        }
        assert_eq!(read(&history), recalled([task(2, ""), task(3, "")]));
    }
}
