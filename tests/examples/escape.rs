//! One attempt to get out of a sandbox, by bare system calls: `escape NAME`. Ends with 0 if the attempt came through
//! as far as it can tell itself, with 1 if it was held back. The test looks from outside too.
//!
//! Where things are is in the environment: `OUT` (a directory that must not change), `ROOT` (where edit may write),
//! `DATA` (the agent's), `VICTIM` (another process of the same user), `TCP`, `UDP` (ports of 127.0.0.1), `SHARED` (the number of
//! shared memory), `NAME` (of sockets, queues and shared memory).
#![allow(unsafe_code)] // what is tried here nobody offers in a safe way
#![allow(clippy::unwrap_used)]

use std::{
    env,
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    mem::{size_of, zeroed},
    os::fd::RawFd,
    process::ExitCode,
    ptr::{null, null_mut},
};

use nix::libc::{self, c_int, c_long, c_ulong};

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_default();
    let came_through = files(&name)
        .or_else(|| mounts(&name))
        .or_else(|| processes(&name))
        .or_else(|| sockets(&name))
        .or_else(|| kernel(&name))
        .or_else(|| privileges(&name));
    match came_through {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("no such attempt: {name}");
            ExitCode::from(64)
        }
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn number(name: &str) -> i32 {
    var(name).parse().unwrap_or(-1)
}

fn text(path: String) -> CString {
    CString::new(path).unwrap()
}

/// Below the directory that must not change.
fn out(name: &str) -> CString {
    text(format!("{}/{name}", var("OUT")))
}

