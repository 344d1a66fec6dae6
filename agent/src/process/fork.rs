//! A fork whose child changes itself, closes itself in if it is to, and becomes the program or does the work.
//!
//! Until then only bare system calls are made: nothing allocates, locks or looks up a name.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    sys::stat::Mode,
    unistd::{ForkResult, Pid, dup2_raw, pipe2, read},
};

use super::{lent, sandbox::Prepared, spawn, worker::Work};

/// What a child is for.
pub(super) enum Purpose<'a> {
    /// A program, as the kernel wants it.
    Program {
        program: &'a CStr,
        argv: &'a [*mut libc::c_char],
        environment: &'a [*mut libc::c_char],
    },
    /// Work of our own. The process that forks has one thread, and no memory of anybody else's task.
    Work(&'a Work<'a>),
}

/// What the process becomes.
pub(super) struct Plan<'a> {
    pub(super) purpose: Purpose<'a>,
    pub(super) cwd: &'a CStr,
    /// Input, output and error; without an input it reads nothing.
    pub(super) streams: Streams<'a>,
    pub(super) nice: i32,
    /// Becomes this user and group, with these groups beside.
    pub(super) user: Option<(u32, u32, Vec<libc::gid_t>)>,
    /// How far it is confined; `None` is not at all.
    pub(super) sandbox: Option<&'a Prepared>,
}

/// What the process gets as its standard streams.
pub(super) enum Streams<'a> {
    Pipes {
        stdin: Option<BorrowedFd<'a>>,
        stdout: BorrowedFd<'a>,
        stderr: BorrowedFd<'a>,
    },
    /// The terminal with this path.
    Terminal(&'a CStr),
}

/// How far the child came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    Session = 0,
    Namespaces,
    Mounts,
    Streams,
    User,
    Directory,
    Capabilities,
    Landlock,
    Filter,
    Program,
    Work,
}

const STAGES: [Stage; 11] = [
    Stage::Session,
    Stage::Namespaces,
    Stage::Mounts,
    Stage::Streams,
    Stage::User,
    Stage::Directory,
    Stage::Capabilities,
    Stage::Landlock,
    Stage::Filter,
    Stage::Program,
    Stage::Work,
];

/// Why the child did not come to its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) errno: Errno,
}

impl Failure {
    /// What could not be done, for whoever has to make it possible.
    pub(super) fn words(self) -> String {
        let what = match self.stage {
            Stage::Session => "start a session",
            Stage::Namespaces => "make namespaces for the task",
            Stage::Mounts => "mount what the task sees",
            Stage::Streams => "open the task's streams",
            Stage::User => "change the user",
            Stage::Directory => "enter the working directory",
            Stage::Capabilities => "drop capabilities",
            Stage::Landlock => "enter the Landlock rules",
            Stage::Filter => "set the filter of system calls",
            Stage::Program => "start the program",
            Stage::Work => "begin the work",
        };
        format!("it cannot {what}: {}", self.errno.desc())
    }
}

/// Starts a child, which has become the program, or is at work, when this returns.
pub(super) fn start(plan: &Plan<'_>) -> Result<Pid, Failure> {
    changed_signals();
    match plan.may_borrow() {
        true => lent(plan),
        false => forked(plan),
    }
}

/// A child in our memory, until it is the program.
fn lent(plan: &Plan<'_>) -> Result<Pid, Failure> {
    let mut failure = None;
    let child = lent::start(&mut || failure = Some(plan.fulfil())).map_err(failed)?;
    match failure {
        None => Ok(child),
        Some(failure) => {
            let _ = nix::sys::wait::waitpid(child, None);
            Err(failure)
        }
    }
}

fn failed(errno: Errno) -> Failure {
    Failure {
        stage: Stage::Session,
        errno,
    }
}

/// A child with memory of its own.
#[allow(unsafe_code)] // A child that changes itself before it becomes the program.
fn forked(plan: &Plan<'_>) -> Result<Pid, Failure> {
    let (heard, told) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    match spawn::fork(None).map_err(failed)? {
        ForkResult::Child => {
            let failure = plan.fulfil();
            let mut message = [0; 5];
            message[0] = failure.stage as u8;
            message[1..].copy_from_slice(&(failure.errno as i32).to_le_bytes());
            // SAFETY: the buffer is as long as it says; `_exit` runs nothing of ours.
            unsafe {
                libc::write(told.as_raw_fd(), message.as_ptr().cast(), message.len());
                libc::_exit(127)
            }
        }
        ForkResult::Parent { child } => {
            drop(told);
            match hear(&heard) {
                None => Ok(child),
                Some(failure) => {
                    let _ = nix::sys::wait::waitpid(child, None);
                    Err(failure)
                }
            }
        }
    }
}

/// What the child says; nothing once it has come to its purpose, which closes the pipe.
fn hear(pipe: &OwnedFd) -> Option<Failure> {
    let mut message = [0; 5];
    loop {
        match read(pipe, &mut message) {
            Ok(5) => break,
            Err(Errno::EINTR) => {}
            _ => return None,
        }
    }
    let [stage, errno @ ..] = message;
    Some(Failure {
        stage: *STAGES.get(usize::from(stage)).unwrap_or(&Stage::Session),
        errno: Errno::from_raw(i32::from_le_bytes(errno)),
    })
}

