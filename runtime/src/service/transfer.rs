//! A directory of secrets moves: copied into files of our own, written through, and only then taken away.
//!
//! A rename would do on one file system, and would take the old owner's links and open files along.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg, OFlag};

/// The file whose lock says that a role runs in a directory.
const LOCK: &str = "lock";

/// Directories in directories; more is no directory of ours.
const DEPTH_MAX: usize = 8;

/// Why a directory was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Something runs in it.
    #[error("something still runs in {}", .0.display())]
    InUse(PathBuf),
    /// Something is there already.
    #[error("{} is there already", .0.display())]
    Occupied(PathBuf),
    /// It holds what a role never makes.
    #[error("{} is neither a file nor a directory", .0.display())]
    Strange(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl MoveError {
    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::InUse(_) => "stop it, wait for its tasks, then try again",
            Self::Occupied(_) => "move one of the two away",
            Self::Strange(_) => "move it away, then try again",
            Self::File { .. } => {
                "nothing was taken away; see that the path can be used, then try again"
            }
        }
    }
}

/// Moves the directory `from` to `to`, which must not exist: 0700, its files 0600, owned by whoever calls.
/// If it fails, `from` is whole.
pub fn move_directory(from: &Path, to: &Path) -> Result<(), MoveError> {
    // Held until it is gone, so that nothing starts in it meanwhile.
    let _lock = hold(from)?;
    if to.exists() {
        return Err(MoveError::Occupied(to.to_owned()));
    }
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = to.with_file_name(name);
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&new)(error)),
        // A move was interrupted, and left this.
        _ => {}
    }
    let moved = copy(from, &new, 0).and_then(|()| {
        fs::rename(&new, to).map_err(at(to))?;
        sync(to.parent().unwrap_or(to))
    });
    if let Err(error) = moved {
        // The copy of a key that is not needed.
        let _ = fs::remove_dir_all(&new);
        return Err(error);
    }
    fs::remove_dir_all(from).map_err(at(from))
}

/// Holds a directory, so that nothing starts in it.
pub(super) fn hold(directory: &Path) -> Result<Option<Flock<File>>, MoveError> {
    let path = directory.join(LOCK);
    let file = match OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
    {
        Ok(file) => file,
        // Nothing has ever run in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(&path)(error)),
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map(Some)
        .map_err(|_| MoveError::InUse(directory.to_owned()))
}

fn copy(from: &Path, to: &Path, depth: usize) -> Result<(), MoveError> {
    if depth > DEPTH_MAX {
        return Err(MoveError::Strange(from.to_owned()));
    }
    DirBuilder::new().mode(0o700).create(to).map_err(at(to))?;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(at(&old))?;
        if kind.is_dir() {
            copy(&old, &new, depth + 1)?;
        } else if kind.is_file() {
            copy_file(&old, &new)?;
        } else if kind.is_socket() {
            // Left behind by what has ended, unless somebody answers.
            if UnixStream::connect(&old).is_ok() {
                return Err(MoveError::InUse(from.to_owned()));
            }
        } else {
            return Err(MoveError::Strange(old));
        }
    }
    sync(to)
}

fn copy_file(from: &Path, to: &Path) -> Result<(), MoveError> {
    let mut source = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(from)
        .map_err(at(from))?;
    // Whoever owns the directory may have put something else there since.
    if !source.metadata().map_err(at(from))?.is_file() {
        return Err(MoveError::Strange(from.to_owned()));
    }
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(at(to))?;
    io::copy(&mut source, &mut target)
        .and_then(|_| target.sync_all())
        .map_err(at(to))
}

fn sync(directory: &Path) -> Result<(), MoveError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(at(directory))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> MoveError {
    let path = path.to_owned();
    move |source| MoveError::File { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    };

    use super::*;

    fn source(directory: &Path) -> PathBuf {
        let from = directory.join("from");
        fs::create_dir_all(from.join("spool")).unwrap();
        fs::write(from.join("key.pem"), "secret").unwrap();
        fs::write(from.join("spool/1"), "output").unwrap();
        fs::write(from.join(LOCK), "").unwrap();
        from
    }

    #[test]
    fn a_directory_moves_with_all_in_it_and_nobody_else_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (source(directory.path()), directory.path().join("to"));
        fs::set_permissions(from.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        drop(UnixListener::bind(from.join("old.sock")).unwrap());
        move_directory(&from, &to).unwrap();
        assert!(!from.exists());
        assert_eq!(fs::read_to_string(to.join("spool/1")).unwrap(), "output");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&to), 0o700);
        assert_eq!(mode(&to.join("key.pem")), 0o600);
        assert!(!to.join("old.sock").exists());
    }

    #[test]
    fn what_runs_in_a_directory_keeps_it_there() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (source(directory.path()), directory.path().join("to"));
        let held = Flock::lock(
            File::open(from.join(LOCK)).unwrap(),
            FlockArg::LockExclusiveNonblock,
        )
        .unwrap();
        assert!(matches!(
            move_directory(&from, &to),
            Err(MoveError::InUse(_))
        ));
        drop(held);
        let listener = UnixListener::bind(from.join("task.sock")).unwrap();
        assert!(matches!(
            move_directory(&from, &to),
            Err(MoveError::InUse(_))
        ));
        drop(listener);
        move_directory(&from, &to).unwrap();
    }

    #[test]
    fn a_link_is_not_followed_and_nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (source(directory.path()), directory.path().join("to"));
        symlink("/etc/hostname", from.join("ca.pem")).unwrap();
        assert!(matches!(
            move_directory(&from, &to),
            Err(MoveError::Strange(_))
        ));
        assert!(from.join("key.pem").exists() && !to.exists());
        assert!(!directory.path().join("to.new").exists());
        fs::remove_file(from.join("ca.pem")).unwrap();
        fs::create_dir(&to).unwrap();
        assert!(matches!(
            move_directory(&from, &to),
            Err(MoveError::Occupied(_))
        ));
    }
}