fn root(name: &str) -> CString {
    text(format!("{}/{name}", var("ROOT")))
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn ok(result: impl Into<i64>) -> bool {
    result.into() >= 0
}

/// Whether the call was let past its check of rights, after which it fails with this error: it was given nonsense.
fn past(result: impl Into<i64>, nonsense: &[i32]) -> bool {
    ok(result) || nonsense.contains(&errno())
}

fn open(path: &CString, flags: c_int) -> RawFd {
    unsafe { libc::open(path.as_ptr(), flags, 0o666) }
}

/// Whether a file can be opened for writing.
fn writable(path: &str) -> bool {
    ok(open(&text(path.to_owned()), libc::O_WRONLY))
}

fn write_to(file: RawFd) -> bool {
    file >= 0 && unsafe { libc::write(file, c"escaped".as_ptr().cast(), 7) } == 7
}

fn files(name: &str) -> Option<bool> {
    let victim = out("victim");
    Some(unsafe {
        match name {
            "open-write" => write_to(open(&victim, libc::O_WRONLY)),
            "open-read-write" => write_to(open(&victim, libc::O_RDWR)),
            "open-append" => write_to(open(&victim, libc::O_WRONLY | libc::O_APPEND)),
            "open-truncate" => ok(open(&victim, libc::O_RDONLY | libc::O_TRUNC)),
            "truncate" => ok(libc::truncate(victim.as_ptr(), 0)),
            "create" => ok(open(&out("new"), libc::O_WRONLY | libc::O_CREAT)),
            "mkdir" => ok(libc::mkdir(out("newdir").as_ptr(), 0o777)),
            "rmdir" => ok(libc::rmdir(out("empty").as_ptr())),
            "unlink" => ok(libc::unlink(victim.as_ptr())),
            "rename" => ok(libc::rename(victim.as_ptr(), out("moved").as_ptr())),
            "rename-in" => ok(libc::rename(root("file").as_ptr(), out("moved").as_ptr())),
            "rename-out" => ok(libc::rename(victim.as_ptr(), root("moved").as_ptr())),
            "rename-exchange" => ok(libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                root("file").as_ptr(),
                libc::AT_FDCWD,
                victim.as_ptr(),
                2,
            )),
            "link-in" => ok(libc::link(root("file").as_ptr(), out("linked").as_ptr())),
            "link-out" => {
                let here = root("linked");
                ok(libc::link(victim.as_ptr(), here.as_ptr()))
                    && write_to(open(&here, libc::O_WRONLY))
            }
            "link-to-scratch" => {
                let here = text(format!("{}/linked", var("TMPDIR")));
                ok(libc::link(victim.as_ptr(), here.as_ptr()))
                    && write_to(open(&here, libc::O_WRONLY))
            }
            "symlink" => ok(libc::symlink(c"/etc".as_ptr(), out("symlink").as_ptr())),
            "symlink-followed" => write_to(open(&root("link"), libc::O_WRONLY)),
            "symlink-in-scratch" => {
                let here = text(format!("{}/link", var("TMPDIR")));
                libc::symlink(victim.as_ptr(), here.as_ptr());
                write_to(open(&here, libc::O_WRONLY))
            }
            "dot-dot" => write_to(open(&root("../out/victim"), libc::O_WRONLY)),
            "mkfifo" => ok(libc::mkfifo(out("fifo").as_ptr(), 0o666)),
            "mksocket" => ok(libc::mknod(out("sock").as_ptr(), libc::S_IFSOCK | 0o666, 0)),
            "tmpfile-and-link" => {
                let file = open(&text(var("OUT")), libc::O_TMPFILE | libc::O_RDWR);
                file >= 0 && {
                    let path = text(format!("/proc/self/fd/{file}"));
                    ok(libc::linkat(
                        libc::AT_FDCWD,
                        path.as_ptr(),
                        libc::AT_FDCWD,
                        out("tmpfile").as_ptr(),
                        libc::AT_SYMLINK_FOLLOW,
                    ))
                }
            }
            "chmod" => ok(libc::chmod(victim.as_ptr(), 0o4777)),
            "fchmod" => ok(libc::fchmod(open(&victim, libc::O_RDONLY), 0o4777)),
            "fchmodat2" => ok(libc::syscall(
                452,
                libc::AT_FDCWD,
                victim.as_ptr(),
                0o4777,
                0,
            )),
            "chmod-through-proc" => {
                let file = open(&victim, libc::O_PATH);
                let path = text(format!("/proc/self/fd/{file}"));
                ok(libc::chmod(path.as_ptr(), 0o4777))
            }
            "chmod-standard-input" => {
                let before = fs::metadata("/dev/null").unwrap();
                let mode = std::os::unix::fs::MetadataExt::mode(&before) & 0o7777;
                ok(libc::fchmod(0, mode))
            }
            "chown" => ok(libc::chown(victim.as_ptr(), libc::getuid(), libc::getgid())),
            "utimes" => ok(libc::utimensat(libc::AT_FDCWD, victim.as_ptr(), null(), 0)),
            "setxattr" => ok(libc::setxattr(
                victim.as_ptr(),
                c"user.escaped".as_ptr(),
                c"x".as_ptr().cast(),
                1,
                0,
            )),
            "removexattr" => past(
                libc::removexattr(victim.as_ptr(), c"user.none".as_ptr()),
                &[libc::ENODATA],
            ),
            "set-flags" => {
                let file = open(&victim, libc::O_RDONLY);
                let mut flags: c_long = 0;
                const FS_IOC_GETFLAGS: c_ulong = 0x8008_6601;
                const FS_IOC_SETFLAGS: c_ulong = 0x4008_6602;
                ok(libc::ioctl(file, FS_IOC_GETFLAGS, &mut flags)) && {
                    flags |= 0x80; // no access time
                    ok(libc::ioctl(file, FS_IOC_SETFLAGS, &flags))
                }
            }
            "lease" => ok(libc::fcntl(
                open(&out("quiet"), libc::O_RDONLY),
                libc::F_SETLEASE,
                libc::F_RDLCK,
            )),
            "inherited-file" => write_to(9),
            "inherited-directory" => {
                let file = libc::openat(8, c"victim".as_ptr(), libc::O_WRONLY);
                write_to(file)
            }
            "proc-self-root" => {
                let path = format!("/proc/self/root{}/victim", var("OUT"));
                write_to(open(&text(path), libc::O_WRONLY))
            }
            "proc-1-root" => {
                let path = format!("/proc/1/root{}/victim", var("OUT"));
                write_to(open(&text(path), libc::O_WRONLY))
            }
            "proc-victim-root" => {
                let path = format!("/proc/{}/root{}/victim", number("VICTIM"), var("OUT"));
                write_to(open(&text(path), libc::O_WRONLY))
            }
            "proc-victim-cwd" => {
                let path = format!("/proc/{}/cwd/victim", number("VICTIM"));
                write_to(open(&text(path), libc::O_WRONLY))
            }
            "proc-victim-file" => {
                let path = format!("/proc/{}/fd/9", number("VICTIM"));
                write_to(open(&text(path), libc::O_WRONLY))
            }
            "proc-parent-root" => {
                let path = format!("/proc/{}/root{}/victim", libc::getppid(), var("OUT"));
                write_to(open(&text(path), libc::O_WRONLY))
            }
            "handle" => {
                #[repr(C)]
                struct Handle {
                    bytes: u32,
                    kind: i32,
                    handle: [u8; 128],
                }
                let mut handle: Handle = zeroed();
                handle.bytes = 128;
                let mut mount = 0;
                let named = libc::syscall(
                    libc::SYS_name_to_handle_at,
                    libc::AT_FDCWD,
                    victim.as_ptr(),
                    &mut handle,
                    &mut mount,
                    0,
                );
                ok(named) && {
                    let directory = open(&text("/".to_owned()), libc::O_RDONLY);
                    let file = libc::syscall(
                        libc::SYS_open_by_handle_at,
                        directory,
                        &handle,
                        libc::O_WRONLY,
                    );
                    file >= 0 && write_to(file as RawFd)
                }
            }
            "memfd" => {
                // Runs a copy of this program from memory, which then tries to write.
                let file = libc::memfd_create(c"escape".as_ptr(), 0);
                let bytes = fs::read("/proc/self/exe").unwrap();
                let mut written = 0;
                while written < bytes.len() {
                    let rest = &bytes[written..];
                    let done = libc::write(file, rest.as_ptr().cast(), rest.len());
                    if done <= 0 {
                        return Some(false);
                    }
                    written += done as usize;
                }
                let argv = [c"escape".as_ptr(), c"open-write".as_ptr(), null()];
                let environment: Vec<CString> = env::vars()
                    .map(|(name, value)| text(format!("{name}={value}")))
                    .collect();
                let environment: Vec<_> = environment
                    .iter()
                    .map(|pair| pair.as_ptr())
                    .chain([null()])
                    .collect();
                libc::syscall(
                    libc::SYS_execveat,
                    file,
                    c"".as_ptr(),
                    argv.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
                false
            }
            "daemon" => {
                // Twice forked, of another session: writes once its parent is gone.
                if libc::fork() == 0 {
                    libc::setsid();
                    let parent = libc::getpid();
                    if libc::fork() == 0 {
                        while libc::getppid() == parent {
                            libc::sched_yield();
                        }
                        write_to(open(&victim, libc::O_WRONLY));
                    }
                    libc::_exit(0);
                }
                let mut status = 0;
                libc::wait(&mut status);
                false
            }
            "read-key" => fs::read(format!("{}/agent/key.pem", var("DATA")))
                .is_ok_and(|key| key.starts_with(b"KEY")),
            "list-agent" => fs::read_dir(format!("{}/agent", var("DATA"))).is_ok(),
            "write-agent" => fs::write(format!("{}/agent/journal", var("DATA")), "x").is_ok(),
            "move-agent-away" => {
                // And then another in its place would be covered, and not this one.
                ok(libc::rename(
                    root("below").as_ptr(),
                    root("elsewhere").as_ptr(),
                ))
            }
            "read-denied" => {
                let mut byte = [0];
                fs::File::open(format!("{}/denied", var("OUT")))
                    .is_ok_and(|mut file| file.read(&mut byte).is_ok_and(|read| read == 1))
            }
            "read-denied-by-link" => {
                fs::read(format!("{}/denied-link", var("OUT"))).is_ok_and(|bytes| !bytes.is_empty())
            }
            "read-denied-below-root" => {
                fs::read(format!("{}/private", var("ROOT"))).is_ok_and(|bytes| !bytes.is_empty())
            }
            "unhide-denied" => ok(libc::rename(
                root("private").as_ptr(),
                root("public").as_ptr(),
            )),
            "run-denied" => run(&out("denied-program"), "succeed"),
            "run-other" => run(&out("other-program"), "succeed"),
            "succeed" => true,
            "list-out" => fs::read_dir(var("OUT")).is_ok(),
            "dev-shm-of-others" => {
                let path = text(format!("/dev/shm/{}", var("NAME")));
                write_to(open(&path, libc::O_WRONLY))
            }
            "block-device" => fs::read_dir("/sys/class/block").is_ok_and(|devices| {
                devices.flatten().any(|device| {
                    let path = text(format!("/dev/{}", device.file_name().display()));
                    ok(open(&path, libc::O_RDONLY))
                })
            }),
            "device-ioctl" => fs::read_dir("/sys/class/block").is_ok_and(|devices| {
                const BLKGETSIZE64: c_ulong = 0x8008_1272;
                devices.flatten().any(|device| {
                    let path = text(format!("/dev/{}", device.file_name().display()));
                    let mut size = 0u64;
                    ok(libc::ioctl(
                        open(&path, libc::O_RDONLY),
                        BLKGETSIZE64,
                        &mut size,
                    ))
                })
            }),
            "make-block-device" => {
                let path = text(format!("{}/disk", var("TMPDIR")));
                ok(libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o666, 7 << 8))
            }
            "make-character-device" => {
                let path = text(format!("{}/mem", var("TMPDIR")));
                ok(libc::mknod(
                    path.as_ptr(),
                    libc::S_IFCHR | 0o666,
                    1 << 8 | 1,
                ))
            }
            "make-whiteout" => {
                // The one device that needs no capability.
                let path = text(format!("{}/whiteout", var("TMPDIR")));
                ok(libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, 0))
            }
            "dev-mem" => ["/dev/mem", "/dev/port", "/dev/kmem", "/proc/kcore"]
                .iter()
                .any(|path| ok(open(&text((*path).to_owned()), libc::O_RDONLY))),
            "dev-kmsg" => writable("/dev/kmsg"),
            "terminals-of-others" => fs::read_dir("/dev/pts").is_ok_and(|terminals| {
                terminals
                    .flatten()
                    .any(|terminal| writable(&terminal.path().display().to_string()))
            }),
            "pty" => writable("/dev/ptmx"),
            "sysctl" => writable("/proc/sys/kernel/hostname"),
            "core-pattern" => writable("/proc/sys/kernel/core_pattern"),
            "sysrq" => writable("/proc/sysrq-trigger"),
            "sys" => writable("/sys/kernel/mm/ksm/run") || writable("/sys/power/state"),
            "uevent-helper" => writable("/sys/kernel/uevent_helper"),
            "cgroup" => fs::read_to_string("/proc/self/mountinfo")
                .unwrap_or_default()
                .lines()
                .filter(|line| line.contains(" - cgroup"))
                .filter_map(|line| line.split(' ').nth(4))
                .any(|mount| writable(&format!("{mount}/cgroup.procs"))),
            "oom-score" => {
                let path = format!("/proc/{}/oom_score_adj", number("VICTIM"));
                fs::write(path, "1000").is_ok()
            }
            "preload" => ok(open(
                &text(format!("/etc/{}", var("NAME"))),
                libc::O_WRONLY | libc::O_CREAT,
            )),
            "cron" => ok(open(
                &text(format!("/etc/cron.d/{}", var("NAME"))),
                libc::O_WRONLY | libc::O_CREAT,
            )),
            "authorized-keys" => fs::File::options()
                .append(true)
                .open(format!("{}/.ssh/authorized_keys", var("OUT")))
                .is_ok_and(|mut file| file.write_all(b"ssh-ed25519 x").is_ok()),
            _ => return None,
        }
    })
}

