//! Jobs that were accepted and are not in the database yet: a log ahead of it.
//!
//! A transaction costs two thread hops and a dozen pages; on the road between a caller and a process
//! stands one `write` into this log instead. What is in it survives the end of the process, a sync of
//! its own makes it survive a power cut, and the next start puts into the database what is not there.
//! Meanwhile the database is written behind, many jobs in one transaction.
//!
//! Two files take turns: a file is emptied once everything in it is durable in the database. They
//! have their size from the beginning, so that a sync has bytes to write and nothing else.

mod file;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use self::file::LogFile;
use super::durability::{Disk, Durable, Syncer};

/// A file that holds more than this gives way to the other one, bytes; it is this large from the start.
const FILE_BYTES: u64 = 1 << 20;

/// Records that the database does not have yet, bytes: callers wait beyond.
const WAITING_BYTES_MAX: u64 = 32 << 20;

/// The log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Intake(Arc<Inner>);

struct Inner {
    log: Arc<Log>,
    syncer: Syncer,
    /// What the last process left, until it is in the database.
    left: Mutex<Vec<Vec<u8>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.syncer.stop();
    }
}

/// A record that was written.
pub(crate) struct Appended {
    /// Names the record until the database has it durably.
    pub(crate) position: i64,
    /// Waits until it survives a power cut.
    pub(crate) durable: Durable,
}

struct Log {
    // A plain lock: it is held for one write to the page cache.
    state: Mutex<State>,
    files: [LogFile; 2],
    /// Written to since the last sync.
    unsynced: [AtomicBool; 2],
}

struct State {
    current: usize,
    position: i64,
    /// Records that the database does not have durably, with the file that holds each.
    waiting: HashMap<i64, (usize, Vec<u8>)>,
    waiting_in: [usize; 2],
    waiting_bytes: u64,
}

/// The names of the two files.
const FILES: [&str; 2] = ["intake.0", "intake.1"];

/// The records in the log of a directory, while it is in use or not.
pub(crate) fn read(directory: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    for name in FILES {
        records.extend(LogFile::read(&directory.join(name))?);
    }
    Ok(records)
}

impl Intake {
    /// Opens the log in `directory`, or makes it.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let mut left = Vec::new();
        let mut file = |name: &str| -> io::Result<LogFile> {
            let (file, records) = LogFile::open(directory.join(name), FILE_BYTES)?;
            left.extend(records);
            Ok(file)
        };
        let log = Arc::new(Log {
            files: [file(FILES[0])?, file(FILES[1])?],
            unsynced: Default::default(),
            state: Mutex::new(State {
                current: 0,
                position: 0,
                waiting: HashMap::new(),
                waiting_in: [0; 2],
                waiting_bytes: 0,
            }),
        });
        Ok(Self(Arc::new(Inner {
            syncer: Syncer::start("intake-sync", 0, LogDisk(Arc::clone(&log)))?,
            log,
            left: Mutex::new(left),
        })))
    }

    /// What the last process accepted and may not have put into the database; in order within a file.
    pub(crate) fn left(&self) -> Vec<Vec<u8>> {
        self.0.left.lock().clone()
    }

    /// All that was left is durable in the database: the log begins anew.
    pub(crate) fn begin(&self) -> io::Result<()> {
        for file in &self.0.log.files {
            file.begin_anew()?;
        }
        self.0.left.lock().clear();
        Ok(())
    }

    /// Writes a record. Once this returns, the end of this process cannot undo it.
    pub(crate) fn append(&self, record: Vec<u8>) -> io::Result<Appended> {
        let mut state = self.0.log.state.lock();
        let other = 1 - state.current;
        if self.0.log.files[state.current].len() >= FILE_BYTES && state.waiting_in[other] == 0 {
            state.current = other;
        }
        let current = state.current;
        self.0.log.files[current].append(&record)?;
        self.0.log.unsynced[current].store(true, Ordering::Release);
        state.position += 1;
        state.waiting_in[current] += 1;
        state.waiting_bytes += record.len() as u64;
        let position = state.position;
        state.waiting.insert(position, (current, record));
        // Under the lock: what is written must not be noted before what came ahead of it.
        self.0.syncer.wrote(position);
        Ok(Appended {
            position,
            durable: self.0.syncer.at(position),
        })
    }

    /// The database has these records durably. A file is emptied with its last record: what the database
    /// forgets one day must not come back from here.
    pub(crate) fn release(&self, positions: &[i64]) -> io::Result<()> {
        let mut state = self.0.log.state.lock();
        for position in positions {
            let Some((file, record)) = state.waiting.remove(position) else {
                continue;
            };
            state.waiting_bytes -= record.len() as u64;
            state.waiting_in[file] -= 1;
            if state.waiting_in[file] == 0 {
                self.0.log.files[file].begin_anew()?;
            }
        }
        Ok(())
    }

    /// Both files are in use: what the database takes now lets one of them be emptied before the other outgrows its room.
    pub(crate) fn is_crowded(&self) -> bool {
        let state = self.0.log.state.lock();
        state.waiting_in.iter().all(|waiting| *waiting > 0)
    }

    /// The database is so far behind that callers should wait for it.
    pub(crate) fn is_full(&self) -> bool {
        self.0.log.state.lock().waiting_bytes >= WAITING_BYTES_MAX
    }

    /// The syncing thread: what is durable, and whether syncs work.
    pub(crate) fn syncer(&self) -> &Syncer {
        &self.0.syncer
    }
}

