//! Stories of an agent and a control plane: real TLS, real processes, a fake control plane.

mod endings;
mod ends;
mod evil;
mod fake_control_plane;
mod files;
mod input;
mod limits;
mod losses;
mod modes;
mod reports;
mod starts;
mod survivals;
mod versions;
mod worker;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::LazyLock,
    time::Duration,
};

use muster_proto::{
    agent::v1::attach_request,
    v1::{Command, Reason, Script, task::State},
};
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Agent, AgentError, Config,
    supervision::{
        Left,
        protocol::{NotStarted, Record},
    },
    tasks::journal::{Accepted, Event, Journal, Starting},
};

use self::fake_control_plane::{FakeControlPlane, Reported};

/// The agent's program, which supervises tasks; the program of these tests cannot.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    // Cargo hands a test no program of its own package, unless the test stands outside. This builds nothing where
    // `cargo test --workspace` has built it already.
    #[allow(clippy::disallowed_methods)] // the test needs the program
    let mut build = process::Command::new(env!("CARGO"));
    build.args([
        "build",
        "--quiet",
        "--offline",
        "--package",
        "muster-agent",
        "--bins",
    ]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "it does not build"
    );
    let test = std::env::current_exe().unwrap();
    test.parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("muster-agent")
});

/// A host with an agent, in a directory that goes with it.
struct Host {
    directory: tempfile::TempDir,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), AgentError>>>,
    /// The agent's own threads, so that it can die without a word.
    threads: Option<Runtime>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.die();
    }
}

impl Host {
    async fn start(control_plane: &FakeControlPlane) -> Self {
        Self::start_with(control_plane, "").await
    }

    /// A host with a policy of its own.
    async fn start_with(control_plane: &FakeControlPlane, policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        control_plane.enroll(&directory.path().join("agent"));
        fs::write(directory.path().join("agent/policy.toml"), policy).unwrap();
        let mut host = Self {
            directory,
            stop: CancellationToken::new(),
            running: None,
            threads: None,
        };
        host.start_agent().await;
        host
    }

    fn config(&self) -> Config {
        Config {
            supervisor: PROGRAM.clone(),
            ..Config::new(self.directory.path().to_owned())
        }
    }

    async fn start_agent(&mut self) {
        self.die();
        let threads = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        self.stop = CancellationToken::new();
        let (config, stop) = (self.config(), self.stop.clone());
        // The last agent's lock goes with its last thread.
        self.running = Some(threads.spawn(async move {
            let agent = loop {
                match Agent::open(config.clone()).await {
                    Err(AgentError::Taken(_)) => tokio::task::yield_now().await,
                    opened => break opened?,
                }
            };
            agent.run(stop).await
        }));
        self.threads = Some(threads);
    }

    /// Ends the agent as a kill would, as far as its tasks can tell.
    fn die(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }

    async fn stop(&mut self) -> Result<(), AgentError> {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// An agent in a process of its own, which can be looked at, held and limited.
struct Process(process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(data_dir: &Path) -> Self {
        Self::start_at(data_dir, None)
    }

    /// The same with a failpoint.
    fn start_at(data_dir: &Path, failpoint: Option<&str>) -> Self {
        // So that a limit on its files is an error, as a full disk is, and not its end.
        let text = "trap '' XFSZ; exec \"$0\" --data-dir \"$1\" run";
        #[allow(clippy::disallowed_methods)] // the agent is a process here
        let child = process::Command::new("/bin/sh")
            .args(["-c", text])
            .arg(PROGRAM.as_path())
            .arg(data_dir)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(failpoint.map(|place| ("MUSTER_FAILPOINT", place)))
            .stdin(process::Stdio::null())
            .stdout(process::Stdio::null())
            .stderr(process::Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// No file of it gets longer than this, bytes; `None`: as long as it likes.
    fn limit_files(&self, most: Option<u64>) {
        let most = most.map_or_else(|| "unlimited".to_owned(), |most| most.to_string());
        #[allow(clippy::disallowed_methods)] // there is no safe call
        let done = process::Command::new("prlimit")
            .args(["--pid", &self.pid().to_string()])
            .arg(format!("--fsize={most}:"))
            .status();
        assert!(done.unwrap().success());
    }

    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        self.0.wait().unwrap();
    }
}

fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        ..Command::default()
    }
}

/// A task that begins, waits for a file, and then goes on.
fn waiter(begin: &str, go_on: &Path, then: &str) -> Command {
    let go_on = go_on.display();
    script(&format!(
        "{begin}; until [ -e {go_on} ]; do sleep 0.01; done; {then}"
    ))
}

fn script(text: &str) -> Command {
    Command {
        script: Some(Script {
            text: text.to_owned(),
            shell: String::new(),
        }),
        ..Command::default()
    }
}

fn kill(pid: i32) {
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

async fn until(what: &str, come: impl Fn() -> bool) {
    let waited = async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !come() {
            looks.tick().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
    assert!(waited.is_ok(), "never came: {what}");
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|line| !line[line.rfind(')').unwrap()..].starts_with(") Z"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_and_is_reported_until_it_is_settled() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let task_id = control_plane
        .offer(script("echo out; echo err >&2; exit 3"))
        .await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.out(), "out\n");
    assert_eq!(task.stderr, b"err\n");
    assert_eq!(task.state(), State::Failed);
    assert_eq!(task.ended.unwrap().exit_code, Some(3));
    assert!(task.started.unwrap().pid > 0);
    assert!(task.opens[0].fresh && task.opens.len() == 1);

    // Each is over as soon as its process and its output are: a second of waiting for more would show.
    let began = std::time::Instant::now();
    for _ in 0..8 {
        let task_id = control_plane.offer(command(&["true"])).await;
        let task = control_plane.settled(&task_id).await;
        assert_eq!(task.state(), State::Succeeded);
        assert_eq!(task.last_sequence, 0);
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(7));
    host.stop().await.unwrap();
    control_plane
        .until("a goodbye", |seen| {
            seen.messages
                .iter()
                .any(|message| matches!(message, attach_request::Message::Goodbye(_)))
                .then_some(())
        })
        .await;
    assert_eq!(fs::read_dir(host.path("agent/spool")).unwrap().count(), 0);
}
