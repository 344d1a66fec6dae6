//! The programs under measurement: started, watched through /proc, stopped by their ids.

use std::{
    fs::{self, File},
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
        cpu(self.child.id()).unwrap_or_default()
    }

    /// CPU time that it has used since it had used `before`.
    pub(crate) fn cpu_since(&self, before: Duration) -> Duration {
        self.cpu().saturating_sub(before)
    }

    /// Resident memory and its proportional share, KiB.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.trim().strip_suffix("kB"))
                .and_then(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        Ok((field("Rss:"), field("Pss:")))
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

fn cpu(pid: u32) -> anyhow::Result<Duration> {
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
    // Of all threads, but in ticks of 10 ms. The program's name, in parentheses, may hold anything.
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_nanos(living).max(Duration::from_millis(10 * ticks)))
}

/// Lets this process, and those that it starts, have as many files as they may.
pub(crate) fn raise_file_limit() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}
