//! Attempts at what is mounted, and at the root of the file system.

use std::{mem::size_of, ptr::null};

use nix::libc::{self, c_int, c_long};

use crate::{number, ok, open, past, text, var};

/// Tries this one; `None` if it is none of these. Says whether it came through.
pub(crate) fn attempt(name: &str) -> Option<bool> {
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