fn mounts(name: &str) -> Option<bool> {
    let none = null::<libc::c_void>();
    Some(unsafe {
        match name {
            "mount-tmpfs" => ok(libc::mount(
                c"t".as_ptr(),
                text(var("OUT")).as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                none,
            )),
            "remount" => ok(libc::mount(
                c"".as_ptr(),
                c"/".as_ptr(),
                c"".as_ptr(),
                libc::MS_REMOUNT | libc::MS_BIND,
                none,
            )),
            "bind" => ok(libc::mount(
                text(var("OUT")).as_ptr(),
                text(var("TMPDIR")).as_ptr(),
                c"".as_ptr(),
                libc::MS_BIND,
                none,
            )),
            "umount" => ok(libc::umount2(text(var("DATA")).as_ptr(), libc::MNT_DETACH)),
            "mount-setattr" => {
                let attr = [0u64, 1, 0, 0]; // clear the read-only one
                ok(libc::syscall(
                    libc::SYS_mount_setattr,
                    libc::AT_FDCWD,
                    c"/".as_ptr(),
                    0x8000,
                    &attr,
                    32,
                ))
            }
            "open-tree" => ok(libc::syscall(
                libc::SYS_open_tree,
                libc::AT_FDCWD,
                c"/".as_ptr(),
                1,
            )),
            "fsopen" => ok(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0)),
            "chroot" => ok(libc::chroot(text(var("TMPDIR")).as_ptr())),
            "pivot-root" => past(
                libc::syscall(libc::SYS_pivot_root, c"/".as_ptr(), c"/".as_ptr()),
                &[libc::EBUSY, libc::EINVAL],
            ),
            "unshare-user" => ok(libc::unshare(libc::CLONE_NEWUSER)),
            "unshare-mounts" => ok(libc::unshare(libc::CLONE_NEWNS)),
            "clone-user" => {
                let flags = c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
                let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
                if pid == 0 {
                    libc::_exit(0);
                }
                ok(pid)
            }
            "clone3-user" => {
                let mut arguments = [0u64; 11];
                arguments[0] = libc::CLONE_NEWUSER as u64;
                arguments[4] = libc::SIGCHLD as u64;
                let pid = libc::syscall(libc::SYS_clone3, &arguments, size_of::<[u64; 11]>());
                if pid == 0 {
                    libc::_exit(0);
                }
                ok(pid)
            }
            "setns" => {
                let path = text(format!("/proc/{}/ns/mnt", number("VICTIM")));
                let file = open(&path, libc::O_RDONLY);
                ok(file) && past(libc::setns(file, 0), &[])
            }
            "setns-pidfd" => {
                let file = libc::syscall(libc::SYS_pidfd_open, number("VICTIM"), 0);
                ok(libc::setns(file as c_int, libc::CLONE_NEWNS))
            }
            "swapon" => past(libc::swapon(c"/no/such/file".as_ptr(), 0), &[libc::ENOENT]),
            "quota" => past(
                libc::syscall(
                    libc::SYS_quotactl,
                    0x80_0007 << 8,
                    null::<u8>(),
                    0,
                    null::<u8>(),
                ),
                &[libc::EINVAL, libc::ENODEV, libc::ENOTBLK, libc::EFAULT],
            ),
            _ => return None,
        }
    })
}