impl Plan<'_> {
    /// Whether the child can do without memory of its own: a worker cannot, nor can what makes a user namespace, and
    /// another user would make our memory one that nobody may look at.
    fn may_borrow(&self) -> bool {
        let is_program = matches!(self.purpose, Purpose::Program { .. });
        let shares = |sandbox: &Prepared| !sandbox.makes_a_user_namespace();
        is_program && self.user.is_none() && self.sandbox.is_none_or(shares)
    }

    /// Returns only if something failed.
    fn fulfil(&self) -> Failure {
        let mut stage = Stage::Session;
        let result = self.steps(&mut stage);
        let Err(errno) = result;
        Failure { stage, errno }
    }

    fn steps(&self, stage: &mut Stage) -> Result<std::convert::Infallible, Errno> {
        let sandbox = self.sandbox;
        reset_signals();
        nix::unistd::setsid()?;
        if self.nice > 0 {
            lower_priority(self.nice)?;
        }

        let mut scratch = None;
        if let Some(sandbox) = sandbox {
            *stage = Stage::Namespaces;
            sandbox.make_namespaces()?;
            *stage = Stage::Mounts;
            scratch = Some(sandbox.mount()?);
        }
        // Opened here, they belong to this namespace: what is read-only in it can be changed through none of them.
        *stage = Stage::Streams;
        self.open_streams()?;
        if let Some(sandbox) = sandbox {
            *stage = Stage::Capabilities;
            sandbox.drop_bounding_set()?;
        }
        *stage = Stage::User;
        if let Some((user, group, groups)) = &self.user {
            become_user(*user, *group, groups)?;
        }
        if let Some(sandbox) = sandbox {
            *stage = Stage::Capabilities;
            sandbox.drop_capabilities()?;
        }
        // Without them: with them, root would enter what is closed to the task.
        *stage = Stage::Directory;
        nix::unistd::chdir(self.cwd)?;
        if let (Some(sandbox), Some(scratch)) = (sandbox, &scratch) {
            *stage = Stage::Capabilities;
            sandbox.forbid_privileges()?;
            *stage = Stage::Landlock;
            sandbox.enter_rules(scratch)?;
            sandbox.close_files()?;
            *stage = Stage::Filter;
            sandbox.set_filter()?;
        }
        match self.purpose {
            Purpose::Program {
                program,
                argv,
                environment,
            } => {
                *stage = Stage::Program;
                Err(execute(program, argv, environment))
            }
            Purpose::Work(work) => {
                *stage = Stage::Work;
                work.prepare()?;
                work.run()
            }
        }
    }

    fn open_streams(&self) -> Result<(), Errno> {
        match self.streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                match stdin {
                    Some(stdin) => put(stdin.as_raw_fd(), 0)?,
                    None => {
                        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                        put(open(c"/dev/null", flags, Mode::empty())?.as_raw_fd(), 0)?;
                    }
                }
                put(stdout.as_raw_fd(), 1)?;
                put(stderr.as_raw_fd(), 2)
            }
            Streams::Terminal(path) => {
                // The first that a session's leader opens controls it.
                let terminal = open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
                (0..3).try_for_each(|number| put(terminal.as_raw_fd(), number))
            }
        }
    }
}

#[allow(unsafe_code)] // These numbers belong to nobody.
pub(super) fn put(file: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: this process is about to become another program, or to do its work; nobody uses these descriptors any more.
    let file = unsafe {
        let file = BorrowedFd::borrow_raw(file);
        dup2_raw(file, number)?
    };
    std::mem::forget(file);
    Ok(())
}

/// The signals that this process does not take in the default way, or a process that it was forked from. Looked at once:
/// to undo them one by one is most of what a child would do.
#[allow(unsafe_code)] // nix asks for a type of its own for every signal.
pub(super) fn changed_signals() -> &'static [libc::c_int] {
    static CHANGED: OnceLock<Vec<libc::c_int>> = OnceLock::new();
    CHANGED.get_or_init(|| {
        let is_changed = |signal: &libc::c_int| {
            // SAFETY: a structure of integers and pointers, which may be zero; the call writes it only.
            let action = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, ptr::null(), &mut action);
                action
            };
            // A nursery ignores it, and what it forks does not.
            action.sa_sigaction != libc::SIG_DFL || *signal == libc::SIGCHLD
        };
        (1..=libc::SIGRTMAX()).filter(is_changed).collect()
    })
}

#[allow(unsafe_code)] // nix asks for a type of its own for every signal.
fn reset_signals() {
    // SAFETY: the default of a signal runs no code of ours, and an empty mask is read during the call only.
    unsafe {
        for signal in changed_signals() {
            libc::signal(*signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

#[allow(unsafe_code)] // nix has no such call.
fn lower_priority(nice: i32) -> Result<(), Errno> {
    // SAFETY: the call takes three integers.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

#[allow(unsafe_code)] // nix takes its own types, which would have to be made first.
fn become_user(user: u32, group: u32, groups: &[libc::gid_t]) -> Result<(), Errno> {
    // SAFETY: the list is as long as it says. The calls of the kernel, not of the C library, which would take
    // locks to tell other threads; there are none.
    unsafe {
        let set = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        Errno::result(set)?;
        Errno::result(libc::syscall(libc::SYS_setresgid, group, group, group))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, user, user, user)).map(drop)
    }
}

#[allow(unsafe_code)] // nix takes lists that would have to be made first.
fn execute(program: &CStr, argv: &[*mut libc::c_char], environment: &[*mut libc::c_char]) -> Errno {
    // SAFETY: both lists end in a null pointer, and what they point to outlives the call.
    unsafe {
        libc::execve(
            program.as_ptr(),
            argv.as_ptr().cast(),
            environment.as_ptr().cast(),
        )
    };
    Errno::last()
}
