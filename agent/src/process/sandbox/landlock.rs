//! The rules of Landlock for a task (see the kernel's `userspace-api/landlock.rst`): made before the fork, completed
//! and entered after it, where only bare system calls may be made.

use std::{
    ffi::{CStr, CString},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    sys::stat::{Mode, fstat},
};

use super::{Layers, Sandbox, Sockets};
use crate::process::spawn;

/// The version that brought the scopes of signals and of abstract sockets: none before it keeps a task from
/// signalling others.
pub(super) const NEEDED: i32 = 6;

/// Rights over files, by their names in the kernel's header.
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const ALL: u64 = (1 << 16) - 1;
/// Those that are of a file and not of a directory.
const OF_A_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const READ: u64 = READ_FILE | READ_DIR;
/// What is below a directory may be made, changed and removed; but no devices.
const WRITE: u64 = ALL & !(EXECUTE | READ | MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV);

/// The names of the rights, for a test that leaves one out.
const NAMES: [&str; 16] = [
    "execute",
    "write-file",
    "read-file",
    "read-dir",
    "remove-dir",
    "remove-file",
    "make-char",
    "make-dir",
    "make-reg",
    "make-sock",
    "make-fifo",
    "make-block",
    "make-sym",
    "refer",
    "truncate",
    "ioctl-dev",
];

const BIND_TCP: u64 = 1 << 0;
const CONNECT_TCP: u64 = 1 << 1;
const SCOPE_ABSTRACT: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;

const RULE_PATH_BENEATH: libc::c_int = 1;
const RULE_NET_PORT: libc::c_int = 2;
const CREATE_RULESET_VERSION: u32 = 1;

/// Devices that hold nothing and lead nowhere.
const DEVICES: [&CStr; 6] = [
    c"/dev/null",
    c"/dev/zero",
    c"/dev/full",
    c"/dev/random",
    c"/dev/urandom",
    c"/dev/tty",
];

/// Loads every program that is linked at run time; without it no program of a list would start.
const LOADERS: [&str; 5] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux.so.2",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

#[repr(C)]
struct NetPortAttr {
    allowed_access: u64,
    port: u64,
}

/// Rules that can be entered.
#[derive(Debug)]
pub(super) struct Ruleset {
    file: OwnedFd,
    handled: u64,
    /// What holds of the scratch directory, which exists only after the fork.
    scratch: u64,
}

/// The version that this kernel has; 0 if it has none.
#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
pub(super) fn version() -> i32 {
    // SAFETY: with this flag the call takes no pointer and makes nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0,
            CREATE_RULESET_VERSION,
        )
    };
    i32::try_from(version).unwrap_or(0).max(0)
}

impl Ruleset {
    /// The rules of a task with this terminal.
    pub(super) fn new(
        sandbox: &Sandbox,
        terminal: Option<&CStr>,
        layers: &Layers,
    ) -> Result<Self, Errno> {
        // Left out as a whole, it is made as it would be, and not entered.
        let whole = Layers::default();
        let layers = if layers.has("landlock") {
            layers
        } else {
            &whole
        };
        let handled = (0..)
            .zip(NAMES)
            .filter(|(_, name)| layers.has(&format!("landlock:{name}")))
            .fold(0, |rights, (bit, _)| rights | 1 << bit);
        let lists_programs = !sandbox.programs.is_empty();
        let run = if lists_programs { 0 } else { EXECUTE };
        let ports = sandbox.sockets() == Sockets::Ports && layers.has("landlock:ports");
        let mut scoped = 0;
        if layers.has("landlock:signals") {
            scoped |= SCOPE_SIGNAL;
        }
        if layers.has("landlock:abstract") {
            scoped |= SCOPE_ABSTRACT;
        }
        let ruleset = Self::create(
            handled,
            if ports { BIND_TCP | CONNECT_TCP } else { 0 },
            scoped,
            (WRITE | READ | run) & handled,
        )?;

        if sandbox.readable.is_empty() {
            ruleset.everything_but_devices(READ | run)?;
        }
        for path in &sandbox.readable {
            ruleset.allow_path(&text(path)?, READ | run)?;
        }
        for path in &sandbox.writes {
            ruleset.allow_path(&text(path)?, WRITE | READ | run)?;
        }
        for path in &sandbox.programs {
            ruleset.allow_path(&text(path)?, READ_FILE | EXECUTE)?;
        }
        if lists_programs {
            for loader in LOADERS {
                if let Ok(loader) = std::fs::canonicalize(loader) {
                    ruleset
                        .allow_path(&text(loader.as_os_str().as_bytes())?, READ_FILE | EXECUTE)?;
                }
            }
        }
        for device in DEVICES.into_iter().chain(terminal) {
            ruleset.allow_path(device, READ_FILE | WRITE_FILE | IOCTL_DEV)?;
        }
        if ports {
            for port in &sandbox.ports {
                ruleset.allow_port(*port)?;
            }
        }
        Ok(ruleset)
    }

