//! How processes end, by whatever signal: `nix` knows no real-time signals, and its wait fails on one after the process
//! is cleared away.

use std::io;

use nix::{sys::signal::Signal, unistd::Pid};
use rustix::{
    io::retry_on_intr,
    process::{WaitOptions, WaitStatus, wait, waitpid},
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By the signal with this number.
    Signal(i32),
}

impl Exit {
    /// Waits until a child has ended. Blocks.
    pub(crate) fn of(child: Pid) -> io::Result<Self> {
        let child = rustix::process::Pid::from_raw(child.as_raw());
        let ended = retry_on_intr(|| waitpid(child, WaitOptions::empty()))?;
        let (_, status) = ended.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self::from(status))
    }

    /// Clears away a child that has ended; `None` once there is none.
    pub(crate) fn next() -> Option<(Pid, Self)> {
        let (child, status) = retry_on_intr(|| wait(WaitOptions::NOHANG)).ok().flatten()?;
        Some((Pid::from_raw(child.as_raw_pid()), Self::from(status)))
    }

    /// The name of the signal, as "SIGKILL"; as "SIG34" where it has none.
    pub(crate) fn signal(self) -> Option<String> {
        let Self::Signal(number) = self else {
            return None;
        };
        let name = Signal::try_from(number).map(|signal| signal.as_str().to_owned());
        Some(name.unwrap_or_else(|_| format!("SIG{number}")))
    }
}

impl From<WaitStatus> for Exit {
    fn from(status: WaitStatus) -> Self {
        match status.exit_status() {
            Some(code) => Self::Code(code),
            // Those that have stopped only are not waited for.
            None => Self::Signal(status.terminating_signal().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_without_a_name_has_its_number() {
        assert_eq!(Exit::Signal(9).signal().unwrap(), "SIGKILL");
        assert_eq!(Exit::Signal(34).signal().unwrap(), "SIG34");
        assert_eq!(Exit::Code(34).signal(), None);
    }
}
