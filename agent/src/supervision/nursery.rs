//! The process that forks supervisors. Its standard input is a socket on which the agent sends, for each that it
//! wants, one byte and one end of a connection. It works in the directory of the sockets.

use std::{
    fs::File,
    io::IoSliceMut,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    process::ExitCode,
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        prctl,
        signal::{SigHandler, Signal, signal},
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
    },
    unistd::ForkResult,
};

use super::supervisor;
use crate::{
    failpoint,
    process::{Cells, Host, fork},
};

/// Forks supervisors until the agent is gone. Returns in each supervisor too, at its end.
pub(super) fn run() -> ExitCode {
    let _ = prctl::set_name(c"muster-nursery");
    // What a supervisor leaves behind comes here, and the kernel clears it away once it ends.
    let _ = prctl::set_child_subreaper(true);
    handle_children(SigHandler::SigIgn);
    // Looked up once, for all supervisors.
    let Ok(host) = Host::new() else {
        return ExitCode::FAILURE;
    };
    // Read once, before there are workers, which have no environment.
    let _ = failpoint::is_armed();
    let mut cells = Cells::open();
    loop {
        let connection = match wanted() {
            Ok(Some(connection)) => connection,
            Ok(None) => return ExitCode::SUCCESS,
            Err(Errno::EINTR) => continue,
            Err(_) => return ExitCode::FAILURE,
        };
        let cell = cells.as_mut().and_then(Cells::make);
        // Without a fork the connection closes, and so the agent knows.
        if let Ok(ForkResult::Child) = fork(cell.as_ref().map(File::as_fd)) {
            drop(cell);
            handle_children(SigHandler::SigDfl);
            // The nursery's socket is not for us: its end must be seen when the nursery ends.
            if host.close_stdin().is_err() {
                return ExitCode::FAILURE;
            }
            return supervisor::run(host, connection);
        }
    }
}

/// The next connection to serve; `None` once the agent is gone.
fn wanted() -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([i32; 1]);
    let stdin = std::io::stdin().as_raw_fd();
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stdin, &mut parts, Some(&mut space), flags)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(files) = part
            && let Some(file) = files.first()
        {
            return Ok(Some(owned(*file)));
        }
    }
    Err(Errno::EBADMSG)
}

#[allow(unsafe_code)] // The kernel hands out a bare number.
fn owned(file: i32) -> OwnedFd {
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(file) }
}

#[allow(unsafe_code)] // A handler of ours would run at any moment; these two are none of ours.
fn handle_children(handler: SigHandler) {
    // SAFETY: ignoring a signal, or its default, runs no code in this process.
    let _ = unsafe { signal(Signal::SIGCHLD, handler) };
}
