//! Attempts at other processes: signalled, traced, read and slowed.

use std::{
    fs,
    mem::{size_of, zeroed},
    os::fd::RawFd,
    ptr::{null, null_mut},
};

use nix::libc::{self, c_int, c_long, c_ulong};

use crate::{number, ok, open, past, text, write_to};

/// Tries this one; `None` if it is none of these. Says whether it came through.
pub(crate) fn attempt(name: &str) -> Option<bool> {
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
                // Only the process is measured: neither the kernel nor the hypervisor.
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
