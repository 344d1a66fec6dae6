//! Attempts to get back capabilities, or another user.

use std::fs;

use nix::libc;

use crate::{ok, out, run};

/// Tries this one; `None` if it is none of these. Says whether it came through.
pub(crate) fn attempt(name: &str) -> Option<bool> {
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