fn processes(name: &str) -> Option<bool> {
    let victim = number("VICTIM");
    let mut word = [0u8; 8];
    Some(unsafe {
        let remote = |write: c_long, word: &mut [u8; 8]| {
            let address = stack_of(victim);
            let ours = libc::iovec {
                iov_base: word.as_mut_ptr().cast(),
                iov_len: 8,
            };
            let theirs = libc::iovec {
                iov_base: address as *mut libc::c_void,
                iov_len: 8,
            };
            libc::syscall(
                write,
                victim,
                &ours,
                1 as c_ulong,
                &theirs,
                1 as c_ulong,
                0 as c_ulong,
            )
        };
        match name {
            "kill" => ok(libc::kill(victim, libc::SIGKILL)),
            "kill-group" => ok(libc::kill(-libc::getpgid(victim), 0)),
            "kill-1" => ok(libc::kill(1, 0)),
            "kill-parent" => ok(libc::kill(libc::getppid(), 0)),
            "tgkill" => ok(libc::syscall(
                libc::SYS_tgkill,
                victim,
                victim,
                libc::SIGKILL,
            )),
            "tkill" => ok(libc::syscall(libc::SYS_tkill, victim, libc::SIGKILL)),
            "sigqueue" => {
                let mut info: libc::siginfo_t = zeroed();
                info.si_code = -1;
                ok(libc::syscall(
                    libc::SYS_rt_sigqueueinfo,
                    victim,
                    libc::SIGKILL,
                    &info,
                ))
            }
            "tgsigqueue" => {
                let mut info: libc::siginfo_t = zeroed();
                info.si_code = -1;
                ok(libc::syscall(
                    libc::SYS_rt_tgsigqueueinfo,
                    victim,
                    victim,
                    libc::SIGKILL,
                    &info,
                ))
            }
            "pidfd-kill" => {
                let file = libc::syscall(libc::SYS_pidfd_open, victim, 0);
                ok(libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    file,
                    libc::SIGKILL,
                    null::<u8>(),
                    0,
                ))
            }
            "owner-of-a-pipe" => {
                // The kernel sends the signal in our name once there is something to read.
                let mut ends = [0; 2];
                libc::pipe(ends.as_mut_ptr());
                const F_SETSIG: c_int = 10;
                libc::fcntl(ends[0], F_SETSIG, libc::SIGKILL);
                libc::fcntl(ends[0], libc::F_SETOWN, victim);
                libc::fcntl(ends[0], libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK);
                libc::write(ends[1], c"x".as_ptr().cast(), 1);
                false
            }
            "ptrace" => ok(libc::ptrace(libc::PTRACE_ATTACH, victim, 0, 0)),
            "ptrace-seize" => ok(libc::ptrace(libc::PTRACE_SEIZE, victim, 0, 0)),
            "vm-read" => ok(remote(libc::SYS_process_vm_readv, &mut word)),
            "vm-write" => ok(remote(libc::SYS_process_vm_writev, &mut word)),
            "proc-mem" => {
                let path = text(format!("/proc/{victim}/mem"));
                ok(open(&path, libc::O_RDWR))
            }
            "proc-environ" => fs::read(format!("/proc/{victim}/environ"))
                .is_ok_and(|environment| !environment.is_empty()),
            "pidfd-getfd" => {
                let file = libc::syscall(libc::SYS_pidfd_open, victim, 0);
                let got = libc::syscall(libc::SYS_pidfd_getfd, file, 9, 0);
                ok(got) && write_to(got as RawFd)
            }
            "kcmp" => ok(libc::syscall(
                libc::SYS_kcmp,
                libc::getpid(),
                victim,
                1,
                0,
                0,
            )),
            "madvise" => {
                let file = libc::syscall(libc::SYS_pidfd_open, victim, 0);
                let theirs = libc::iovec {
                    iov_base: (stack_of(victim) & !0xfff) as *mut libc::c_void,
                    iov_len: 4096,
                };
                // Only paged out: harmless to whoever owns it.
                ok(libc::syscall(
                    libc::SYS_process_madvise,
                    file,
                    &theirs,
                    1,
                    libc::MADV_PAGEOUT,
                    0,
                ))
            }
            "perf" => {
                let mut attr = [0u8; 128];
                attr[0] = 1; // software
                attr[4] = 128;
                attr[8] = 1; // task clock
                // Of the process only: neither the kernel nor the hypervisor.
                attr[40] = 0b0110_0001;
                ok(libc::syscall(
                    libc::SYS_perf_event_open,
                    &attr,
                    victim,
                    -1,
                    -1,
                    0,
                ))
            }
            "prlimit" => {
                let limit = libc::rlimit {
                    rlim_cur: 7,
                    rlim_max: 7,
                };
                ok(libc::prlimit(victim, libc::RLIMIT_CORE, &limit, null_mut()))
            }
            "setpriority" => ok(libc::setpriority(libc::PRIO_PROCESS, victim as u32, 19)),
            "setpriority-of-all" => ok(libc::setpriority(
                libc::PRIO_USER,
                libc::getuid(),
                libc::getpriority(libc::PRIO_PROCESS, 0),
            )),
            "affinity" => {
                let mut set: libc::cpu_set_t = zeroed();
                libc::CPU_SET(0, &mut set);
                ok(libc::sched_setaffinity(
                    victim,
                    size_of::<libc::cpu_set_t>(),
                    &set,
                ))
            }
            "scheduler" => {
                let parameter: libc::sched_param = zeroed();
                ok(libc::sched_setscheduler(
                    victim,
                    libc::SCHED_IDLE,
                    &parameter,
                ))
            }
            "ioprio" => ok(libc::syscall(libc::SYS_ioprio_set, 1, victim, 3 << 13)),
            "move-pages" => past(
                libc::syscall(
                    libc::SYS_move_pages,
                    victim,
                    0 as c_ulong,
                    null::<u8>(),
                    null::<u8>(),
                    null::<u8>(),
                    0 as c_ulong,
                ),
                &[],
            ),
            _ => return None,
        }
    })
}

