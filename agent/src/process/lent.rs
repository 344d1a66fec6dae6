//! A child in the memory of this process, which waits until the child has become another program or has ended, as
//! `posix_spawn` does it: a start costs the same however large this process is, and no page of it has to be copied.

use std::ptr;

use nix::{errno::Errno, libc, unistd::Pid};

/// The child's stack, bytes. What runs on it makes system calls and calls nothing deep.
const STACK: usize = 64 << 10;

/// Starts a child that does this: bare system calls only. What it writes is seen here. If it comes back, the child ends.
#[allow(unsafe_code)] // A child that shares our memory, which nothing safe makes.
pub(super) fn start(mut work: &mut dyn FnMut()) -> Result<Pid, Errno> {
    let mut stack: Vec<u128> = Vec::with_capacity(STACK / size_of::<u128>());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let work = (&raw mut work).cast();
    // SAFETY: this thread waits in `clone` while the child uses its memory; the stack is the child's alone, aligned, and
    // as long as it says; `work` is what `run` takes it for. No signal is taken in the child before it has undone what
    // this process does on them, as all are blocked.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let top = stack.as_mut_ptr().add(stack.capacity()).cast();
        let pid = Errno::result(libc::clone(run, top, flags, work));
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        pid.map(Pid::from_raw)
    }
}

#[allow(unsafe_code)] // The other side of a call of the C library.
extern "C" fn run(work: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` gives a pointer to a work that outlives this, and looks at nothing until this is over; `_exit`
    // runs nothing of ours.
    unsafe {
        (*work.cast::<&mut dyn FnMut()>())();
        libc::_exit(127)
    }
}
