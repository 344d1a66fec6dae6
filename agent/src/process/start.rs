//! How a task's process comes to be: who it is, what it inherits, its streams, its group.

use std::{
    collections::HashMap,
    ffi::{CString, NulError},
    mem,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use muster_proto::v1::{Confinement, Reason};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::fstat,
    unistd::{Pid, pipe2},
};

use super::{
    Child, Host, Program, Size, StartError, Streams, TASK_MARKER, Tree, User, Wanted, Worker,
    environment::{self, Variables},
    group::Group,
    launch::{Given, Launch, Prepared, Purpose},
    lookup, spawn, start_time,
    worker::{Place, Work},
};

/// A process that has begun, how far it is confined, and our ends of its streams.
type Begun = (Pid, Option<Confinement>, Streams);

impl Host {
    /// Starts the process of a task. It has begun when this returns. Blocks while the kernel loads the program.
    pub(crate) fn start(&self, mut program: Program) -> Result<Child, StartError> {
        let other = self.other(program.user.as_deref())?;
        let user = other.as_ref().unwrap_or(&self.user);
        let set = variables(&mut program, other.as_ref());
        let variables = Variables::new(self.environment(), &program.inherited, set);

        let cwd = program.cwd.unwrap_or_else(|| user.home.clone());
        let path = lookup::find(&program.argv[0], &cwd, variables.get("PATH"))?;
        let kernel = spawn::Prepared {
            program: c_string(path.as_os_str().as_encoded_bytes())?,
            cwd: c_string(cwd.as_os_str().as_encoded_bytes())?,
            argv: program
                .argv
                .iter()
                .map(|argument| c_string(argument.as_bytes()))
                .collect::<Result<_, _>>()?,
            environment: variables.pairs().map_err(no_nul)?,
        };
        let group = Group::wanted(program.task_id, &program.limits)?;
        let launch = Launch {
            purpose: Purpose::Program(&Prepared {
                kernel,
                path: &path,
                cwd: &cwd,
            }),
            user,
            change: spawn::Change {
                user: other.as_ref(),
                nice: program.limits.nice,
            },
            group: group.as_ref(),
            sandbox: program.sandbox.as_ref(),
            layers: &self.layers,
        };
        let (pid, confinement, streams) = match program.streams {
            Wanted::Pipes { stdin } => self.on_pipes(&launch, stdin)?,
            Wanted::Terminal { size, .. } => on_a_terminal(&launch, size, other.as_ref())?,
            Wanted::Ours => self.on_ours(&launch)?,
        };
        Ok(Child {
            pid,
            tree: Tree::new(pid, start_time(pid), program.task_id).with_our_children(),
            streams,
            group,
            confinement,
            outcome: None,
        })
    }

