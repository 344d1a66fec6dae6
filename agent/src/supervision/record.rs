//! What supervisors leave in their directory: sockets, records of tasks that ended while the agent was away, and
//! the output of these.

use std::{
    collections::HashSet,
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::BytesMut;
use muster_proto::ids::TaskId;

use super::{
    SupervisorId,
    protocol::{self, Record},
};

/// Ends the name of a record; the task's id begins it.
const ENDING: &str = ".ended";

/// Whether there is anything of a task.
pub(crate) struct Left {
    directory: PathBuf,
    task_id: TaskId,
}

impl Left {
    /// What there is of this task.
    pub(crate) fn new(directory: &Path, task_id: TaskId) -> Self {
        Self {
            directory: directory.to_owned(),
            task_id,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}{ENDING}", self.task_id))
    }

    /// How the task ended, if that was written down.
    pub(crate) fn record(&self) -> Option<Record> {
        let bytes = fs::read(self.path()).ok()?;
        protocol::take(&mut BytesMut::from(&bytes[..]))
            .ok()
            .flatten()
    }

    /// Writes down how the task ended.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        protocol::put(&mut bytes, record);
        let (path, new) = (self.path(), self.path().with_extension("new"));
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(new, path)
    }

    /// Removes the record.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(self.path());
    }
}

/// The supervisors whose sockets are here; what is left of those that are gone is removed, and so is what
/// belongs to tasks that nobody holds. To be called while no agent's supervisor begins.
pub(crate) fn sweep(directory: &Path, held: &HashSet<TaskId>) -> io::Result<Vec<SupervisorId>> {
    let mut alive = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        match SupervisorId::from_file_name(&name) {
            Some(id) if id.lives() => alive.push(id),
            Some(_) => remove(&entry.path())?,
            None => others.push(entry.path()),
        }
    }
    for path in others {
        let name = path.file_name().and_then(|name| name.to_str());
        let task_id = name.and_then(|name| name.split('.').next()?.parse().ok());
        // With a supervisor that nobody knows yet, its files are its own.
        if alive.is_empty() && task_id.is_none_or(|task_id| !held.contains(&task_id)) {
            remove(&path)?;
        }
    }
    Ok(alive)
}

/// Removes a file. A supervisor that ends removes its own at the same time: gone is gone.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_may_remove_its_socket_first() {
        let directory = tempfile::tempdir().unwrap();
        // Beyond the largest process id: none of them lives.
        for number in 0..1_000 {
            let name = format!("{}-{number}", (1 << 22) + 1);
            fs::write(directory.path().join(name), "").unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| sweep(directory.path(), &HashSet::new()).unwrap());
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
