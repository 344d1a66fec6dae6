//! The one place that starts processes, and that can end all that came of them.
//!
//! Each process leads a session of its own, carries its task in its environment
//! ([`TASK_MARKER`]) and is a descendant of this one, which adopts what a task leaves behind: three
//! ways to find everything that a task started.

mod lookup;
mod orphans;
mod spawn;
mod tree;
mod user;

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use muster_proto::{ids::TaskId, v1::Reason};
use muster_runtime::descriptors;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::{Pid, pipe2},
};
use tokio::{io::unix::AsyncFd, net::unix::pipe};

pub(crate) use self::{
    orphans::{adopt_orphans, reap_orphans},
    tree::{Tree, start_time},
    user::User,
};

/// The environment variable that names the task to its processes, and its processes to us.
pub(crate) const TASK_MARKER: &str = "MUSTER_TASK_ID";

/// Our own settings, and those of our telemetry, may be secrets, so no process inherits them.
const OWN_VARIABLES: [&str; 2] = ["MUSTER_", "OTEL_"];

/// The part of standard input that a pipe takes before anybody reads it.
const PIPE_CAPACITY: usize = 64 << 10;

/// What every process on this host gets alike; made once.
pub(crate) struct Host {
    user: User,
    environment: Vec<(String, String)>,
    /// Standard input of those that are given none.
    null: OwnedFd,
}

