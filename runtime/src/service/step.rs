//! One step of an installation or a removal. Each can be done again without harm.

use std::{
    fmt, fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{Manager, ServiceError, file_error, systemctl, transfer};

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A system user that nobody logs in as, unless it is there.
    Account {
        name: String,
        home: PathBuf,
        words: String,
    },
    /// A directory that everybody may look through; what is secret lies deeper.
    Directory(PathBuf),
    /// A directory of secrets takes its place.
    Move { from: PathBuf, to: PathBuf },
    /// The program, where only root can change it.
    Program { from: PathBuf, to: PathBuf },
    /// The unit.
    Unit { path: PathBuf, text: String },
    /// systemd reads its units anew.
    Reload,
    /// Starts with the machine, or with its user.
    Enable(String),
    /// Starts now, or again if it runs.
    Restart(String),
    /// Stops, and does not start by itself any more.
    Disable(String),
    /// Ends what a stopped unit has left running.
    End(String),
    /// Ends what is in a control group, and in those below it.
    Clear(PathBuf),
    /// A file goes.
    Remove(PathBuf),
    /// A directory goes, with all in it.
    Purge(PathBuf),
    /// A directory goes if nothing is in it.
    Tidy(PathBuf),
    /// The system user goes.
    Dismiss(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account { name, .. } => write!(f, "make the system user {name}"),
            Self::Directory(path) => write!(f, "make {} (0755)", path.display()),
            Self::Move { from, to } => {
                write!(f, "move {} to {} (0700)", from.display(), to.display())
            }
            Self::Program { from, to } => {
                write!(f, "copy {} to {} (0755)", from.display(), to.display())
            }
            Self::Unit { path, .. } => write!(f, "write {}", path.display()),
            Self::Reload => f.write_str("have systemd read its units"),
            Self::Enable(unit) => write!(f, "enable {unit}"),
            Self::Restart(unit) => write!(f, "start {unit}, or start it again"),
            Self::Disable(unit) => write!(f, "stop and disable {unit}"),
            Self::End(unit) => write!(f, "end what {unit} has left running"),
            Self::Clear(group) => write!(f, "end all that is in {}", group.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::Purge(path) => write!(f, "remove {} and all in it", path.display()),
            Self::Tidy(path) => write!(f, "remove {} if it is empty", path.display()),
            Self::Dismiss(name) => write!(f, "remove the system user {name}"),
        }
    }
}

impl Step {
    /// Does it.
    pub(super) fn take(&self, manager: Manager) -> Result<(), ServiceError> {
        match self {
            Self::Account { name, home, words } => make_account(name, home, words),
            Self::Directory(path) => make_directory(path),
            Self::Move { from, to } => {
                transfer::move_directory(from, to)?;
                // The data directory that it was in, if it was all of it.
                let _ = from.parent().map(fs::remove_dir);
                Ok(())
            }
            Self::Program { from, to } => {
                make_directory(to.parent().unwrap_or(to))?;
                let mut source = fs::File::open(from).map_err(file_error(from))?;
                replace(to, 0o755, |file| io::copy(&mut source, file).map(drop))
            }
            Self::Unit { path, text } => {
                make_directory(path.parent().unwrap_or(path))?;
                replace(path, 0o644, |file| file.write_all(text.as_bytes()))
            }
            Self::Reload => manager.call(&["daemon-reload"]).map(drop),
            Self::Enable(unit) => manager.call(&["--quiet", "enable", unit]).map(drop),
            Self::Restart(unit) => restart(manager, unit),
            Self::Disable(unit) => {
                manager.call(&["--quiet", "disable", "--now", unit])?;
                // A failed unit would be remembered without its file; one that never failed refuses.
                let _ = manager.call(&["--quiet", "reset-failed", unit]);
                Ok(())
            }
            Self::End(unit) => {
                // Refused where nothing is left, which is the usual case.
                let _ = manager.call(&["kill", "--signal=KILL", unit]);
                Ok(())
            }
            Self::Clear(group) => {
                // Since Linux 5.14. It may be gone by now.
                let _ = fs::write(group.join("cgroup.kill"), "1");
                Ok(())
            }
            Self::Remove(path) => absent(path, fs::remove_file(path)),
            Self::Purge(path) => {
                // Something that is no service may run in it.
                let _lock = transfer::hold(path)?;
                absent(path, fs::remove_dir_all(path))
            }
            Self::Tidy(path) => match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                done => absent(path, done),
            },
            Self::Dismiss(name) => match nix::unistd::User::from_name(name) {
                Ok(Some(_)) => systemctl::call("userdel", &[name]).map(drop),
                _ => Ok(()),
            },
        }
    }
}

