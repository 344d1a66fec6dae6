//! The system calls that start a process.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Stdio,
    ptr,
};

use nix::{errno::Errno, libc, unistd::Pid};
use tokio::io::{Interest, unix::AsyncFd};

use super::user::User;

/// Everything the kernel needs to know, as it wants it.
pub(super) struct Prepared {
    pub(super) program: CString,
    pub(super) argv: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) cwd: CString,
}

/// Starts a process as our own user, in a session of its own.
///
/// `posix_spawn` shares our memory with the child until it has the new program, so a start costs the
/// same however large the agent is.
#[allow(unsafe_code)] // The standard library's way there cannot start a session without a slow fork.
pub(super) fn as_ourselves(
    prepared: &Prepared,
    streams: [BorrowedFd<'_>; 3],
) -> Result<Pid, Errno> {
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
            for (number, stream) in (0..).zip(&streams) {
                let fd = stream.as_raw_fd();
                check(libc::posix_spawn_file_actions_adddup2(
                    &mut actions,
                    fd,
                    number,
                ))?;
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

/// Starts a process as another user, in a session of its own; only root can.
#[allow(unsafe_code)] // Groups, user and session change between fork and exec, which needs `pre_exec`.
pub(super) fn as_other(
    prepared: &Prepared,
    streams: [BorrowedFd<'_>; 3],
    user: &User,
) -> Result<Pid, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let text = |value: &CString| std::ffi::OsStr::from_bytes(value.as_bytes()).to_owned();
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(Stdio::from).map_err(errno);

    #[allow(clippy::disallowed_methods)] // This is the module that starts processes.
    let mut command = std::process::Command::new(text(&prepared.program));
    command
        .arg0(text(&prepared.argv[0]))
        .args(prepared.argv[1..].iter().map(text))
        .env_clear()
        .stdin(own(streams[0])?)
        .stdout(own(streams[1])?)
        .stderr(own(streams[2])?);
    for pair in &prepared.environment {
        let pair = pair.as_bytes();
        let at = pair
            .iter()
            .position(|byte| *byte == b'=')
            .expect("a pair has one");
        command.env(
            std::ffi::OsStr::from_bytes(&pair[..at]),
            std::ffi::OsStr::from_bytes(&pair[at + 1..]),
        );
    }
    let (uid, gid, groups) = (user.uid, user.gid, user.groups.clone());
    let cwd = prepared.cwd.clone();
    // SAFETY: between fork and exec only plain system calls are made; nothing allocates or locks.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            nix::unistd::setgroups(&groups)?;
            nix::unistd::setgid(gid)?;
            nix::unistd::setuid(uid)?;
            nix::unistd::chdir(cwd.as_c_str())?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(errno)?;
    Ok(Pid::from_raw(
        i32::try_from(child.id()).expect("process ids are 31 bits"),
    ))
}

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

/// A file descriptor that becomes readable when the process ends.
#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
pub(super) fn pidfd(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call takes two integers; what it returns is a new descriptor that nobody else owns,
    // and that its `AsyncFd` keeps open until it is dropped.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0);
        let fd = i32::try_from(Errno::result(fd)?).expect("descriptors are ints");
        let fd = OwnedFd::from_raw_fd(fd);
        Ok(AsyncFd::register_with_interest(fd, Interest::READABLE)?)
    }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr().cast_mut())
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

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
