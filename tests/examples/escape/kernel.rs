//! Attempts at the kernel: calls that no sandboxed task may make.

use std::{
    mem::zeroed,
    ptr::{null, null_mut},
};

use nix::libc;

use crate::{errno, ok, out, past};

/// Tries this one; `None` if it is none of these. Says whether it came through.
pub(crate) fn attempt(name: &str) -> Option<bool> {
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