/// An address in the stack of a process, which its table of processes shows only to whoever may trace it.
fn stack_of(pid: i32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let line = maps.lines().find(|line| line.contains("[stack]"));
    line.and_then(|line| usize::from_str_radix(line.split('-').next()?, 16).ok())
        .unwrap_or(0x7000_0000_0000)
}

fn sockets(name: &str) -> Option<bool> {
    unsafe fn unix(name: &[u8]) -> (libc::sockaddr_un, u32) {
        let mut address: libc::sockaddr_un = unsafe { zeroed() };
        address.sun_family = libc::AF_UNIX as u16;
        for (to, from) in address.sun_path.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        let length = 2 + name.len() as u32;
        (address, length)
    }
    unsafe fn internet(port: i32) -> libc::sockaddr_in {
        let mut address: libc::sockaddr_in = unsafe { zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = (port as u16).to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        address
    }
    let connect = |kind: c_int, name: &[u8]| unsafe {
        let (address, length) = unix(name);
        let socket = libc::socket(libc::AF_UNIX, kind, 0);
        ok(libc::connect(socket, (&raw const address).cast(), length))
    };
    let path = |name: &str| format!("{}/{name}\0", var("OUT")).into_bytes();
    let inet = size_of::<libc::sockaddr_in>() as u32;
    Some(unsafe {
        match name {
            "abstract-socket" => {
                let name = format!("\0{}", var("NAME"));
                connect(libc::SOCK_STREAM, name.as_bytes())
            }
            "path-socket" => connect(libc::SOCK_STREAM, &path("daemon.sock")),
            "datagram-socket" => connect(libc::SOCK_DGRAM, &path("datagram.sock")),
            "pair-of-datagrams" => {
                let mut ends = [0; 2];
                libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, ends.as_mut_ptr());
                let (address, length) = unix(&path("datagram.sock"));
                ok(libc::sendto(
                    ends[0],
                    c"escaped".as_ptr().cast(),
                    7,
                    0,
                    (&raw const address).cast(),
                    length,
                ) as i64)
            }
            "pair-of-packets" => {
                let mut ends = [0; 2];
                let made =
                    libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr());
                let (address, length) = unix(&path("datagram.sock"));
                // The address is not looked at: what is sent goes to the other end.
                let sent = libc::sendto(
                    ends[0],
                    c"escaped".as_ptr().cast(),
                    7,
                    0,
                    (&raw const address).cast(),
                    length,
                );
                let mut word = [0u8; 8];
                let came = libc::recv(ends[1], word.as_mut_ptr().cast(), 8, libc::MSG_DONTWAIT);
                ok(made) && sent == 7 && came != 7
            }
            "pair-reconnected" => {
                let mut ends = [0; 2];
                libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr());
                let (address, length) = unix(&path("daemon.sock"));
                ok(libc::connect(ends[0], (&raw const address).cast(), length))
            }
            "agent-socket" => {
                let path = format!("{}/agent/status.sock\0", var("DATA")).into_bytes();
                connect(libc::SOCK_STREAM, &path)
            }
            "tcp" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                let address = internet(number("TCP"));
                ok(libc::connect(socket, (&raw const address).cast(), inet))
            }
            "tcp-fast-open" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                let address = internet(number("TCP"));
                ok(libc::sendto(
                    socket,
                    c"escaped".as_ptr().cast(),
                    7,
                    libc::MSG_FASTOPEN,
                    (&raw const address).cast(),
                    inet,
                ) as i64)
            }
            "multipath-tcp" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 262);
                let address = internet(number("TCP"));
                ok(libc::connect(socket, (&raw const address).cast(), inet))
            }
            "udp" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
                let address = internet(number("UDP"));
                ok(libc::sendto(
                    socket,
                    c"escaped".as_ptr().cast(),
                    7,
                    0,
                    (&raw const address).cast(),
                    inet,
                ) as i64)
            }
            "listen" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                ok(libc::listen(socket, 1))
            }
            "raw-socket" => ok(libc::socket(
                libc::AF_INET,
                libc::SOCK_RAW,
                libc::IPPROTO_RAW,
            )),
            "packet-socket" => past(
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
                &[libc::EAFNOSUPPORT],
            ),
            "netlink-uevent" => ok(libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, 15)),
            "netlink-netfilter" => past(
                libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 12),
                &[libc::EPROTONOSUPPORT],
            ),
            "netlink-add-address" => {
                let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0);
                // RTM_SETLINK of the loopback, acknowledged: nothing is changed by it.
                let mut message = [0u8; 32];
                message[0] = 32;
                message[4] = 19;
                message[6] = 5;
                message[20] = 1;
                libc::send(socket, message.as_ptr().cast(), 32, 0);
                let mut answer = [0u8; 64];
                let length = libc::recv(socket, answer.as_mut_ptr().cast(), 64, libc::MSG_DONTWAIT);
                length >= 20 && answer[16..20] == [0; 4]
            }
            "crypto-socket" => past(
                libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
                &[libc::EAFNOSUPPORT],
            ),
            "vsock" => past(
                libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
                &[libc::EAFNOSUPPORT],
            ),
            "bluetooth" => past(
                libc::socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
                &[libc::EAFNOSUPPORT],
            ),
            "xdp" => past(libc::socket(44, libc::SOCK_RAW, 0), &[libc::EAFNOSUPPORT]),
            "sysv-memory" => {
                let id = libc::shmget(number("SHARED"), 0, 0);
                let memory = libc::shmat(id, null(), 0);
                memory as isize != -1 && {
                    *memory.cast::<u8>() = b'X';
                    true
                }
            }
            "sysv-semaphore" => {
                let id = libc::semget(number("SHARED"), 0, 0);
                ok(id) && ok(libc::semctl(id, 0, 16, 7)) // SETVAL
            }
            "sysv-queue" => {
                let id = libc::msgget(number("SHARED"), 0);
                ok(id) && {
                    let message = [1u64, 0x78];
                    ok(libc::msgsnd(
                        id,
                        message.as_ptr().cast(),
                        1,
                        libc::IPC_NOWAIT,
                    ))
                }
            }
            "message-queue" => {
                let name = text(format!("/{}", var("NAME")));
                let queue = libc::mq_open(name.as_ptr(), libc::O_WRONLY);
                ok(queue) && ok(libc::mq_send(queue, c"x".as_ptr(), 1, 0))
            }
            _ => return None,
        }
    })
}

