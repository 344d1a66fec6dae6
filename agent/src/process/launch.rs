//! Which way a process is started: as we are, or by a fork that changes it first or confines it.

use std::{
    ffi::CStr,
    os::fd::{AsFd as _, OwnedFd},
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
    worker::Work,
};

/// A process that only lacks its streams.
pub(super) struct Launch<'a> {
    pub(super) purpose: Purpose<'a>,
    /// The user whom it runs as.
    pub(super) user: &'a User,
    /// What changes before it comes to its purpose.
    pub(super) change: spawn::Change<'a>,
    pub(super) group: Option<&'a Group>,
    pub(super) sandbox: Option<&'a Sandbox>,
    pub(super) layers: &'a Layers,
}

/// The purpose of a process.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    Program(&'a Prepared<'a>),
    Work(&'a Work<'a>),
}

/// A program as the kernel wants it, and as people name it.
pub(super) struct Prepared<'a> {
    pub(super) kernel: spawn::Prepared<'a>,
    pub(super) path: &'a Path,
    pub(super) cwd: &'a Path,
}

/// The standard streams that a process gets.
#[derive(Clone, Copy)]
pub(super) enum Given<'a> {
    Pipes {
        stdin: Option<&'a OwnedFd>,
        stdout: &'a OwnedFd,
        stderr: &'a OwnedFd,
        /// Instead of the input.
        null: &'a OwnedFd,
    },
    /// The one with this path, whose process's side is open.
    Terminal { path: &'a CStr },
}

impl Launch<'_> {
    /// Starts it, and says how far it is confined.
    pub(super) fn start(&self, given: Given<'_>) -> Result<(Pid, Option<Confinement>), StartError> {
        match self.sandbox {
            Some(sandbox) => {
                let (pid, confinement) = self.confined(sandbox, given)?;
                Ok((pid, Some(confinement)))
            }
            None => match self.purpose {
                Purpose::Program(program) if !self.change.is_any() => {
                    Ok((self.free(program, given)?, None))
                }
                _ => Ok((self.forked(None, given)?, None)),
            },
        }
    }

    fn free(&self, program: &Prepared<'_>, given: Given<'_>) -> Result<Pid, StartError> {
        let streams = match given {
            Given::Pipes {
                stdin,
                stdout,
                stderr,
                null,
            } => spawn::Theirs::Files([
                stdin.unwrap_or(null).as_fd(),
                stdout.as_fd(),
                stderr.as_fd(),
            ]),
            Given::Terminal { path } => spawn::Theirs::Terminal(path),
        };
        let pid = self.within(|| spawn::as_ourselves(&program.kernel, streams))?;
        pid.map_err(|errno| lookup::diagnose(errno, program.path, program.cwd))
    }

    fn confined(
        &self,
        sandbox: &Sandbox,
        given: Given<'_>,
    ) -> Result<(Pid, Confinement), StartError> {
        let terminal = match given {
            Given::Pipes { .. } => None,
            Given::Terminal { path } => Some(path),
        };
        let ids = (self.user.uid.as_raw(), self.user.gid.as_raw());
        let closed = sandbox::Prepared::new(sandbox, ids, terminal, self.layers).map_err(
            |errno| match (errno, sandbox::missing()) {
                (_, Some(missing)) => unenforceable(&missing),
                (errno, None) => unenforceable(errno.desc()),
            },
        )?;
        let pid = self.forked(Some(&closed), given)?;
        Ok((pid, sandbox.report(closed.features())))
    }

    fn forked(
        &self,
        sandbox: Option<&sandbox::Prepared>,
        given: Given<'_>,
    ) -> Result<Pid, StartError> {
        let streams = match given {
            Given::Pipes {
                stdin,
                stdout,
                stderr,
                ..
            } => fork::Streams::Pipes {
                stdin: stdin.map(OwnedFd::as_fd),
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
            },
            Given::Terminal { path } => fork::Streams::Terminal(path),
        };
        let (argv, environment);
        let (purpose, cwd) = match self.purpose {
            Purpose::Program(Prepared { kernel, .. }) => {
                argv = spawn::pointers(&kernel.argv);
                environment = spawn::pointers(&kernel.environment);
                let purpose = fork::Purpose::Program {
                    program: &kernel.program,
                    argv: &argv,
                    environment: &environment,
                };
                (purpose, kernel.cwd.as_c_str())
            }
            // A home directory that is not there is no obstacle to it.
            Purpose::Work(work) => (fork::Purpose::Work(work), c"/"),
        };
        let user = self.change.user.map(|user| {
            let groups = user.groups.iter().map(|group| group.as_raw());
            (user.uid.as_raw(), user.gid.as_raw(), groups.collect())
        });
        let plan = fork::Plan {
            purpose,
            cwd,
            streams,
            nice: self.change.nice,
            user,
            sandbox,
        };
        self.within(|| fork::start(&plan))?
            .map_err(|failure| self.diagnose(failure))
    }

    /// Starts something in the group of the task, if it has one.
    fn within<T>(&self, start: impl FnOnce() -> T) -> Result<T, StartError> {
        match self.group {
            Some(group) => group.within(start),
            None => Ok(start()),
        }
    }

    /// Says what stood in the way: the sandbox, or what would have anyway.
    fn diagnose(&self, failure: Failure) -> StartError {
        let Failure { stage, errno } = failure;
        let is_confined = self.sandbox.is_some();
        let denied = is_confined && matches!(errno, Errno::EACCES | Errno::EPERM | Errno::ENOENT);
        match (stage, self.purpose) {
            (Stage::Directory, Purpose::Program(program)) if denied && program.cwd.is_dir() => {
                let message = format!(
                    "the working directory {} is not open to a task of this mode on this host",
                    program.cwd.display()
                );
                StartError::new(Reason::PathDenied, message)
            }
            (Stage::Program, Purpose::Program(program))
                if denied && lookup::is_executable(&program.cwd.join(program.path)) =>
            {
                let message = format!(
                    "{} is not for a task of this mode to run on this host",
                    program.path.display()
                );
                StartError::new(Reason::ProgramDenied, message)
            }
            (Stage::Directory | Stage::Program, Purpose::Program(program)) => {
                lookup::diagnose(errno, program.path, program.cwd)
            }
            _ if is_confined => unenforceable(&failure.words()),
            _ => {
                let message = format!("no process for the task: {}", failure.words());
                StartError::new(Reason::StartFailed, message)
            }
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
