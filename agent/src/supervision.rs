//! Small processes that hold tasks, so that these outlive the agent.
//!
//! The agent's own program, called with one hidden argument, is the nursery: one thread, no runtime. It forks
//! supervisors, each of which serves one task at a time over a socket. Neither cares whether the agent lives: a
//! supervisor with a task goes on and waits for another agent, which finds it in the agent's directory.

mod link;
mod nursery;
mod pool;
mod probe;
pub(crate) mod protocol;
mod record;
mod supervisor;

use std::{path::PathBuf, process::ExitCode};

use nix::{sys::signal::Signal, unistd::Pid};

pub(crate) use self::{
    link::Link,
    pool::Pool,
    probe::missing,
    record::{Left, sweep},
};
use crate::process;

/// The argument that makes the agent's program a nursery.
const ARGUMENT: &str = "supervise";

/// The argument that makes it see whether the kernel can confine a task.
const PROBE: &str = "supervise-probe";

/// The directory of sockets, and of what supervisors write, in the agent's.
pub(crate) const DIRECTORY: &str = "supervisors";

/// Does the work of a nursery or a supervisor, if this process was started for that; `None` if not. To be called
/// before anything else, while this process has a single thread.
pub fn supervise() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next()?;
    if arguments.next().is_some() {
        return None;
    }
    match first.to_str()? {
        ARGUMENT => Some(nursery::run()),
        PROBE => Some(probe::run()),
        process::PROBED => Some(ExitCode::SUCCESS),
        _ => None,
    }
}

/// Names a supervisor for as long as the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SupervisorId {
    pub(crate) pid: i32,
    /// When it began, in clock ticks since boot.
    pub(crate) start_time: u64,
}

impl SupervisorId {
    fn ours() -> Self {
        let pid = Pid::this();
        Self {
            pid: pid.as_raw(),
            start_time: process::start_time(pid).unwrap_or_default(),
        }
    }

    /// Whether it is alive.
    pub(crate) fn lives(&self) -> bool {
        process::lives(Pid::from_raw(self.pid), self.start_time)
    }

    /// Whether somebody has stopped it, other than to debug it.
    pub(crate) fn is_stopped(&self) -> bool {
        process::is_stopped(Pid::from_raw(self.pid), self.start_time)
    }

    /// Sends it a signal, if it lives.
    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(Pid::from_raw(self.pid), self.start_time, signal);
    }

    /// Ends what is left in its control group, if it has one and is gone; says whether there was anything. Blocks.
    pub(crate) fn end_left_over(&self) -> Option<bool> {
        let cell = process::Cell::labelled(&self.file_name())?;
        Some(cell.end())
    }

    /// The name of its socket.
    fn file_name(&self) -> PathBuf {
        format!("{}-{}", self.pid, self.start_time).into()
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let (pid, start_time) = name.split_once('-')?;
        Some(Self {
            pid: pid.parse().ok()?,
            start_time: start_time.parse().ok()?,
        })
    }
}
