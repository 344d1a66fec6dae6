//! The files of a task as it sees them: a mount namespace of its own, in which everything is read-only but where it
//! may write. Landlock does not look at attributes (modes, owners, times, extended ones); mounts do.
//!
//! All but [`Mounts::new`] happens between fork and exec: bare system calls, and nothing is allocated.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    libc,
    sys::stat::{Mode, mkdirat},
};

use super::{Layers, Sandbox};

const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const MOUNT_ATTR_RDONLY: u64 = 0x01;
const MOUNT_ATTR_NOSUID: u64 = 0x02;
const MOUNT_ATTR_NODEV: u64 = 0x04;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// Where shared memory is, and a task's scratch directory: it can be reached by every user.
const SHARED_MEMORY: &CStr = c"/dev/shm";

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What a task's namespace looks like.
#[derive(Debug)]
pub(super) struct Mounts {
    /// Directories that stay writable.
    writes: Vec<CString>,
    /// Directories on the way from one of those to something hidden, which must not be moved away with it.
    pins: Vec<CString>,
    /// Files and directories in whose place there is nothing.
    hidden: Vec<CString>,
    /// Covered by the scratch directory: what is the agent's own.
    covered: CString,
    /// The options of the scratch directory's file system.
    size: CString,
    user: CString,
    group: CString,
    read_only: bool,
    cover: bool,
}

impl Mounts {
    /// The namespace of a task that runs as this user and group.
    pub(super) fn new(
        sandbox: &Sandbox,
        user: u32,
        group: u32,
        layers: &Layers,
    ) -> Result<Self, Errno> {
        let text = |path: &str| CString::new(path).map_err(|_| Errno::EINVAL);
        let hidden: &[String] = match layers.has("hidden") {
            true => &sandbox.hidden,
            false => &[],
        };
        let covered = [&sandbox.covered];
        let pins: Vec<PathBuf> = match layers.has("pins") {
            true => pins(&sandbox.writes, hidden.iter().chain(covered)),
            false => Vec::new(),
        };
        let pins = pins.iter().map(|path| text(&path.to_string_lossy()));
        Ok(Self {
            writes: sandbox
                .writes
                .iter()
                .map(|path| text(path))
                .collect::<Result<_, _>>()?,
            pins: pins.collect::<Result<_, _>>()?,
            hidden: hidden
                .iter()
                .map(|path| text(path))
                .collect::<Result<_, _>>()?,
            covered: text(&sandbox.covered)?,
            size: text(&sandbox.scratch_bytes.to_string())?,
            user: text(&user.to_string())?,
            group: text(&group.to_string())?,
            read_only: layers.has("read-only"),
            cover: layers.has("covered"),
        })
    }

    /// Makes this process's mount namespace, which is new, what it should be. Returns the scratch directory.
    pub(super) fn enter(&self) -> Result<OwnedFd, Errno> {
        // What is mounted from now on on the host would come writable.
        let private = MountAttr {
            propagation: libc::MS_PRIVATE,
            ..MountAttr::default()
        };
        set(libc::AT_FDCWD, c"/", AT_RECURSIVE, &private)?;
        if self.read_only {
            self.close()?;
        }
        for path in &self.pins {
            if let Some(place) = find(path)? {
                mount(&clone(&place)?, &place)?;
            }
        }
        if !self.hidden.is_empty() {
            self.hide()?;
        }
        let scratch = self.memory(&self.size, c"0700")?;
        if !self.cover {
            let place = find(SHARED_MEMORY)?.ok_or(Errno::ENOENT)?;
            mount(&scratch, &place)?;
            return Ok(scratch);
        }
        let covered = find(&self.covered)?.ok_or(Errno::ENOENT)?;
        mount(&scratch, &covered)?;
        if let Some(place) = find(SHARED_MEMORY)? {
            let again = find(&self.covered)?.ok_or(Errno::ENOENT)?;
            mount(&clone(&again)?, &place)?;
        }
        Ok(scratch)
    }

