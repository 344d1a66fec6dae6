//! Backup and restore of a control plane: ledger, output, authority and keys.
//!
//! A backup is taken while the control plane runs or not. It is a folder or a tar file with a manifest, which comes last:
//! what lacks it is no backup. The copy of the ledger is marked as one, so that whoever opens it, however it came
//! there, begins a generation.

mod archive;
mod manifest;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use self::{
    archive::{Sink, sync_directory},
    manifest::{KEYS, LEDGER, Manifest, NAME, OPTIONAL, Present},
};
use crate::{
    clock::now,
    jobs::replay,
    output::{OutputError, backup as output},
    store::{
        self, OpenError,
        backup::{self as ledger, About},
    },
};

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is nothing to back up.
    #[error("there is no control plane in {}; choose another --data-dir", .0.display())]
    NoControlPlane(PathBuf),
    /// Something stands where the backup is to go.
    #[error("{} is there already and is not overwritten; choose another place with --to", .0.display())]
    Exists(PathBuf),
    /// What was given is no backup that can be restored.
    #[error("{} cannot be restored: {why}", path.display())]
    NotABackup {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A control plane runs where the backup is to go.
    #[error("a control plane runs in {}; stop it first", .0.display())]
    Running(PathBuf),
    /// What is in the directory must not be lost by mistake.
    #[error("nothing was restored into {}: {why}; --force restores all the same and keeps what is there beside it", path.display())]
    Present {
        /// Which directory.
        path: PathBuf,
        /// What stands against it.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The ledger cannot be read or copied.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The output cannot be copied.
    #[error("the output cannot be copied: {0}")]
    Output(String),
}

impl From<OutputError> for BackupError {
    fn from(error: OutputError) -> Self {
        Self::Output(error.to_string())
    }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::File { path, error }
}

/// A backup that was made.
#[derive(Debug, Clone)]
pub struct BackedUp {
    /// The backup's file.
    pub path: PathBuf,
    /// How far the ledger had come.
    pub ledger_position: i64,
    /// How many files it has, beside the manifest.
    pub files: usize,
    /// Bytes of these files.
    pub bytes: u64,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// When the backup was made, as RFC 3339.
    pub create_time: String,
    /// How far its ledger had come.
    pub ledger_position: i64,
    /// Tasks that wait for a release now.
    pub pending_tasks: i64,
    /// Where what was there before is kept; `None` if there was nothing.
    pub replaced: Option<PathBuf>,
    /// What was there had another authority: a rotation has come since the backup, and whoever took part in it trusts
    /// that one.
    pub other_authority: bool,
}

/// Where a backup goes unless somebody says: into the data directory, under the time.
pub fn default_target(data_dir: &Path) -> PathBuf {
    data_dir.join("backups").join(stamp())
}

/// "20261125T190315Z".
fn stamp() -> String {
    rfc3339().replace(['-', ':'], "")
}

fn rfc3339() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Backs up the control plane of a directory, while it runs or not, to a new folder, or to a new tar file if the name
/// ends in ".tar".
pub async fn back_up(directory: &Path, to: &Path) -> Result<BackedUp, BackupError> {
    if !directory.join(LEDGER).exists() {
        return Err(BackupError::NoControlPlane(directory.to_owned()));
    }
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    // One that does not run must not start meanwhile; one that runs is read beside.
    let _hold = match store::hold(directory) {
        Ok(lock) => Some(lock),
        Err(OpenError::Held(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let parent = parent(to);
    make_private(parent)?;
    let work = Work::new(beside(to, "partial"))?;

    // The ledger first: output that it does not know yet does no harm, output that it misses would.
    // Ahead of it the intake: what leaves that meanwhile is in the ledger.
    let ledger_copy = work.0.join(LEDGER);
    let accepted = store::intake::read(directory)
        .and_then(|records| replay::decode(&records))
        .map_err(file(directory))?;
    let about = ledger::copy(&directory.join(LEDGER), &ledger_copy, accepted, now()).await?;
    let index_copy = work.0.join("index.db");
    let has_index = output::copy_index(&directory.join("output"), &index_copy).await?;

    let mut files: Vec<(String, PathBuf)> = vec![(LEDGER.to_owned(), ledger_copy)];
    files.extend(KEYS.map(|name| (name.to_owned(), directory.join(name))));
    let optional = OPTIONAL.map(|name| (name.to_owned(), directory.join(name)));
    files.extend(optional.into_iter().filter(|(_, path)| path.exists()));
    if has_index {
        files.push(("output/index.db".to_owned(), index_copy));
        for path in output::segments(&directory.join("output"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((format!("output/{name}"), path));
        }
    }
    let (to, manifest) = (to.to_owned(), Manifest::new(&about, rfc3339()));
    blocking(move || {
        let made = write(files, manifest, &to);
        drop(work);
        made
    })
    .await
}

/// Writes the files and the manifest to where the backup goes, under another name until it is whole.
fn write(
    files: Vec<(String, PathBuf)>,
    mut manifest: Manifest,
    to: &Path,
) -> Result<BackedUp, BackupError> {
    let whole = beside(to, "whole");
    let mut sink = Sink::create(&whole, to.extension().is_some_and(|end| end == "tar"))
        .map_err(file(&whole))?;
    let made = (|| {
        for (name, path) in files {
            match sink.add(&name, &path).map_err(file(&path))? {
                Some(entry) => manifest.files.push(entry),
                // Dropped since, to stay within the limits of the output store.
                None if name.ends_with(".segment") => {}
                None => return Err(file(&path)(io::ErrorKind::NotFound.into())),
            }
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other);
        sink.finish(NAME, &text.map_err(file(&whole))?)
            .map_err(file(&whole))?;
        archive::put_in_place(&whole, to).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                BackupError::Exists(to.to_owned())
            }
            _ => file(to)(error),
        })
    })();
    if let Err(error) = made {
        archive::remove(&whole);
        return Err(error);
    }
    Ok(BackedUp {
        path: to.to_owned(),
        ledger_position: manifest.ledger_position,
        files: manifest.files.len(),
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
    })
}

/// Restores a backup into a control plane's directory. Everything is written beside it and checked first; what was
/// there is kept. `force`: replace a ledger that is newer, another's, or cannot be read.
pub async fn restore(directory: &Path, from: &Path, force: bool) -> Result<Restored, BackupError> {
    make_private(parent(directory))?;
    let lock = match store::hold(directory) {
        Ok(lock) => lock,
        Err(OpenError::Held(_)) => return Err(BackupError::Running(directory.to_owned())),
        Err(error) => return Err(error.into()),
    };
    let work = Work::new(beside(directory, "restoring"))?;
    let manifest = {
        let (from, staged) = (from.to_owned(), work.0.clone());
        blocking(move || unpack(&from, &staged)).await?
    };
    let not_a_backup = |why: String| BackupError::NotABackup {
        path: from.to_owned(),
        why,
    };
    let about = ledger::about(&work.0.join(LEDGER)).await?;
    if (&about.control_plane_id, about.position)
        != (&manifest.control_plane_id, manifest.ledger_position)
    {
        return Err(not_a_backup(
            "its ledger is not the one that its manifest speaks of".to_owned(),
        ));
    }
    if !force && let Some(why) = manifest::objection(&present(directory).await, &manifest) {
        return Err(BackupError::Present {
            path: directory.to_owned(),
            why,
        });
    }
    // Left by reading the copy.
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(work.0.join(format!("{LEDGER}{suffix}")));
    }
    let authority = |directory: &Path| fs::read(directory.join("ca.pem")).ok();
    let there = authority(directory);
    let other_authority = there.is_some() && there != authority(&work.0);
    let replaced = take_place(work, directory)?;
    drop(lock);
    Ok(Restored {
        create_time: manifest.create_time,
        ledger_position: manifest.ledger_position,
        pending_tasks: about.pending_tasks,
        replaced,
        other_authority,
    })
}

/// Copies a backup to a folder and checks every file of it.
fn unpack(from: &Path, staged: &Path) -> Result<Manifest, BackupError> {
    let not_a_backup = |why: String| BackupError::NotABackup {
        path: from.to_owned(),
        why,
    };
    let (manifest, found) = archive::unpack(from, staged).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::NotFound => not_a_backup(error.to_string()),
        _ => file(from)(error),
    })?;
    if let Some(why) = manifest.refusal(ledger::schema()) {
        return Err(not_a_backup(why));
    }
    if let Some(wrong) = manifest.files.iter().find(|file| !found.contains(file)) {
        return Err(not_a_backup(format!(
            "{} is missing or damaged; take an earlier backup",
            wrong.name
        )));
    }
    if found.len() != manifest.files.len() {
        return Err(not_a_backup(
            "it holds files that its manifest does not name".to_owned(),
        ));
    }
    Ok(manifest)
}