fn kernel(name: &str) -> Option<bool> {
    Some(unsafe {
        match name {
            "io-uring" => {
                let mut parameters = [0u8; 120];
                ok(libc::syscall(libc::SYS_io_uring_setup, 1, &mut parameters))
            }
            "keyctl" => ok(libc::syscall(libc::SYS_keyctl, 0, -3, 0)),
            "add-key" => ok(libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"muster-escape".as_ptr(),
                c"x".as_ptr(),
                1,
                -2,
            )),
            "bpf" => {
                let mut attr = [0u32; 32];
                attr[..4].copy_from_slice(&[2, 4, 4, 1]); // an array map
                ok(libc::syscall(libc::SYS_bpf, 0, &attr, 128))
            }
            "userfaultfd" => ok(libc::syscall(libc::SYS_userfaultfd, 1)), // USER_MODE_ONLY
            "personality" => ok(libc::personality(0x0040_0000)),          // READ_IMPLIES_EXEC
            "reboot" => past(libc::syscall(libc::SYS_reboot, 0, 0, 0, 0), &[libc::EINVAL]),
            "set-clock" => {
                let mut now: libc::timespec = zeroed();
                libc::clock_gettime(libc::CLOCK_REALTIME, &mut now);
                ok(libc::clock_settime(libc::CLOCK_REALTIME, &now))
            }
            "set-time" => {
                let mut now: libc::timeval = zeroed();
                libc::gettimeofday(&mut now, null_mut());
                ok(libc::settimeofday(&now, null()))
            }
            "adjust-clock" => {
                let mut timex: libc::timex = zeroed();
                ok(libc::adjtimex(&mut timex)) && {
                    timex.modes = libc::ADJ_STATUS;
                    ok(libc::adjtimex(&mut timex))
                }
            }
            "host-name" => {
                let mut name = [0u8; 256];
                libc::gethostname(name.as_mut_ptr().cast(), 255);
                let length = name.iter().position(|byte| *byte == 0).unwrap_or(0);
                ok(libc::sethostname(name.as_ptr().cast(), length))
            }
            "kernel-log" => {
                ok(libc::klogctl(10, null_mut(), 0)) || {
                    let mut bytes = [0u8; 16];
                    ok(libc::klogctl(3, bytes.as_mut_ptr().cast(), 16))
                }
            }
            "kexec" => past(
                libc::syscall(libc::SYS_kexec_load, 0, 99, null::<u8>(), 0),
                &[libc::EINVAL],
            ),
            "init-module" => past(
                libc::syscall(libc::SYS_init_module, null::<u8>(), 0, c"".as_ptr()),
                &[libc::ENOEXEC, libc::EFAULT],
            ),
            "finit-module" => past(
                libc::syscall(libc::SYS_finit_module, -1, c"".as_ptr(), 0),
                &[libc::EBADF, libc::ENOEXEC],
            ),
            "delete-module" => past(
                libc::syscall(libc::SYS_delete_module, c"no-such-module".as_ptr(), 0),
                &[libc::ENOENT],
            ),
            "acct" => past(libc::acct(c"/no/such/file".as_ptr()), &[libc::ENOENT]),
            "iopl" => io_privilege(),
            "modify-ldt" => local_descriptors(),
            "fanotify" => ok(libc::syscall(libc::SYS_fanotify_init, 0x200, 0)),
            "inject-input" => past(
                libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()),
                &[libc::ENOTTY],
            ),
            "console" => past(
                libc::ioctl(0, libc::TIOCLINUX, c"\x02".as_ptr()),
                &[libc::ENOTTY],
            ),
            "hangup" => ok(libc::vhangup()),
            "unknown-call" => errno_of_an_unknown_call() != libc::ENOSYS,
            "i386" => call_as_i386(),
            "x32" => {
                let path = out("x32");
                ok(libc::syscall(0x4000_0000 + 83, path.as_ptr(), 0o777)) // mkdir
            }
            _ => return None,
        }
    })
}