    /// Forks a worker for a task. It is at work when this returns. This process has one thread and has not served anybody
    /// before, since the worker has a copy of its memory.
    pub(crate) fn start_worker(&self, worker: Worker<'_>) -> Result<Child, StartError> {
        let other = self.other(worker.user.as_deref())?;
        let user = other.as_ref().unwrap_or(&self.user);
        let group = Group::wanted(worker.task_id, &worker.limits)?;
        let (outcome, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
        let place = Place {
            user: &user.name,
            home: &user.home,
            sandbox: worker.sandbox.as_ref(),
        };
        let work = || (worker.work)(&place);
        let launch = Launch {
            purpose: Purpose::Work(&Work::new(theirs.as_fd(), &work)),
            user,
            change: spawn::Change {
                user: other.as_ref(),
                nice: worker.limits.nice,
            },
            group: group.as_ref(),
            sandbox: worker.sandbox.as_ref(),
            layers: &self.layers,
        };
        let (pid, confinement, streams) = self.on_pipes(&launch, false)?;
        Ok(Child {
            pid,
            tree: Tree::new(pid, start_time(pid), worker.task_id).with_our_children(),
            streams,
            group,
            confinement,
            outcome: Some(outcome),
        })
    }

    /// The user whom a process runs as, if not ourselves.
    fn other(&self, user: Option<&str>) -> Result<Option<User>, StartError> {
        match user {
            Some(name) if name != self.user.name => self.user.switch_to(name).map(Some),
            _ => Ok(None),
        }
    }

    fn on_pipes(&self, launch: &Launch<'_>, stdin: bool) -> Result<Begun, StartError> {
        let (stdin_theirs, stdin) = match stdin {
            true => input_pipe().map(|(theirs, ours)| (Some(theirs), Some(ours))),
            false => Ok((None, None)),
        }
        .map_err(no_pipe)?;
        let (stdout, stdout_theirs) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
        let (stderr, stderr_theirs) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
        let (pid, confinement) = launch.start(Given::Pipes {
            stdin: stdin_theirs.as_ref(),
            stdout: &stdout_theirs,
            stderr: &stderr_theirs,
            null: &self.null,
        })?;
        let streams = Streams::Pipes {
            stdin,
            stdout,
            stderr,
        };
        Ok((pid, confinement, streams))
    }

    /// With the streams of this process.
    fn on_ours(&self, launch: &Launch<'_>) -> Result<Begun, StartError> {
        let own = |file: BorrowedFd<'_>| file.try_clone_to_owned();
        let ours = own(std::io::stdout().as_fd())
            .and_then(|stdout| Ok((stdout, own(std::io::stderr().as_fd())?)));
        let (stdout, stderr) = ours.map_err(|error| no_pipe(spawn::errno(error)))?;
        // One that is no input is opened anew, as for a task.
        let stdin = match is_null(std::io::stdin().as_fd()) {
            true => None,
            false => own(std::io::stdin().as_fd()).ok(),
        };
        let (pid, confinement) = launch.start(Given::Pipes {
            stdin: stdin.as_ref(),
            stdout: &stdout,
            stderr: &stderr,
            null: &self.null,
        })?;
        Ok((pid, confinement, Streams::Ours))
    }
}

fn on_a_terminal(
    launch: &Launch<'_>,
    size: Size,
    owner: Option<&User>,
) -> Result<Begun, StartError> {
    let terminal = spawn::Terminal::open(size, owner).map_err(no_terminal)?;
    let path = &terminal.path;
    let (pid, confinement) = launch.start(Given::Terminal { path })?;
    let master = terminal.master;
    Ok((pid, confinement, Streams::Terminal { master }))
}

/// What is set for a process over what it inherits. `other`: whom it runs as, if not as ourselves.
fn variables(program: &mut Program, other: Option<&User>) -> HashMap<String, String> {
    let mut set = mem::take(&mut program.env);
    if let Wanted::Terminal { term, .. } = &program.streams {
        set.entry("TERM".to_owned()).or_insert_with(|| term.clone());
    }
    if let Some(sandbox) = &program.sandbox {
        set.entry("TMPDIR".to_owned())
            .or_insert_with(|| sandbox.scratch().to_owned());
    }
    for (name, value) in other.iter().flat_map(|user| user.variables()) {
        if environment::keeps(&program.inherited, name) {
            set.entry(name.to_owned()).or_insert(value);
        }
    }
    set.insert(TASK_MARKER.to_owned(), program.task_id.to_string());
    set
}

fn c_string(bytes: &[u8]) -> Result<CString, StartError> {
    CString::new(bytes).map_err(no_nul)
}

fn no_nul(_: NulError) -> StartError {
    StartError::new(
        Reason::StartFailed,
        "arguments, environment and directory may not hold a NUL byte",
    )
}

fn no_pipe(error: nix::Error) -> StartError {
    StartError::new(
        Reason::StartFailed,
        format!("no pipe for the process: {}", error.desc()),
    )
}

fn no_terminal(error: nix::Error) -> StartError {
    StartError::new(
        Reason::StartFailed,
        format!("no terminal for the process: {}", error.desc()),
    )
}

/// Whether this is the device that has nothing to read.
fn is_null(file: BorrowedFd<'_>) -> bool {
    let null = nix::sys::stat::stat("/dev/null").map(|found| found.st_rdev);
    fstat(file).is_ok_and(|found| Ok(found.st_rdev) == null)
}

/// A pipe for standard input: the end of the process, and ours, which does not block.
fn input_pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((theirs, ours))
}