async fn present(directory: &Path) -> Present {
    let path = directory.join(LEDGER);
    if !path.exists() {
        return Present::Nothing;
    }
    match ledger::about(&path).await {
        Ok(About {
            control_plane_id,
            generation,
            position,
            ..
        }) => Present::Ledger {
            control_plane_id,
            generation,
            position,
        },
        Err(error) => Present::Unreadable(error.to_string()),
    }
}

/// Puts the folder in the place of the directory, in one step where the file system can. Returns where what was there
/// is kept.
fn take_place(work: Work, directory: &Path) -> Result<Option<PathBuf>, BackupError> {
    let staged = &work.0;
    sync_directory(staged).map_err(file(staged))?;
    let aside = beside(directory, &format!("replaced-{}", stamp()));
    let kept = if renameat_with(CWD, staged, CWD, directory, RenameFlags::EXCHANGE).is_ok() {
        fs::rename(staged, &aside).map_err(file(&aside))?;
        aside
    } else {
        fs::rename(directory, &aside).map_err(file(&aside))?;
        if let Err(error) = fs::rename(staged, directory) {
            // Back to what was.
            let _ = fs::rename(&aside, directory);
            return Err(file(directory)(error));
        }
        aside
    };
    sync_directory(parent(directory)).map_err(file(directory))?;
    // A directory that was only made to be held has nothing worth keeping.
    let _ = fs::remove_file(kept.join("lock"));
    Ok(fs::remove_dir(&kept).is_err().then_some(kept))
}

/// A folder of this work; gone with it.
struct Work(PathBuf);

impl Work {
    fn new(path: PathBuf) -> Result<Self, BackupError> {
        // An earlier attempt that was killed may have left one.
        archive::remove(&path);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(file(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        archive::remove(&self.0);
    }
}

fn make_private(path: &Path) -> Result<(), BackupError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file(path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.NAME.what` beside the path.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}"))
}

/// Works on files where waiting for the disk holds nobody up.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        Err(_) => Err(BackupError::Output("the work was cut off".to_owned())),
    }
}

#[cfg(test)]
mod tests;