    /// Makes everything read-only but what may be written.
    fn close(&self) -> Result<(), Errno> {
        // At most as many as a policy has roots.
        let mut kept: [Option<(OwnedFd, OwnedFd)>; super::ROOTS] = [const { None }; super::ROOTS];
        for (kept, path) in kept.iter_mut().zip(&self.writes) {
            let place = find(path)?.ok_or(Errno::ENOENT)?;
            *kept = Some((clone(&place)?, place));
        }
        let read_only = MountAttr {
            attr_set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        set(libc::AT_FDCWD, c"/", AT_RECURSIVE, &read_only)?;
        for (tree, place) in kept.iter().flatten() {
            mount(tree, place)?;
        }
        Ok(())
    }

    /// Puts something that nobody can open in the place of what is hidden.
    fn hide(&self) -> Result<(), Errno> {
        let void = self.memory(c"65536", c"0700")?;
        mkdirat(&void, c"d", Mode::empty())?;
        let flags = OFlag::O_CREAT | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        drop(openat(&void, c"f", flags, Mode::empty())?);
        // To be taken from, it has to be mounted somewhere; the scratch directory will cover it.
        let covered = find(&self.covered)?.ok_or(Errno::ENOENT)?;
        mount(&void, &covered)?;
        let void = find(&self.covered)?.ok_or(Errno::ENOENT)?;
        let read_only = MountAttr {
            attr_set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        for path in &self.hidden {
            let Some(place) = find(path)? else { continue };
            let kind = nix::sys::stat::fstat(&place)?.st_mode & libc::S_IFMT;
            let nothing = match kind {
                libc::S_IFDIR => c"d",
                _ => c"f",
            };
            let nothing = open_tree(void.as_raw_fd(), nothing, 0)?;
            set(nothing.as_raw_fd(), c"", AT_EMPTY_PATH, &read_only)?;
            mount(&nothing, &place)?;
        }
        Ok(())
    }

    /// A new file system in memory, of the task's user.
    fn memory(&self, size: &CStr, mode: &CStr) -> Result<OwnedFd, Errno> {
        let context = descriptor(call([
            libc::SYS_fsopen,
            pointer(c"tmpfs"),
            FSOPEN_CLOEXEC.into(),
            0,
            0,
            0,
        ])?);
        let options = [
            (c"size", size),
            (c"mode", mode),
            (c"uid", &self.user),
            (c"gid", &self.group),
        ];
        for (key, value) in options {
            call([
                libc::SYS_fsconfig,
                context.as_raw_fd().into(),
                FSCONFIG_SET_STRING.into(),
                pointer(key),
                pointer(value),
                0,
            ])?;
        }
        call([
            libc::SYS_fsconfig,
            context.as_raw_fd().into(),
            FSCONFIG_CMD_CREATE.into(),
            0,
            0,
            0,
        ])?;
        let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        Ok(descriptor(call([
            libc::SYS_fsmount,
            context.as_raw_fd().into(),
            FSMOUNT_CLOEXEC.into(),
            attributes as libc::c_long,
            0,
            0,
        ])?))
    }
}

/// The directories that lie between a writable one and something that is hidden below it. Whoever moved one of them
/// would find the hidden thing in another place. Pure.
fn pins<'a>(writes: &[String], hidden: impl Iterator<Item = &'a String>) -> Vec<PathBuf> {
    let mut pins = Vec::new();
    for hidden in hidden {
        let hidden = Path::new(hidden);
        let root = writes.iter().find(|root| hidden.starts_with(root));
        let Some(root) = root else { continue };
        let between = hidden
            .ancestors()
            .skip(1)
            .take_while(|path| *path != Path::new(root));
        pins.extend(between.map(Path::to_owned));
    }
    // The outer ones first: an inner one is mounted in what they show.
    pins.sort_by_key(|path| path.components().count());
    pins.dedup();
    pins
}

/// Opens a place by its path, which leads over no link: whoever may write there could have set one.
#[allow(unsafe_code)] // nix has no such call for a path that has to be found in this very namespace.
fn find(path: &CStr) -> Result<Option<OwnedFd>, Errno> {
    // SAFETY: a structure of integers, which may be zero.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_SYMLINKS;
    let opened = call([
        libc::SYS_openat2,
        libc::AT_FDCWD.into(),
        pointer(path),
        std::ptr::from_ref(&how) as libc::c_long,
        size_of::<libc::open_how>() as libc::c_long,
        0,
    ]);
    match opened {
        Ok(file) => Ok(Some(descriptor(file))),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What is mounted there, to be mounted once more.
fn clone(place: &OwnedFd) -> Result<OwnedFd, Errno> {
    open_tree(place.as_raw_fd(), c"", AT_EMPTY_PATH | AT_RECURSIVE)
}

fn open_tree(directory: RawFd, path: &CStr, flags: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    let tree = call([
        libc::SYS_open_tree,
        directory.into(),
        pointer(path),
        flags.into(),
        0,
        0,
    ])?;
    Ok(descriptor(tree))
}

fn mount(tree: &impl AsFd, place: &impl AsFd) -> Result<(), Errno> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    call([
        libc::SYS_move_mount,
        tree.as_fd().as_raw_fd().into(),
        pointer(c""),
        place.as_fd().as_raw_fd().into(),
        pointer(c""),
        flags.into(),
    ])
    .map(drop)
}

fn set(directory: RawFd, path: &CStr, flags: u32, attr: &MountAttr) -> Result<(), Errno> {
    call([
        libc::SYS_mount_setattr,
        directory.into(),
        pointer(path),
        flags.into(),
        std::ptr::from_ref(attr) as libc::c_long,
        size_of::<MountAttr>() as libc::c_long,
    ])
    .map(drop)
}

fn pointer(text: &CStr) -> libc::c_long {
    text.as_ptr() as libc::c_long
}

/// Neither the standard library nor nix has these calls.
#[allow(unsafe_code)]
fn call([number, a, b, c, d, e]: [libc::c_long; 6]) -> Result<RawFd, Errno> {
    // SAFETY: each caller gives what the call takes; what a pointer points to lives until the call is over, and
    // none of them writes to it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    Errno::result(result).map(|result| result as RawFd)
}

#[allow(unsafe_code)] // The kernel hands out a bare number.
fn descriptor(file: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_a_root_and_something_hidden_is_pinned_from_outside_to_inside() {
        let roots = ["/home/ada".to_owned(), "/srv".to_owned()];
        let hidden = [
            "/home/ada/.local/share/muster".to_owned(),
            "/home/ada/.ssh".to_owned(),
            "/etc/shadow".to_owned(),
        ];
        let expected = ["/home/ada/.local", "/home/ada/.local/share"].map(PathBuf::from);
        assert_eq!(pins(&roots, hidden.iter()), expected);
    }
}