/// What to start.
pub(crate) struct Program {
    /// The task that it belongs to.
    pub(crate) task_id: TaskId,
    /// The program and its arguments; never empty.
    pub(crate) argv: Vec<String>,
    /// An absolute path; `None` means the home directory of the user.
    pub(crate) cwd: Option<PathBuf>,
    /// Set over what the host gives.
    pub(crate) env: HashMap<String, String>,
    /// Whom to run as; `None` means as ourselves.
    pub(crate) user: Option<String>,
    /// Given to it on standard input.
    pub(crate) stdin: Bytes,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StartError {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl StartError {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(nix::sys::signal::Signal),
}

/// A process that runs, and the pipes to it.
pub(crate) struct Child {
    /// Everything that comes of it.
    pub(crate) tree: Tree,
    /// Standard output and standard error.
    pub(crate) output: [pipe::Receiver; 2],
    /// Standard input, and what did not fit into its pipe at once.
    pub(crate) stdin: Option<(pipe::Sender, Bytes)>,
    /// The process itself.
    pub(crate) main: Main,
}

impl Host {
    /// Takes over what this process was started with.
    pub(crate) fn new() -> io::Result<Self> {
        let user = User::current()?;
        if let Err(errno) = spawn::keep_files_to_ourselves() {
            tracing::warn!(%errno, "files that whoever started this agent left open are open in tasks too: {errno}");
        }
        let mut environment: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| !OWN_VARIABLES.iter().any(|own| name.starts_with(own)))
            .collect();
        user.complete(&mut environment);
        Ok(Self {
            user,
            environment,
            null: std::fs::File::open("/dev/null")?.into(),
        })
    }

    /// Whom commands run as by default.
    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    /// Starts a process. It has begun when this returns. Blocks while the kernel loads the program.
    pub(crate) fn start(self: &Arc<Self>, program: Program) -> Result<Child, StartError> {
        let other = match &program.user {
            Some(name) if *name != self.user.name => Some(self.user.switch_to(name)?),
            _ => None,
        };
        let user = other.as_ref().unwrap_or(&self.user);

        let mut environment = self.environment.clone();
        if let Some(other) = &other {
            other.overwrite(&mut environment);
        }
        environment.retain(|(name, _)| !program.env.contains_key(name) && name != TASK_MARKER);
        environment.extend(program.env);
        environment.push((TASK_MARKER.to_owned(), program.task_id.to_string()));

        let cwd = program.cwd.unwrap_or_else(|| user.home.clone());
        let path = lookup::find(&program.argv[0], &cwd, &environment)?;
        let prepared = spawn::Prepared {
            program: c_string(path.as_os_str().as_encoded_bytes())?,
            cwd: c_string(cwd.as_os_str().as_encoded_bytes())?,
            argv: program
                .argv
                .iter()
                .map(|argument| c_string(argument.as_bytes()))
                .collect::<Result<_, _>>()?,
            environment: environment
                .iter()
                .map(|(name, value)| c_string(format!("{name}={value}").as_bytes()))
                .collect::<Result<_, _>>()?,
        };

        let (stdin, rest) = self.standard_input(program.stdin).map_err(no_pipe)?;
        let (stdout, stdout_theirs) = output_pipe().map_err(no_pipe)?;
        let (stderr, stderr_theirs) = output_pipe().map_err(no_pipe)?;
        let streams = [
            stdin.as_ref().unwrap_or(&self.null).as_fd(),
            stdout_theirs.as_fd(),
            stderr_theirs.as_fd(),
        ];
        let pid = match &other {
            None => spawn::as_ourselves(&prepared, streams),
            Some(other) => spawn::as_other(&prepared, streams, other),
        }
        .map_err(|errno| lookup::diagnose(errno, &path, &cwd))?;
        if let Some(given) = descriptors::given() {
            spawn::limit_files(pid, given);
        }

        Ok(Child {
            tree: Tree::new(pid, start_time(pid), program.task_id),
            output: [stdout, stderr],
            stdin: rest,
            main: Main::new(pid),
        })
    }

    /// What the process gets as its standard input, and what is to be written later.
    #[allow(clippy::type_complexity)]
    fn standard_input(
        &self,
        mut bytes: Bytes,
    ) -> io::Result<(Option<OwnedFd>, Option<(pipe::Sender, Bytes)>)> {
        if bytes.is_empty() {
            return Ok((None, None));
        }
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        let now = bytes.split_to(bytes.len().min(PIPE_CAPACITY));
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let written = nix::unistd::write(&ours, &now)?;
        if written == now.len() && bytes.is_empty() {
            return Ok((Some(theirs), None));
        }
        // The pipe took less than its usual size: a host that is short of pipe memory.
        let mut rest = now.slice(written..).to_vec();
        rest.extend_from_slice(&bytes);
        Ok((
            Some(theirs),
            Some((pipe::Sender::from_owned_fd(ours)?, rest.into())),
        ))
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, StartError> {
    CString::new(bytes).map_err(|_| {
        StartError::new(
            Reason::StartFailed,
            "arguments, environment and directory may not hold a NUL byte",
        )
    })
}

fn no_pipe(error: io::Error) -> StartError {
    StartError::new(
        Reason::StartFailed,
        format!("no pipe for the process: {error}"),
    )
}

fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

/// A process that this one started. Its id stays taken until this is dropped, so that nothing else can
/// be mistaken for it.
pub(crate) struct Main {
    pid: Pid,
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl Main {
    fn new(pid: Pid) -> Self {
        orphans::expect(pid);
        Self {
            pid,
            pidfd: spawn::pidfd(pid).ok(),
        }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for the process to end; not for what it started.
    pub(crate) async fn exited(&self) -> io::Result<Exit> {
        let pid = self.pid;
        if let Some(pidfd) = &self.pidfd {
            let _ready = pidfd.readable().await?;
        } else {
            // A kernel without pidfds (before 5.3): a thread waits.
            tokio::task::spawn_blocking(move || {
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            })
            .await??;
        }
        match waitid(
            Id::Pid(pid),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG,
        )? {
            WaitStatus::Exited(_, code) => Ok(Exit::Code(code)),
            WaitStatus::Signaled(_, signal, _) => Ok(Exit::Signal(signal)),
            other => Err(io::Error::other(format!("unexpected end: {other:?}"))),
        }
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        // Still running only if the agent gives up on its tasks; then its orphans' reaper takes it.
        let _: Result<_, Errno> = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
        orphans::forget(self.pid);
    }
}