/// Gone is what was asked for.
fn absent(path: &Path, done: io::Result<()>) -> Result<(), ServiceError> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path)(error)),
        _ => Ok(()),
    }
}

fn make_directory(path: &Path) -> Result<(), ServiceError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(file_error(path))
}

/// Replaces a file whole: who reads or runs it has the old one or the new one.
fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> Result<(), ServiceError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    absent(&new, fs::remove_file(&new))?;
    let replaced = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| {
            write(&mut file)?;
            // The umask of whoever installs is not the mode that a service needs.
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    replaced.map_err(|error| {
        // What is half written is of no use to anybody.
        let _ = fs::remove_file(&new);
        file_error(path)(error)
    })
}

/// systemd's own tool where there is one: it takes a free id of the right range.
fn make_account(name: &str, home: &Path, words: &str) -> Result<(), ServiceError> {
    if matches!(nix::unistd::User::from_name(name), Ok(Some(_))) {
        return Ok(());
    }
    let home = home.display().to_string();
    let line = format!("u {name} - \"{words}\" {home}");
    if systemctl::call("systemd-sysusers", &["--inline", &line]).is_ok() {
        return Ok(());
    }
    let arguments = [
        "--system",
        "--no-create-home",
        "--home-dir",
        &home,
        "--shell",
        "/usr/sbin/nologin",
        name,
    ];
    systemctl::call("useradd", &arguments).map(drop)
}

/// Returns once the service says that it is ready, or with its last words.
fn restart(manager: Manager, unit: &str) -> Result<(), ServiceError> {
    manager
        .call(&["restart", unit])
        .map(drop)
        .map_err(|error| match error {
            ServiceError::Command {
                command, detail, ..
            } => {
                let log = manager.log(unit);
                let detail = match log.trim() {
                    "" => detail,
                    log => format!("{detail}\n{log}"),
                };
                ServiceError::Command {
                    command,
                    detail,
                    next: format!(
                        "read `{}`, mend what it says, then install again: it is safe",
                        manager.journal(unit)
                    ),
                }
            }
            other => other,
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::service::Scope;

    #[test]
    fn files_are_replaced_whole_and_removed_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("units/a.service");
        let manager = Manager(Scope::User);
        for text in ["one\n", "two\n"] {
            let step = Step::Unit {
                path: path.clone(),
                text: text.to_owned(),
            };
            step.take(manager).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let program = directory.path().join("programs/a");
        let step = Step::Program {
            from: path.clone(),
            to: program.clone(),
        };
        step.take(manager).unwrap();
        let mode = fs::metadata(&program).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        let parent = path.parent().unwrap().to_owned();
        Step::Tidy(parent.clone()).take(manager).unwrap();
        for _ in 0..2 {
            Step::Remove(path.clone()).take(manager).unwrap();
            Step::Tidy(parent.clone()).take(manager).unwrap();
        }
        assert!(!parent.exists());
    }

    #[test]
    fn what_runs_in_a_directory_keeps_it_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        let (purge, manager) = (Step::Purge(path.clone()), Manager(Scope::System));
        let held = transfer::hold(&path).unwrap();
        assert!(matches!(purge.take(manager), Err(ServiceError::Move(_))));
        assert!(path.join("lock").exists());
        drop(held);
        purge.take(manager).unwrap();
        assert!(!path.exists());
    }
}
