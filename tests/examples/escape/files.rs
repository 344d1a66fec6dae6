//! Attempts at files outside: opened, made, moved, linked, changed and read.

use std::{
    env,
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    mem::zeroed,
    os::fd::RawFd,
    ptr::null,
};

use nix::libc::{self, c_long, c_ulong};

use crate::{number, ok, open, out, past, root, run, text, var, writable, write_to};

/// Tries this one; `None` if it is none of these. Says whether it came through.
pub(crate) fn attempt(name: &str) -> Option<bool> {
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
