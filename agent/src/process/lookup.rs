//! Which file a program's name means, and why the kernel would not start it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use muster_proto::v1::Reason;
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::StartError;

/// Searched where the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file that `name` means: itself if it holds a "/", else the first in `path` (PATH) that can be executed.
pub(super) fn find(name: &str, cwd: &Path, path: Option<&str>) -> Result<PathBuf, StartError> {
    if name.is_empty() {
        return Err(StartError::new(
            Reason::CommandNotFound,
            "the program's name is empty",
        ));
    }
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = path.unwrap_or(DEFAULT_PATH);
    let mut forbidden = None;
    for directory in path.split(':') {
        let file = cwd.join(directory).join(name);
        match access(&file, AccessFlags::X_OK) {
            Ok(()) if file.is_file() => return Ok(file),
            Err(Errno::EACCES) if file.is_file() => {
                forbidden.get_or_insert(file);
            }
            _ => {}
        }
    }
    Err(match forbidden {
        Some(file) => StartError::new(
            Reason::CommandNotExecutable,
            format!("{} may not be executed", file.display()),
        ),
        None => StartError::new(
            Reason::CommandNotFound,
            format!("{name:?} is in no directory of PATH ({path})"),
        ),
    })
}

/// Whether a file can be executed by whoever is not confined.
pub(super) fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

/// Says what stood in the way. Looked at only after a failure, so a success pays nothing for it.
pub(super) fn diagnose(errno: Errno, program: &Path, cwd: &Path) -> StartError {
    let error = |reason, message: String| StartError::new(reason, message);
    match fs::metadata(cwd) {
        Err(cause) => {
            return error(
                Reason::WorkingDirectoryMissing,
                format!("the working directory {}: {cause}", cwd.display()),
            );
        }
        Ok(found) if !found.is_dir() => {
            return error(
                Reason::WorkingDirectoryMissing,
                format!("{} is not a directory", cwd.display()),
            );
        }
        Ok(_) if errno == Errno::EACCES && access(cwd, AccessFlags::X_OK).is_err() => {
            return error(
                Reason::WorkingDirectoryMissing,
                format!("the working directory {} may not be entered", cwd.display()),
            );
        }
        Ok(_) => {}
    }
    let name = program.display();
    let file = cwd.join(program);
    match errno {
        Errno::ENOENT | Errno::ENOTDIR if !file.exists() => {
            error(Reason::CommandNotFound, format!("{name} does not exist"))
        }
        Errno::ENOENT => error(
            Reason::CommandNotFound,
            format!("{name} exists, but the interpreter or loader that it names does not"),
        ),
        Errno::EACCES | Errno::EPERM => {
            let mode = fs::metadata(&file).map_or(0, |found| found.permissions().mode() & 0o7777);
            error(
                Reason::CommandNotExecutable,
                format!("{name} may not be executed (mode {mode:o})"),
            )
        }
        Errno::ENOEXEC => error(
            Reason::CommandNotExecutable,
            format!("{name} is neither a program of this machine nor a script with a #! line"),
        ),
        Errno::E2BIG => error(
            Reason::ArgumentListTooLong,
            "arguments and environment are longer than the kernel takes (one argument: 128 KiB); \
             give long input on standard input"
                .to_owned(),
        ),
        other => error(Reason::StartFailed, format!("{name}: {}", other.desc())),
    }
}
