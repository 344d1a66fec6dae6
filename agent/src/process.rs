//! The one place that starts processes, and that can end all that came of them.
//!
//! The agent starts one process, the [`nursery`](crate::supervision); its supervisors start those of tasks. Each of
//! these leads a session of its own, carries its task in its environment ([`TASK_MARKER`]) and is a descendant of
//! its supervisor, which adopts what the task leaves behind: three ways to find everything that a task started. A
//! [`worker`] has no environment, starts nothing, and ends with its supervisor.

mod cell;
mod environment;
mod exit;
mod fork;
mod group;
mod launch;
mod lent;
mod lookup;
mod orphans;
mod sandbox;
mod spawn;
mod start;
mod tree;
mod user;
mod worker;

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use muster_proto::{
    ids::TaskId,
    v1::{Confinement, Environment, Limits, Reason},
};
use muster_runtime::descriptors;
use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::{Pid, dup2_stdin},
};

use self::environment::Variable;
use crate::failpoint;

pub(crate) use self::{
    cell::{Cell, Cells},
    exit::Exit,
    group::{Group, end_left_over, groups_of_tasks, sweep as sweep_groups},
    orphans::{adopt_orphans, reap_orphans},
    sandbox::{Layers, PROBED, ROOTS, Sandbox, Sockets, missing, probe},
    spawn::{Size, fork, resize},
    tree::{Ending, Tree, is_stopped, lives, signal, start_time},
    user::User,
    worker::{Outcome, Place},
};

/// The environment variable that names the task to its processes, and its processes to us.
pub(crate) const TASK_MARKER: &str = "MUSTER_TASK_ID";

/// Our own settings, and those of our telemetry, may be secrets, so no process inherits them. What the service
/// manager said to us is for us alone.
const OWN_VARIABLES: [&str; 4] = ["MUSTER_", "OTEL_", "NOTIFY_SOCKET", "WATCHDOG_"];

/// What every process on this host gets alike.
pub(crate) struct Host {
    user: User,
    environment: OnceLock<Vec<Variable>>,
    /// Standard input of those that are given none.
    null: OwnedFd,
    layers: Layers,
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
    /// The user to run as; `None` means ourselves.
    pub(crate) user: Option<String>,
    /// Standard input, output and error of the process.
    pub(crate) streams: Wanted,
    /// The part of our own environment that the process gets.
    pub(crate) inherited: Environment,
    /// Limits of the process, with all that it starts.
    pub(crate) limits: Limits,
    /// How far it is confined; `None` is not at all.
    pub(crate) sandbox: Option<Sandbox>,
}

/// Work that is no program.
pub(crate) struct Worker<'a> {
    /// The task that it belongs to.
    pub(crate) task_id: TaskId,
    /// The user to work as; `None` means ourselves.
    pub(crate) user: Option<String>,
    /// Limits of the process.
    pub(crate) limits: Limits,
    /// How far it is confined; `None` is not at all.
    pub(crate) sandbox: Option<Sandbox>,
    /// The work.
    pub(crate) work: &'a dyn Fn(&Place<'_>) -> Outcome,
}

/// What a process is to have as its standard streams.
pub(crate) enum Wanted {
    /// Pipes; one for standard input only if something will be put in.
    Pipes { stdin: bool },
    /// A terminal of this size and kind.
    Terminal { size: Size, term: String },
    /// Those of this process.
    Ours,
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

/// A process that runs, and our ends of what connects it.
pub(crate) struct Child {
    /// The process id.
    pub(crate) pid: Pid,
    /// Everything that comes of it.
    pub(crate) tree: Tree,
    /// The streams of the process.
    pub(crate) streams: Streams,
    /// Holds its limits, where there are any that need one.
    pub(crate) group: Option<Group>,
    /// How far it is confined; `None` is not at all.
    pub(crate) confinement: Option<Confinement>,
    /// The pipe by which a worker says what comes of its work.
    pub(crate) outcome: Option<OwnedFd>,
}

/// Our ends of a process's standard streams.
pub(crate) enum Streams {
    /// Pipes; `stdin` does not block.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The other side of its terminal; does not block.
    Terminal { master: OwnedFd },
    /// None: they are those of this process.
    Ours,
}

impl Host {
    /// Takes over what this process was started with.
    pub(crate) fn new() -> io::Result<Self> {
        // Here, so that supervisors have it from the nursery.
        fork::changed_signals();
        Ok(Self {
            user: User::current()?,
            environment: OnceLock::new(),
            null: std::fs::File::open("/dev/null")?.into(),
            layers: Layers::from_environment(),
        })
    }

    /// What processes may inherit. Made when it is needed first: a supervisor whose only task is a worker is to have none
    /// of it in its memory.
    fn environment(&self) -> &[Variable] {
        self.environment.get_or_init(|| {
            let own = |name: &str| OWN_VARIABLES.iter().any(|own| name.starts_with(own));
            let mut environment: Vec<Variable> = std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .filter(|(name, _)| !own(name))
                .filter_map(|(name, value)| Variable::new(name, &value))
                .collect();
            // What a service manager left out.
            for (name, value) in self.user.variables() {
                if environment.iter().all(|present| present.name() != name) {
                    environment.extend(Variable::new(name.to_owned(), &value));
                }
            }
            environment
        })
    }

    /// Lets go of what this process has as its standard input.
    pub(crate) fn close_stdin(&self) -> nix::Result<()> {
        dup2_stdin(&self.null)
    }

    /// The user whom commands run as by default.
    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    /// Starts this agent's own program, or another build of it, as a helper that talks on `socket`, its standard
    /// input. It leads a session of its own, inherits nothing else and says nothing. Files that it opens count
    /// against what this process was given at first, not against what it took.
    pub(crate) fn start_helper(
        &self,
        program: &Path,
        argument: &str,
        directory: &Path,
        socket: BorrowedFd<'_>,
    ) -> io::Result<Pid> {
        if let Err(errno) = spawn::keep_files_to_ourselves() {
            tracing::warn!(%errno, "files that whoever started this agent left open are open in tasks too: {errno}");
        }
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
        let failpoint = failpoint::variable().map(|variable| text(variable.as_bytes()));
        let environment = self.environment().iter();
        let environment = environment.map(|variable| Cow::Borrowed(variable.pair()));
        let prepared = spawn::Prepared {
            program: text(program.as_os_str().as_encoded_bytes())?,
            cwd: text(directory.as_os_str().as_encoded_bytes())?,
            argv: vec![text(b"muster-agent")?, text(argument.as_bytes())?],
            environment: environment
                .chain(failpoint.transpose()?.map(Cow::Owned))
                .collect(),
        };
        // For writing as for reading; a file that was opened for one only would fail the other.
        let null: OwnedFd = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?
            .into();
        let streams = [socket, null.as_fd(), null.as_fd()];
        let pid = spawn::as_ourselves(&prepared, spawn::Theirs::Files(streams))?;
        if let Some(given) = descriptors::given() {
            spawn::limit_files(pid, given);
        }
        orphans::expect(pid);
        Ok(pid)
    }
}

/// A helper is not needed any more. If it has not quite ended yet, it is cleared away with the orphans.
pub(crate) fn leave_helper(pid: Pid) {
    let _: Result<_, nix::Error> = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    orphans::forget(pid);
}
