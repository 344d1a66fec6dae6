//! Which way a process is started: as we are, changed first, or confined.

use std::{
    ffi::CStr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use muster_proto::v1::{Confinement, Reason};
use nix::{errno::Errno, unistd::Pid};

use super::{
    StartError,
    fork::{self, Failure, Stage},
    group::Group,
    lookup,
    sandbox::{self, Layers, Sandbox},
    spawn,
    user::User,
};

/// A process that only lacks its streams.
pub(super) struct Launch<'a> {
    pub(super) prepared: &'a spawn::Prepared<'a>,
    /// Whom it runs as.
    pub(super) user: &'a User,
    /// What changes before it becomes the program.
    pub(super) change: spawn::Change<'a>,
    pub(super) group: Option<&'a Group>,
    pub(super) sandbox: Option<&'a Sandbox>,
    pub(super) layers: &'a Layers,
    /// The program and the directory, for words.
    pub(super) path: &'a Path,
    pub(super) cwd: &'a Path,
}

/// What it gets as its standard streams.
#[derive(Clone, Copy)]
pub(super) enum Given<'a> {
    Pipes {
        stdin: Option<&'a OwnedFd>,
        stdout: &'a OwnedFd,
        stderr: &'a OwnedFd,
        /// Instead of the input.
        null: &'a OwnedFd,
    },
    Terminal {
        slave: &'a OwnedFd,
        path: &'a CStr,
    },
}

impl Launch<'_> {
    /// Starts it, and says how far it is confined.
    pub(super) fn start(&self, given: Given<'_>) -> Result<(Pid, Option<Confinement>), StartError> {
        match self.sandbox {
            Some(sandbox) => {
                let (pid, confinement) = self.confined(sandbox, given)?;
                Ok((pid, Some(confinement)))
            }
            None => Ok((self.free(given)?, None)),
        }
    }

    fn free(&self, given: Given<'_>) -> Result<Pid, StartError> {
        let (files, theirs, terminal): ([BorrowedFd<'_>; 3], _, _) = match given {
            Given::Pipes {
                stdin,
                stdout,
                stderr,
                null,
            } => {
                let files = [
                    stdin.unwrap_or(null).as_fd(),
                    stdout.as_fd(),
                    stderr.as_fd(),
                ];
                (files, spawn::Theirs::Files(files), false)
            }
            Given::Terminal { slave, path } => {
                ([slave.as_fd(); 3], spawn::Theirs::Terminal(path), true)
            }
        };
        let pid = self.within(|| match self.change.is_any() {
            false => spawn::as_ourselves(self.prepared, theirs),
            true => spawn::changed(self.prepared, files, terminal, self.change),
        })?;
        pid.map_err(|errno| lookup::diagnose(errno, self.path, self.cwd))
    }

    fn confined(
        &self,
        sandbox: &Sandbox,
        given: Given<'_>,
    ) -> Result<(Pid, Confinement), StartError> {
        let (streams, terminal) = match given {
            Given::Pipes {
                stdin,
                stdout,
                stderr,
                ..
            } => {
                let streams = fork::Streams::Pipes {
                    stdin: stdin.map(OwnedFd::as_fd),
                    stdout: stdout.as_fd(),
                    stderr: stderr.as_fd(),
                };
                (streams, None)
            }
            Given::Terminal { path, .. } => (fork::Streams::Terminal(path), Some(path)),
        };
        let ids = (self.user.uid.as_raw(), self.user.gid.as_raw());
        let closed = sandbox::Prepared::new(sandbox, ids, terminal, self.layers).map_err(
            |errno| match (errno, sandbox::missing()) {
                (_, Some(missing)) => unenforceable(&missing),
                (errno, None) => unenforceable(errno.desc()),
            },
        )?;
        let (argv, environment) = (
            spawn::pointers(&self.prepared.argv),
            spawn::pointers(&self.prepared.environment),
        );
        let other = self.change.user.map(|user| {
            let groups = user.groups.iter().map(|group| group.as_raw());
            (user.uid.as_raw(), user.gid.as_raw(), groups.collect())
        });
        let plan = fork::Plan {
            program: &self.prepared.program,
            argv: &argv,
            environment: &environment,
            cwd: &self.prepared.cwd,
            streams,
            nice: self.change.nice,
            user: other,
            sandbox: &closed,
        };
        let pid = self
            .within(|| fork::start(&plan))?
            .map_err(|failure| self.diagnose(failure))?;
        Ok((pid, sandbox.report(closed.features())))
    }

    /// Starts something in the group of the task, if it has one.
    fn within<T>(&self, start: impl FnOnce() -> T) -> Result<T, StartError> {
        match self.group {
            Some(group) => group.within(start),
            None => Ok(start()),
        }
    }

    /// Says what stood in the way of a confined process: its sandbox, or what would have anyway.
    fn diagnose(&self, failure: Failure) -> StartError {
        let Failure { stage, errno } = failure;
        let denied = matches!(errno, Errno::EACCES | Errno::EPERM | Errno::ENOENT);
        match stage {
            Stage::Directory if denied && self.cwd.is_dir() => StartError::new(
                Reason::PathDenied,
                format!(
                    "the working directory {} is not open to a task of this mode on this host",
                    self.cwd.display()
                ),
            ),
            Stage::Program if denied && lookup::is_executable(&self.cwd.join(self.path)) => {
                StartError::new(
                    Reason::ProgramDenied,
                    format!(
                        "{} is not for a task of this mode to run on this host",
                        self.path.display()
                    ),
                )
            }
            Stage::Directory | Stage::Program => lookup::diagnose(errno, self.path, self.cwd),
            _ => unenforceable(&failure.words()),
        }
    }
}

fn unenforceable(cause: &str) -> StartError {
    let message = format!(
        "this host cannot enforce the mode of the task: {cause}; run it on another host, or let an operator give \
         this one another mode"
    );
    StartError::new(Reason::ModeUnenforceable, message)
}
