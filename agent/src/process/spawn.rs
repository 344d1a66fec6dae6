//! The system calls that start a process.

use std::{
    borrow::Cow,
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    libc,
    pty::{Winsize, openpty},
    sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr},
    unistd::{ForkResult, Pid, fchown},
};

use super::user::User;

/// Everything the kernel needs to know, as it wants it.
pub(super) struct Prepared<'a> {
    pub(super) program: CString,
    pub(super) argv: Vec<CString>,
    pub(super) environment: Vec<Cow<'a, CStr>>,
    pub(super) cwd: CString,
}

/// What a process gets as its standard streams.
#[derive(Clone, Copy)]
pub(super) enum Theirs<'a> {
    /// These files.
    Files([BorrowedFd<'a>; 3]),
    /// The terminal with this path, which controls its session: the first that a session's leader opens does.
    Terminal(&'a CStr),
}

/// Starts a process as our own user, in a session of its own.
///
/// `posix_spawn` shares our memory with the child until it has the new program, so a start costs the
/// same however large we are.
#[allow(unsafe_code)] // The standard library's way there cannot start a session without a slow fork.
pub(super) fn as_ourselves(prepared: &Prepared<'_>, streams: Theirs<'_>) -> Result<Pid, Errno> {
    let argv = pointers(&prepared.argv);
    let environment = pointers(&prepared.environment);
    let flags = libc::POSIX_SPAWN_SETSID
        | libc::POSIX_SPAWN_SETSIGMASK as libc::c_short
        | libc::POSIX_SPAWN_SETSIGDEF as libc::c_short;

    // SAFETY: every structure is initialised by its own `init` before use and destroyed once; every
    // pointer outlives the calls; the file descriptors are open for as long as they are borrowed.
    unsafe {
        let mut actions = std::mem::zeroed();
        let mut attributes = std::mem::zeroed();
        check(libc::posix_spawn_file_actions_init(&mut actions))?;
        if let Err(errno) = check(libc::posix_spawnattr_init(&mut attributes)) {
            libc::posix_spawn_file_actions_destroy(&mut actions);
            return Err(errno);
        }
        let mut pid = 0;
        let result = (|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            let mut all = std::mem::zeroed();
            libc::sigfillset(&mut all);
            check(libc::posix_spawnattr_setsigmask(&mut attributes, &none))?;
            check(libc::posix_spawnattr_setsigdefault(&mut attributes, &all))?;
            check(libc::posix_spawnattr_setflags(&mut attributes, flags))?;
            match streams {
                Theirs::Files(files) => {
                    for (number, file) in (0..).zip(&files) {
                        let fd = file.as_raw_fd();
                        check(libc::posix_spawn_file_actions_adddup2(
                            &mut actions,
                            fd,
                            number,
                        ))?;
                    }
                }
                Theirs::Terminal(path) => {
                    check(libc::posix_spawn_file_actions_addopen(
                        &mut actions,
                        0,
                        path.as_ptr(),
                        libc::O_RDWR,
                        0,
                    ))?;
                    for number in 1..3 {
                        check(libc::posix_spawn_file_actions_adddup2(
                            &mut actions,
                            0,
                            number,
                        ))?;
                    }
                }
            }
            let cwd = prepared.cwd.as_ptr();
            check(libc::posix_spawn_file_actions_addchdir_np(
                &mut actions,
                cwd,
            ))?;
            check(libc::posix_spawn(
                &mut pid,
                prepared.program.as_ptr(),
                &actions,
                &attributes,
                argv.as_ptr(),
                environment.as_ptr(),
            ))
        })();
        libc::posix_spawnattr_destroy(&mut attributes);
        libc::posix_spawn_file_actions_destroy(&mut actions);
        result.map(|()| Pid::from_raw(pid))
    }
}

/// What a process does to itself before it becomes the program.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    /// Becomes this user; only root can.
    pub(super) user: Option<&'a User>,
    /// Lowers its priority by so much.
    pub(super) nice: i32,
}

impl Change<'_> {
    /// Whether there is anything to do.
    pub(super) fn is_any(self) -> bool {
        self.user.is_some() || self.nice > 0
    }
}

