//! The programs under test as child processes, and whether anything of them is left.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use parking_lot::Mutex;

use crate::{PATIENCE, console::Console, eventually};

/// Marks every process of a fleet, and of the tasks on its hosts, in its environment.
pub const MARK: &str = "FLEET_UNDER_TEST";

/// Where the programs of this workspace stand, built from the sources as they are.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    // Cargo hands a test the programs of its own package only. This builds nothing where
    // `cargo test --workspace` has built them already, and never leaves a stale one in place.
    #[allow(clippy::disallowed_methods)] // the harness starts the programs under test
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--offline", "--workspace", "--bins"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "the programs under test do not build"
    );
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_owned()
});

/// The program `muster`.
pub fn muster() -> PathBuf {
    PROGRAMS.join("muster")
}

/// The program `muster-agent`.
pub fn muster_agent() -> PathBuf {
    PROGRAMS.join("muster-agent")
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; empty if that is no UTF-8.
    pub stdout: String,
    /// The bytes of its standard output.
    pub bytes: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Exit code; -1 if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What is to be started.
#[derive(Debug)]
pub struct Start {
    name: String,
    command: Command,
    stdin: Option<Vec<u8>>,
}

impl Start {
    /// `name` tells its log files apart from others in the same directory. The environment is cleared of
    /// everything that could be a setting, and `home` is its home directory.
    pub fn new(name: String, program: &Path, home: &Path) -> Self {
        #[allow(clippy::disallowed_methods)] // the harness starts the programs under test
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home)
            .env("MUSTER_LOG", "info,muster=debug")
            .current_dir(home)
            .stdin(Stdio::null());
        Self {
            name,
            command,
            stdin: None,
        }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives bytes on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Gives a file on standard input.
    pub fn stdin_from(mut self, path: &Path) -> Self {
        self.command.stdin(File::open(path).unwrap());
        self
    }

    /// Starts it; what it says goes to files in `logs`.
    pub fn spawn(mut self, logs: &Path) -> Process {
        let stdout = logs.join(format!("{}.out", self.name));
        let stderr = logs.join(format!("{}.log", self.name));
        if let Some(bytes) = &self.stdin {
            let path = logs.join(format!("{}.in", self.name));
            fs::write(&path, bytes).unwrap();
            self.command.stdin(File::open(path).unwrap());
        }
        let append = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap()
        };
        self.command.stdout(append(&stdout)).stderr(append(&stderr));
        let child = self.command.spawn().unwrap_or_else(|error| {
            panic!("{} does not start: {error}", self.name);
        });
        Process {
            name: self.name.to_owned(),
            pid: Pid::from_raw(child.id().try_into().unwrap()),
            child: Mutex::new(child),
            stdout,
            stderr,
        }
    }

    /// Starts it with a standard output that nobody reads.
    pub fn spawn_unread(mut self, logs: &Path) -> Process {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let stderr = logs.join(format!("{}.log", self.name));
        self.command.stdout(writer);
        self.command.stderr(File::create(&stderr).unwrap());
        let child = self.command.spawn().unwrap();
        Process {
            pid: Pid::from_raw(child.id().try_into().unwrap()),
            child: Mutex::new(child),
            stdout: logs.join(format!("{}.out", self.name)),
            stderr,
            name: self.name,
        }
    }

    /// Starts it in a terminal, where all that it says goes too.
    pub fn spawn_in_terminal(mut self, logs: &Path, rows: u16, columns: u16) -> (Process, Console) {
        let (console, terminal) = Console::open(rows, columns);
        let stdio = || Stdio::from(terminal.try_clone().unwrap());
        self.command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        let child = self.command.spawn().unwrap();
        let process = Process {
            pid: Pid::from_raw(child.id().try_into().unwrap()),
            child: Mutex::new(child),
            stdout: logs.join(format!("{}.out", self.name)),
            stderr: logs.join(format!("{}.log", self.name)),
            name: self.name,
        };
        (process, console)
    }

    /// Runs it to its end.
    pub async fn run(self, logs: &Path) -> Ended {
        self.spawn(logs).ended(PATIENCE).await
    }
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// All that the process wrote to standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// All that the process wrote to standard output so far.
    pub fn out(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// Ends it the hard way (signal 9), and returns once it is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child.lock();
        // Not after it was waited for: the process id may be another's by then.
        if matches!(child.try_wait(), Ok(None)) {
            signal::kill(self.pid, signal).unwrap();
        }
    }

    /// Asks it to stop (SIGTERM) and waits for it.
    pub async fn stop(&self) -> Ended {
        self.signal(Signal::SIGTERM);
        self.ended(PATIENCE).await
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        !matches!(self.child.lock().try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub async fn ended(&self, limit: Duration) -> Ended {
        let what = format!("{} ends", self.name);
        let status = eventually(limit, &what, || async {
            self.child.lock().try_wait().unwrap()
        })
        .await;
        Ended {
            status,
            stdout: self.out(),
            bytes: fs::read(&self.stdout).unwrap_or_default(),
            stderr: self.log(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All processes.
fn all() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// Processes that carry `mark` in their environment, by id and command line.
pub fn marked(mark: &str) -> Vec<(Pid, String)> {
    let needle = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for pid in all() {
        // A process that has just ended, or is another user's, cannot be read; neither is ours.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == needle.as_bytes())
        {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push((pid, command));
        }
    }
    found
}

/// Kills what still carries `mark` after `grace`, and returns what that was.
pub fn reap(mark: &str, grace: Duration) -> Vec<String> {
    let start = Instant::now();
    loop {
        let left = marked(mark);
        if left.is_empty() || start.elapsed() > grace {
            return left
                .into_iter()
                .map(|(pid, command)| {
                    let _ = signal::kill(pid, Signal::SIGKILL);
                    command
                })
                .collect();
        }
        std::thread::yield_now();
    }
}

/// Kills supervisors, and the tasks below them: nobody ends these when a story ends.
pub fn end_tasks(mark: &str) {
    loop {
        let processes = marked(mark);
        let supervisors = processes
            .iter()
            .filter(|(_, command)| is_supervisor(command));
        let supervisors: HashSet<Pid> = supervisors.map(|(pid, _)| *pid).collect();
        if supervisors.is_empty() {
            return;
        }
        // Not only what is marked: a task may clear its environment.
        let below: Vec<Pid> = all().filter(|pid| is_below(*pid, &supervisors)).collect();
        for pid in supervisors.into_iter().chain(below) {
            let _ = signal::kill(pid, Signal::SIGKILL);
        }
    }
}

fn is_supervisor(command: &str) -> bool {
    command.trim_end().ends_with(" supervise")
}

/// Whether a process descends from one of these.
fn is_below(pid: Pid, others: &HashSet<Pid>) -> bool {
    let up = std::iter::successors(parent(pid), |pid| parent(*pid));
    up.take_while(|pid| pid.as_raw() > 1)
        .any(|pid| others.contains(&pid))
}

/// The parent of a process, if there is one.
pub fn parent(pid: Pid) -> Option<Pid> {
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let rest = &line[line.rfind(')')? + 1..];
    rest.split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .map(Pid::from_raw)
}

/// The most memory that a process has held so far (resident), bytes; nothing once it has ended. The kernel
/// notes the highest only now and then, so that this may go back a little where pages were reclaimed
/// (proc_pid_status(5): "inaccurate").
pub fn peak_memory(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Every process that has a child.
pub fn parents() -> HashSet<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| parent(Pid::from_raw(pid))).collect()
}

/// Kills what carries `mark` and has `text` in its command line, as a reboot would.
pub fn reap_matching(mark: &str, text: &str) {
    for (pid, command) in marked(mark) {
        if command.contains(text) {
            let _ = signal::kill(pid, Signal::SIGKILL);
        }
    }
}
