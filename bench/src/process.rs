//! The programs under measurement: started, watched through /proc, stopped by their ids.

use std::{
    fs::{self, File},
    ops::Range,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// A running program. Dropping it stops it.
pub(crate) struct Program {
    child: Child,
}

impl Program {
    /// Starts a program with these arguments and variables; what it says goes to a file.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Program> {
        let log = File::create(log)?;
        // The benchmark starts what it measures.
        #[allow(clippy::disallowed_methods)]
        let child = Command::new(program)
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        Ok(Program { child })
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    /// Whether it has ended by itself.
    pub(crate) fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(self.id()).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used since it had used `before`.
    pub(crate) fn cpu_since(&self, before: Duration) -> Duration {
        self.cpu().saturating_sub(before)
    }

    /// The most memory that it has had at once, KiB; `None` once it is over.
    pub(crate) fn peak(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// Resident memory and its proportional share, KiB.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        memory(self.id())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        if self.is_over() {
            return;
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// CPU time of this process.
pub(crate) fn own_cpu() -> Duration {
    cpu(std::process::id()).unwrap_or_default()
}

/// Resident memory of a process and its proportional share, KiB.
pub(crate) fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok((field("Rss:"), field("Pss:")))
}

/// CPU time of a process.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    // The scheduler's own count: in nanoseconds, but without threads that have ended.
    let mut living = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        living += text
            .split(' ')
            .next()
            .and_then(|nanos| nanos.parse::<u64>().ok())
            .unwrap_or(0);
    }
    // The time of all threads, but in ticks of 10 ms.
    let ticks: u64 = stat(pid, 11..13).iter().sum();
    Ok(Duration::from_nanos(living).max(Duration::from_millis(10 * ticks)))
}

/// CPU time of the children of a process that have ended and that it has waited for, in ticks of 10 ms.
pub(crate) fn children_cpu(pid: u32) -> Duration {
    let ticks: u64 = stat(pid, 13..15).iter().sum();
    Duration::from_millis(10 * ticks)
}

/// When a process began, in clock ticks since boot.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    stat(pid, 19..20).first().copied()
}

/// Numbers that the kernel tells about a process, counted from those after its name.
fn stat(pid: u32, fields: Range<usize>) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may hold anything.
    text.rsplit_once(") ")
        .map_or("", |(_, fields)| fields)
        .split(' ')
        .skip(fields.start)
        .take(fields.len())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Lets this process, and those that it starts, have as many files as they may.
pub(crate) fn raise_file_limit() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}