    #[allow(unsafe_code)] // Neither the standard library nor nix has this call.
    fn create(handled: u64, net: u64, scoped: u64, scratch: u64) -> Result<Self, Errno> {
        let attr = RulesetAttr {
            handled_access_fs: handled,
            handled_access_net: net,
            scoped,
        };
        // SAFETY: the structure is as long as it says and read during the call only; the result is a descriptor
        // that is ours alone.
        let file = unsafe {
            let made = libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &attr,
                size_of::<RulesetAttr>(),
                0,
            );
            OwnedFd::from_raw_fd(Errno::result(made)? as RawFd)
        };
        Ok(Self {
            file,
            handled,
            scratch,
        })
    }

    /// All that is on this host, but for its devices, of which only names can be read: a disk is all files at once.
    fn everything_but_devices(&self, rights: u64) -> Result<(), Errno> {
        self.allow_path(c"/", READ_DIR)?;
        let entries = std::fs::read_dir("/").map_err(spawn::errno)?;
        for entry in entries {
            let entry = entry.map_err(spawn::errno)?;
            let (name, kind) = (entry.file_name(), entry.file_type().map_err(spawn::errno)?);
            // What only names something else needs no rule.
            if name == "dev" || kind.is_symlink() {
                continue;
            }
            let path = [b"/", name.as_bytes()].concat();
            let rights = if kind.is_dir() {
                rights
            } else {
                rights & OF_A_FILE
            };
            if let Some(file) = find(&text(&path)?)? {
                self.allow(&file, rights)?;
            }
        }
        Ok(())
    }

    /// Allows this for a file, or for all below a directory. What is not there, or only names something else, needs
    /// no rule.
    fn allow_path(&self, path: &CStr, rights: u64) -> Result<(), Errno> {
        let Some(file) = find(path)? else {
            return Ok(());
        };
        let kind = fstat(&file)?.st_mode & libc::S_IFMT;
        match kind {
            libc::S_IFLNK => Ok(()),
            libc::S_IFDIR => self.allow(&file, rights),
            _ => self.allow(&file, rights & OF_A_FILE),
        }
    }

    fn allow(&self, file: &OwnedFd, rights: u64) -> Result<(), Errno> {
        let (ruleset, rights) = (self.file.as_raw_fd(), rights & self.handled);
        add_path(ruleset, file.as_raw_fd(), rights)
    }

    #[allow(unsafe_code)] // Neither the standard library nor nix has this call.
    fn allow_port(&self, port: u32) -> Result<(), Errno> {
        let attr = NetPortAttr {
            allowed_access: CONNECT_TCP,
            port: port.into(),
        };
        // SAFETY: the structure is read during the call only.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.file.as_raw_fd(),
                RULE_NET_PORT,
                &attr,
                0,
            )
        };
        Errno::result(added).map(drop)
    }

    /// After the fork: the scratch directory may be written.
    pub(super) fn allow_scratch(&self, scratch: BorrowedFd<'_>) -> Result<(), Errno> {
        add_path(self.file.as_raw_fd(), scratch.as_raw_fd(), self.scratch)
    }

    /// After the fork: from now on they hold, for this process and all that it starts.
    #[allow(unsafe_code)] // Neither the standard library nor nix has this call.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        // SAFETY: the call takes two integers.
        let entered =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.file.as_raw_fd(), 0) };
        Errno::result(entered).map(drop)
    }
}

/// Names a file, a directory or a link; `None` if it is not there, or not for us.
fn find(path: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
fn add_path(ruleset: RawFd, path: RawFd, rights: u64) -> Result<(), Errno> {
    if rights == 0 {
        return Ok(()); // The kernel takes no rule that allows nothing.
    }
    let attr = PathBeneathAttr {
        allowed_access: rights,
        parent_fd: path,
    };
    // SAFETY: the structure is read during the call only, and both descriptors are open.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset,
            RULE_PATH_BENEATH,
            &attr,
            0,
        )
    };
    Errno::result(added).map(drop)
}

fn text(bytes: impl AsRef<[u8]>) -> Result<CString, Errno> {
    CString::new(bytes.as_ref()).map_err(|_| Errno::EINVAL)
}
