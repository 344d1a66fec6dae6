//! Capabilities of this process, by bare system calls: neither the standard library nor nix has them.

use nix::{errno::Errno, libc};

/// Whether this process may change what is mounted, as root can outside of most containers.
#[allow(unsafe_code)]
pub(super) fn may_mount() -> bool {
    const CAP_SYS_ADMIN: u32 = 1 << 21;
    let mut sets = [0u32; SETS];
    // SAFETY: the structures have the layout that this version of the call takes; it writes the second one only.
    let got = unsafe { libc::syscall(libc::SYS_capget, &OURS, sets.as_mut_ptr()) };
    // The first number is the lower half of what is effective.
    got == 0 && sets[0] & CAP_SYS_ADMIN != 0
}

/// Takes away what no program that is started from here on can get back, not even one of root.
#[allow(unsafe_code)]
pub(super) fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        // SAFETY: the call takes integers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(dropped) {
            Ok(_) => {}
            // That was the last one.
            Err(Errno::EINVAL) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes away what this process has of them.
#[allow(unsafe_code)]
pub(super) fn drop_own() -> Result<(), Errno> {
    let none = [0u32; SETS];
    // SAFETY: the structures have the layout that this version of the call takes, and are read during it only.
    unsafe {
        Errno::result(libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        ))?;
        let set = libc::syscall(libc::SYS_capset, &OURS, none.as_ptr());
        Errno::result(set).map(drop)
    }
}

/// The process that the capabilities are of, and their layout.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Those of the calling process, in version 3.
const OURS: Header = Header {
    version: 0x2008_0522,
    pid: 0,
};

/// Effective, permitted and inheritable ones: the lower halves, then the upper ones.
const SETS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_the_process_table_says() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
        assert_eq!(may_mount(), effective & (1 << 21) != 0);
    }
}