fn errno_of_an_unknown_call() -> i32 {
    unsafe { libc::syscall(100_000) };
    errno()
}

#[cfg(target_arch = "x86_64")]
fn io_privilege() -> bool {
    unsafe {
        ok(libc::syscall(libc::SYS_iopl, 3)) || ok(libc::syscall(libc::SYS_ioperm, 0x80, 1, 1))
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn io_privilege() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn local_descriptors() -> bool {
    let mut bytes = [0u8; 64];
    unsafe { ok(libc::syscall(libc::SYS_modify_ldt, 0, &mut bytes, 64)) }
}

#[cfg(not(target_arch = "x86_64"))]
fn local_descriptors() -> bool {
    false
}

/// The system calls of 32-bit programs have other numbers: `mkdir` is 39.
#[cfg(target_arch = "x86_64")]
fn call_as_i386() -> bool {
    let path = out("i386");
    let bytes = path.as_bytes_with_nul();
    unsafe {
        let low = libc::mmap(
            null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        );
        if low == libc::MAP_FAILED {
            return false;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), low.cast(), bytes.len());
        let result: i64;
        std::arch::asm!(
            "push rbx",
            "mov ebx, {path:e}",
            "int 0x80",
            "pop rbx",
            path = in(reg) low,
            inlateout("rax") 39i64 => result,
            in("rcx") 0o777,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
        result as i32 == 0
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn call_as_i386() -> bool {
    false
}

fn privileges(name: &str) -> Option<bool> {
    Some(unsafe {
        match name {
            // What the programs below become: with more rights than their caller.
            "am-i-root" => libc::geteuid() == 0 && libc::getuid() != 0,
            "have-i-capabilities" => capabilities() != 0,
            "setuid-program" => run(&out("setuid"), "am-i-root"),
            "capable-program" => run(&out("capable"), "have-i-capabilities"),
            "keep-capabilities" => capabilities() != 0,
            "raise-capabilities" => {
                let header = [0x2008_0522u32, 0];
                let all = [u32::MAX, u32::MAX, 0, 1 << 8, 1 << 8, 0];
                ok(libc::syscall(libc::SYS_capset, &header, &all))
            }
            "become-root" => libc::getuid() != 0 && ok(libc::setuid(0)),
            "become-another" => libc::getuid() == 0 && ok(libc::setuid(65534)),
            "set-groups" => {
                let group = [0];
                ok(libc::setgroups(1, group.as_ptr()))
            }
            "new-privileges" => libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1,
            "drop-filter" => ok(libc::prctl(libc::PR_SET_SECCOMP, 0, 0, 0, 0)),
            _ => return None,
        }
    })
}

/// What this process can do with its capabilities.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0)
}

fn run(program: &CString, name: &str) -> bool {
    let path = program.to_str().unwrap();
    #[allow(clippy::disallowed_methods)] // the attempt is to start it
    let status = std::process::Command::new(path).arg(name).status();
    status.is_ok_and(|status| status.success())
}
