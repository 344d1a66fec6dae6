//! How a process closes itself in. Between fork and exec only bare system calls are made: nothing allocates, locks or
//! looks up a name.

use std::{
    ffi::CStr,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc::{self, sock_fprog},
    sys::stat::Mode,
};

use super::{Instruction, Prepared, capabilities};
use crate::process::spawn;

impl Prepared {
    /// Namespaces of its own, in which mounts can be made.
    pub(in crate::process) fn make_namespaces(&self) -> Result<(), Errno> {
        let mut kinds = libc::CLONE_NEWNS;
        if self.layers.has("ipc") {
            kinds |= libc::CLONE_NEWIPC;
        }
        let Some((user, group)) = self.user_namespace else {
            return unshare(kinds);
        };
        unshare(kinds | libc::CLONE_NEWUSER)?;
        write_file(c"/proc/self/setgroups", b"deny")?;
        let mut line = [0; 32];
        let map = map_line(&mut line, user);
        write_file(c"/proc/self/uid_map", map)?;
        let mut line = [0; 32];
        let map = map_line(&mut line, group);
        write_file(c"/proc/self/gid_map", map)
    }

    /// Makes the files what the task is to see. Returns its scratch directory.
    pub(in crate::process) fn mount(&self) -> Result<OwnedFd, Errno> {
        self.mounts.enter()
    }

    /// Takes away what no program that is started from here on can get back, not even one of root.
    pub(in crate::process) fn drop_bounding_set(&self) -> Result<(), Errno> {
        match self.layers.has("capabilities") {
            true => capabilities::drop_bounding_set(),
            false => Ok(()),
        }
    }

    /// Takes away what this process has of them.
    pub(in crate::process) fn drop_capabilities(&self) -> Result<(), Errno> {
        match self.layers.has("capabilities") {
            true => capabilities::drop_own(),
            false => Ok(()),
        }
    }

    /// Programs with the set-user-ID bit give nothing from now on.
    pub(in crate::process) fn forbid_privileges(&self) -> Result<(), Errno> {
        match self.layers.has("no-new-privileges") {
            true => no_new_privileges(),
            false => Ok(()),
        }
    }

    /// Enters the rules of Landlock.
    pub(in crate::process) fn enter_rules(&self, scratch: &OwnedFd) -> Result<(), Errno> {
        if !self.layers.has("landlock") {
            return Ok(());
        }
        self.ruleset.allow_scratch(scratch.as_fd())?;
        self.ruleset.enter()
    }

    /// What is open beside the standard streams is not for the program.
    pub(in crate::process) fn close_files(&self) -> Result<(), Errno> {
        match self.layers.has("descriptors") {
            true => spawn::keep_files_to_ourselves(),
            false => Ok(()),
        }
    }

    /// Sets the filter of system calls.
    pub(in crate::process) fn set_filter(&self) -> Result<(), Errno> {
        match self.layers.has("seccomp") {
            true => set_filter(&self.filter),
            false => Ok(()),
        }
    }
}

/// "ID ID 1", without an allocation.
fn map_line(line: &mut [u8; 32], id: u32) -> &[u8] {
    use std::io::Write as _;
    let mut rest = &mut line[..];
    let _ = writeln!(rest, "{id} {id} 1");
    let left = rest.len();
    &line[..32 - left]
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, bytes).map(drop)
}

#[allow(unsafe_code)] // nix takes flags that it knows only.
fn unshare(kinds: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the call takes an integer.
    Errno::result(unsafe { libc::unshare(kinds) }).map(drop)
}

#[allow(unsafe_code)] // nix's call is behind a feature that nobody else needs.
fn no_new_privileges() -> Result<(), Errno> {
    // SAFETY: the call takes integers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
fn set_filter(filter: &[Instruction]) -> Result<(), Errno> {
    let program = sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program is as long as it says, and the kernel copies it.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &program,
        )
    };
    Errno::result(set).map(drop)
}