/// Continues this process twice; the second one is born in this control group, if there is one.
#[allow(unsafe_code)] // A new process with the same memory and files, which nothing safe makes.
pub(crate) fn fork(group: Option<BorrowedFd<'_>>) -> Result<ForkResult, Errno> {
    if let Some(group) = group {
        // SAFETY: zeroes are what every field means that is not said.
        let mut wanted: libc::clone_args = unsafe { std::mem::zeroed() };
        wanted.flags = CLONE_INTO_CGROUP;
        wanted.exit_signal = libc::SIGCHLD as u64;
        wanted.cgroup = group.as_raw_fd() as u64;
        // SAFETY: as below; `wanted` is read during the call only, and asks for what a fork does and for the group.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const wanted,
                std::mem::size_of::<libc::clone_args>(),
            )
        };
        match pid {
            0 => return Ok(ForkResult::Child),
            1.. => {
                let child = Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?);
                return Ok(ForkResult::Parent { child });
            }
            // The kernel is older than the call, or the group takes no process: then without.
            _ => {}
        }
    }
    // SAFETY: the nursery calls this, which has a single thread: there is no lock that another thread could hold, and
    // all of our memory is as whole in the child as here. So do its supervisors, which have one thread too: for a
    // worker, and for a task that changes or is confined. `try` does so from among several threads, and for programs
    // only: its child makes bare system calls until it is another program.
    unsafe { nix::unistd::fork() }
}

/// A child begins in the group whose descriptor `clone_args` has (`linux/sched.h`).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What was left open by whoever started this process, as a lock or a secret, is not for what it starts.
/// Our own files are never inherited anyway.
#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
pub(super) fn keep_files_to_ourselves() -> Result<(), Errno> {
    // SAFETY: the call takes three integers, and closes nothing in this process.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Errno::result(done).map(drop)
}

/// Lets a process have so many files open, soft and hard; of no use to one that has ended already.
#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
pub(super) fn limit_files(pid: Pid, (soft, hard): (u64, u64)) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is read during the call only, and nothing is written back.
    unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, &limit, ptr::null_mut()) };
}

/// Lines and characters in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

impl Size {
    fn kernel(self) -> Winsize {
        Winsize {
            ws_row: self.rows,
            ws_col: self.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

/// A new terminal. The process's side stays open until the process has it, so that it does not seem closed.
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    /// Held open only.
    _slave: OwnedFd,
    pub(super) path: CString,
}

impl Terminal {
    /// Opens one of this size; it belongs to `owner`, or to us.
    pub(super) fn open(size: Size, owner: Option<&User>) -> Result<Self, Errno> {
        let pair = openpty(Some(&size.kernel()), None)?;
        // As terminals are nowadays: a backspace takes the whole character, however many bytes it has.
        let mut modes = tcgetattr(&pair.slave)?;
        modes.input_flags |= InputFlags::IUTF8;
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let path = name_of(&pair.master)?;
        if let Some(owner) = owner {
            fchown(&pair.slave, Some(owner.uid), None)?;
        }
        Ok(Self {
            master: pair.master,
            _slave: pair.slave,
            path,
        })
    }
}

#[allow(unsafe_code)] // nix offers this call only for terminals that it opened by another one.
fn name_of(master: &OwnedFd) -> Result<CString, Errno> {
    let mut name = [0 as libc::c_char; 64];
    // SAFETY: the buffer is as long as it says, and ends in a zero after a success.
    unsafe {
        check(libc::ptsname_r(
            master.as_raw_fd(),
            name.as_mut_ptr(),
            name.len(),
        ))?;
        Ok(CStr::from_ptr(name.as_ptr()).to_owned())
    }
}

/// Gives a terminal another size; its processes are told by the kernel.
#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
pub(crate) fn resize(master: &OwnedFd, size: Size) -> Result<(), Errno> {
    let size = size.kernel();
    // SAFETY: `size` is read during the call only.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    Errno::result(done).map(drop)
}

pub(super) fn pointers<S: AsRef<CStr>>(strings: &[S]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ref().as_ptr().cast_mut())
        .chain([ptr::null_mut()])
        .collect()
}

fn check(code: libc::c_int) -> Result<(), Errno> {
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(code))
    }
}

pub(super) fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backspace_in_a_terminal_takes_a_whole_character() {
        let size = Size {
            rows: 24,
            columns: 80,
        };
        let terminal = Terminal::open(size, None).unwrap();
        nix::unistd::write(&terminal.master, "aé\x7f\n".as_bytes()).unwrap();
        let mut line = [0; 16];
        let length = nix::unistd::read(&terminal._slave, &mut line).unwrap();
        assert_eq!(&line[..length], b"a\n");
    }
}