struct LogDisk(Arc<Log>);

impl LogDisk {
    fn each_unsynced(&self, sync: impl Fn(usize) -> io::Result<()>) -> io::Result<()> {
        for (number, unsynced) in self.0.unsynced.iter().enumerate() {
            // Taken before the sync: what is written meanwhile is for the next one.
            if unsynced.swap(false, Ordering::AcqRel)
                && let Err(error) = sync(number)
            {
                unsynced.store(true, Ordering::Release);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Disk for LogDisk {
    fn sync(&mut self) -> io::Result<()> {
        self.each_unsynced(|number| self.0.files[number].sync())
    }

    /// Writes what still matters once more, into a new file.
    fn repair(&mut self) -> io::Result<()> {
        self.each_unsynced(|number| {
            let state = self.0.state.lock();
            let mut waiting: Vec<_> = state
                .waiting
                .iter()
                .filter(|(_, (file, _))| *file == number)
                .collect();
            waiting.sort_unstable_by_key(|(position, _)| **position);
            let records = waiting
                .into_iter()
                .map(|(_, (_, record))| record.as_slice());
            self.0.files[number].replace(records)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: usize) -> Vec<u8> {
        format!("record {number} ").repeat(10).into_bytes()
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_the_end_of_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let intake = Intake::open(directory.path()).unwrap();
        for number in 0..100 {
            intake.append(record(number)).unwrap();
        }
        intake.syncer().now().wait().await.unwrap();
        let again = Intake::open(directory.path()).unwrap();
        assert_eq!(again.left(), (0..100).map(record).collect::<Vec<_>>());
        again.begin().unwrap();
        assert!(again.left().is_empty());
        again.append(record(7)).unwrap();
        let third = Intake::open(directory.path()).unwrap();
        assert_eq!(third.left(), [record(7)]);
    }

    #[test]
    fn a_file_is_used_again_once_the_database_has_all_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let intake = Intake::open(directory.path()).unwrap();
        let large = vec![b'x'; 64 << 10];
        let mut positions = Vec::new();
        // More than both files together, and nothing is released: nothing may be written over.
        for _ in 0..40 {
            positions.push(intake.append(large.clone()).unwrap().position);
        }
        assert!(intake.is_crowded());
        assert_eq!(Intake::open(directory.path()).unwrap().left().len(), 40);
        intake.release(&positions).unwrap();
        for _ in 0..200 {
            let appended = intake.append(large.clone()).unwrap();
            intake.release(&[appended.position]).unwrap();
        }
        let size: u64 = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size < 6 * FILE_BYTES, "{size}");
        assert!(Intake::open(directory.path()).unwrap().left().is_empty());
        assert!(!intake.is_full() && !intake.is_crowded());
    }

    #[test]
    fn callers_wait_for_a_database_that_falls_behind() {
        let directory = tempfile::tempdir().unwrap();
        let intake = Intake::open(directory.path()).unwrap();
        let mut positions = Vec::new();
        while !intake.is_full() {
            positions.push(intake.append(vec![0; 4 << 20]).unwrap().position);
        }
        assert_eq!(positions.len(), 8);
        intake.release(&positions).unwrap();
        assert!(!intake.is_full());
    }

    #[test]
    fn a_repair_writes_what_still_matters_once_more() {
        let directory = tempfile::tempdir().unwrap();
        let intake = Intake::open(directory.path()).unwrap();
        let gone = intake.append(record(1)).unwrap().position;
        intake.append(record(2)).unwrap();
        intake.append(record(3)).unwrap();
        intake.release(&[gone]).unwrap();
        LogDisk(Arc::clone(&intake.0.log)).repair().unwrap();
        intake.append(record(4)).unwrap();
        let again = Intake::open(directory.path()).unwrap();
        assert_eq!(again.left(), [record(2), record(3), record(4)]);
    }
}
