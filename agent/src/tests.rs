//! Stories of an agent and a control plane: real TLS, real processes, a fake control plane.

mod ends;
mod evil;
mod files;
mod limits;
mod losses;
mod modes;
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
    fake_control_plane::{FakeControlPlane, Reported},
    supervision::{
        Left,
        protocol::{NotStarted, Record},
    },
    tasks::journal::{Accepted, Event, Journal, Starting},
};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_gets_its_input_environment_and_directory() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted = script(
        "pwd; echo $WORD; wc -c; echo $MUSTER_TASK_ID; ps -o sid= -p $$ | tr -d ' '; echo $$",
    );
    wanted.cwd = "/usr".to_owned();
    wanted.env.insert("WORD".to_owned(), "a=b c".to_owned());
    wanted.stdin = vec![b'x'; 300_000].into();
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    let out = task.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..4], ["/usr", "a=b c", "300000", &task_id]);
    assert_eq!(lines[4], lines[5], "the process leads a session of its own");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_inherits_no_open_files() {
    use std::os::fd::AsRawFd as _;
    // Unlike those of the standard library, inherited unless somebody prevents it.
    let (left_open, _writer) = nix::unistd::pipe().unwrap();
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let look = format!(
        "test -e /proc/self/fd/{} || echo none",
        left_open.as_raw_fd()
    );
    let task_id = control_plane.offer(script(&look)).await;
    assert_eq!(control_plane.settled(&task_id).await.out(), "none\n");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_may_open_as_many_files_as_the_agent_was_given() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let given = soft.min(hard - 1);
    setrlimit(Resource::RLIMIT_NOFILE, given, hard).unwrap();
    muster_runtime::descriptors::raise().unwrap();
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    // The process has begun when the limit is set.
    let look = format!("until [ $(ulimit -n) = {given} ]; do sleep 0.01; done");
    let mut wanted = script(&look);
    wanted.timeout = Some(Duration::from_secs(10).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    assert_eq!(
        control_plane.settled(&task_id).await.state(),
        State::Succeeded
    );
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    fs::write(host.path("plain"), "no program").unwrap();
    let plain = host.path("plain").display().to_string();
    let with = |change: fn(&mut Command)| {
        let mut command = command(&["true"]);
        change(&mut command);
        command
    };
    let cases = [
        (command(&["no-such-program"]), Reason::CommandNotFound),
        (command(&["/no/such/program"]), Reason::CommandNotFound),
        (command(&[&plain]), Reason::CommandNotExecutable),
        (
            with(|c| c.cwd = "/no/such/place".to_owned()),
            Reason::WorkingDirectoryMissing,
        ),
        (
            with(|c| c.cwd = "/etc/passwd".to_owned()),
            Reason::WorkingDirectoryMissing,
        ),
        (
            with(|c| c.user = "nobody-of-that-name".to_owned()),
            Reason::UserNotPermitted,
        ),
        (
            with(|c| c.argv.push("x".repeat(200 << 10))),
            Reason::ArgumentListTooLong,
        ),
        (
            with(|c| c.argv.push("a\0b".to_owned())),
            Reason::StartFailed,
        ),
        (with(|c| c.argv.clear()), Reason::ArgumentInvalid),
    ];
    for (command, reason) in cases {
        let task_id = control_plane.offer(command).await;
        let task = control_plane.settled(&task_id).await;
        let ended = task.ended.clone().unwrap();
        assert_eq!(ended.reason(), reason, "{}", ended.message);
        assert_eq!(task.state(), State::Failed);
        assert!(!ended.message.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_runs_commands_as_others_and_nobody_else_does() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted = script("id -un; id -Gn; echo $USER $HOME; pwd; ps -o sid= -p $$; echo $$");
    wanted.user = "nobody".to_owned();
    wanted.cwd = "/".to_owned();
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    if nix::unistd::geteuid().is_root() {
        let out = task.out();
        let lines: Vec<&str> = out.lines().map(str::trim).collect();
        assert_eq!(lines[0], "nobody");
        assert!(!lines[1].split(' ').any(|group| group == "root"), "{out}");
        assert!(lines[2].starts_with("nobody /"));
        assert_eq!(lines[3], "/");
        assert_eq!(lines[4], lines[5]);
    } else {
        assert_eq!(task.ended.unwrap().reason(), Reason::UserNotPermitted);
    }
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_whole_tree() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    // One child in the tree, one that has left session and parents, one that does not go politely.
    let text = "sleep 600 & echo $!
        setsid sh -c '(sleep 601 & echo $!) ' &
        sh -c 'trap \"\" TERM; echo $$; while :; do sleep 602; done' &
        wait";
    let task_id = control_plane.offer(script(text)).await;
    let task = control_plane
        .task(&task_id, |task| task.out().lines().count() == 3)
        .await;
    let pids: Vec<i32> = task.out().lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|&pid| alive(pid)));
    control_plane
        .cancel(&task_id, Some(Duration::from_millis(300)))
        .await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    assert_eq!(task.ended.unwrap().reason(), Reason::CancelRequested);
    assert!(!pids.iter().any(|&pid| alive(pid)));
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_a_process_whose_name_is_no_text() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    // The kernel keeps 15 bytes of a name, here seven characters and a half.
    let program = host.path("ääääääää");
    fs::copy("/bin/sleep", &program).unwrap();
    let task_id = control_plane
        .offer(command(&[program.to_str().unwrap(), "600"]))
        .await;
    control_plane
        .task(&task_id, |task| task.started.is_some())
        .await;
    control_plane.cancel(&task_id, None).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_ends_the_tree_too() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted = script("sleep 600 & echo $!; wait");
    wanted.timeout = Some(Duration::from_secs(3).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::TimedOut);
    assert!(!alive(task.out().trim().parse().unwrap()));
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn something_left_running_does_not_hold_the_task() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let task_id = control_plane.offer(script("sleep 600 & echo $!")).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded);
    assert!(
        task.ended
            .as_ref()
            .unwrap()
            .message
            .contains("left running")
    );
    let left = task.out().trim().parse().unwrap();
    assert!(alive(left), "what a task leaves behind on purpose goes on");
    kill(left);
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_in_mid_output_loses_and_repeats_nothing() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let text = format!(
        "seq 1 200000; while [ ! -e {} ]; do sleep 0.01; done; seq 1 1000",
        go_on.display()
    );
    let task_id = control_plane.offer(script(&text)).await;
    control_plane
        .task(&task_id, |task| task.stdout.len() > 100_000)
        .await;
    control_plane.cut();
    control_plane.attached(2).await;
    fs::write(go_on, "").unwrap();
    let task = control_plane.settled(&task_id).await;
    let expected: String = (1..=200_000)
        .chain(1..=1000)
        .map(|n| format!("{n}\n"))
        .collect();
    assert!(
        task.out() == expected,
        "{} of {} bytes",
        task.stdout.len(),
        expected.len()
    );
    assert!(!task.opens.last().unwrap().sealed_offer.is_empty());
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_comes_again_is_answered_not_started() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mark = host.path("ran");
    let (task_id, offer) =
        control_plane.offer_of(script(&format!("echo once >> {}", mark.display())));
    let offer = muster_proto::agent::v1::attach_response::Message::Offer(offer);
    control_plane.send(offer.clone()).await;
    control_plane.settled(&task_id).await;
    control_plane.send(offer).await;
    let task = control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    assert!(!task.opens[1].fresh);
    control_plane.drain().await;
    control_plane.attached(2).await;
    assert_eq!(fs::read_to_string(mark).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_was_taken_and_is_asked_for_again_does_not_pass_for_none() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let (task_id, offer) = control_plane.offer_of(script("echo something"));
    let offer = muster_proto::agent::v1::attach_response::Message::Offer(offer);
    control_plane.send(offer.clone()).await;
    assert_eq!(control_plane.settled(&task_id).await.out(), "something\n");
    control_plane.forget(&task_id);
    control_plane.send(offer).await;
    let task = control_plane
        .task(&task_id, |task| task.ended.is_some())
        .await;
    assert_eq!(task.state(), State::Succeeded);
    control_plane.drain().await;
    control_plane.attached(2).await;
    let task = control_plane.task(&task_id, |_| true).await;
    assert!(!task.output_ended, "{task:?}");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_control_plane_hears_what_became_of_settled_tasks() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let failed = control_plane.offer(script("echo out; exit 3")).await;
    control_plane.settled(&failed).await;
    // Remembered over a restart of the agent.
    host.stop().await.unwrap();
    host.start_agent().await;
    control_plane.attached(2).await;
    let offered = control_plane.offer_of(command(&["true"])).0;
    control_plane.behave(|behaviour| {
        behaviour.upload = true;
        behaviour.expected = vec![failed.clone(), offered.clone()];
    });
    control_plane.cut();
    let recalled = control_plane
        .until("the upload", |seen| seen.recalled.first().cloned())
        .await;
    assert_eq!(recalled.task_id, failed);
    assert!(!recalled.sealed_offer.is_empty() && !recalled.seal.is_empty());
    assert_eq!(recalled.ended.unwrap().exit_code, Some(3));
    assert_eq!((recalled.stdout_bytes, recalled.stderr_bytes), (4, 0));
    assert!(recalled.started.unwrap().pid > 0);
    control_plane
        .until("what was never seen is named", |seen| {
            let named = |message: &attach_request::Message| matches!(message, attach_request::Message::NotHeld(not_held) if not_held.task_ids == [offered.clone()]);
            seen.messages.iter().any(named).then_some(())
        })
        .await;
    host.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_was_cancelled_before_it_came_never_starts() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mark = host.path("ran");
    let (task_id, offer) = control_plane.offer_of(script(&format!("touch {}", mark.display())));
    control_plane.cancel(&task_id, None).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    control_plane
        .send(muster_proto::agent::v1::attach_response::Message::Offer(
            offer,
        ))
        .await;
    let task = control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    assert_eq!(task.state(), State::Cancelled);
    assert!(!mark.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_tasks_are_named_and_late_offers_expire() {
    let control_plane = FakeControlPlane::start().await;
    let (unknown, mut late) = control_plane.offer_of(command(&["true"]));
    control_plane.behave(|behaviour| behaviour.expected = vec![unknown.clone()]);
    let host = Host::start(&control_plane).await;
    control_plane
        .until("not held", |seen| {
            seen.messages.iter().find_map(|message| match message {
                attach_request::Message::NotHeld(not_held) => {
                    (not_held.task_ids == [unknown.clone()]).then_some(())
                }
                _ => None,
            })
        })
        .await;
    use prost::Message as _;
    let mut sealed = muster_proto::agent::v1::SealedOffer::decode(late.sealed_offer).unwrap();
    sealed.not_after = Some((std::time::SystemTime::now() - Duration::from_secs(1)).into());
    late.sealed_offer = sealed.encode_to_vec().into();
    control_plane
        .send(muster_proto::agent::v1::attach_response::Message::Offer(
            late,
        ))
        .await;
    let task = control_plane.settled(&unknown).await;
    assert_eq!(task.state(), State::Expired);
    assert_eq!(task.ended.unwrap().reason(), Reason::StartDeadlinePassed);
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_agent_leaves_what_runs_and_the_next_one_goes_on() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("echo $$", &go_on, "echo after; exit 4");
    let (task_id, pid) = control_plane.begun(wanted).await;
    host.stop().await.unwrap();
    assert!(alive(pid));
    host.start_agent().await;
    control_plane.attached(2).await;
    fs::write(go_on, "").unwrap();
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Failed);
    assert_eq!(task.ended.as_ref().unwrap().exit_code, Some(4));
    assert_eq!(task.out(), format!("{pid}\nafter\n"));
    // The supervisor of an earlier agent is not kept.
    control_plane.offer(command(&["true"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_there_is_no_agent_is_reported_by_the_next() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let (go_on, done) = (host.path("go-on"), host.path("done"));
    let then = format!(
        "seq 1 500000; echo bad >&2; touch {}; exit 5",
        done.display()
    );
    let wanted = waiter("echo before", &go_on, &then);
    let task_id = control_plane.offer(wanted).await;
    control_plane
        .task(&task_id, |task| !task.stdout.is_empty())
        .await;
    host.die();
    fs::write(go_on, "").unwrap();
    // More than fits memory, and nobody takes it: the process is not held up.
    until("the process ends", || done.exists()).await;
    host.start_agent().await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.ended.as_ref().unwrap().exit_code, Some(5));
    let numbers: String = (1..=500_000).map(|n| format!("{n}\n")).collect();
    assert!(task.out() == format!("before\n{numbers}"));
    assert_eq!(task.stderr, b"bad\n");
    assert_eq!(task.missing, [0, 0]);
    let left = || {
        fs::read_dir(host.path("agent/supervisors"))
            .unwrap()
            .count()
    };
    until("nothing is left of it", || left() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_speaks_for_a_supervisor_that_is_killed_too() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("echo $PPID", &go_on, "seq 1 1000; exit 6");
    let (task_id, supervisor) = control_plane.begun(wanted).await;
    host.die();
    fs::write(go_on, "").unwrap();
    let record = host
        .path("agent/supervisors")
        .join(format!("{task_id}.ended"));
    until("the record", || record.exists()).await;
    kill(supervisor);
    until("its end", || !alive(supervisor)).await;
    host.start_agent().await;
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.ended.as_ref().unwrap().exit_code, Some(6));
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(ended.out(), format!("{supervisor}\n{numbers}"));
    assert!(!record.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_the_next_agent_finds_is_one_all_the_same() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    host.stop().await.unwrap();
    host.die();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (task_id, offer) = control_plane.offer_of(command(&["true"]));
    let accepted = Event::Accepted(Accepted {
        task_id: task_id.clone(),
        sealed_offer: offer.sealed_offer,
        seal: offer.seal,
        not_after_ms: 0,
    });
    let starting = Event::Starting(Starting {
        task_id: task_id.clone(),
        ..Default::default()
    });
    let (journal, _) = Journal::open(&host.path("agent"), boot_id.trim(), 0).unwrap();
    journal.write(0, vec![accepted, starting]).unwrap();
    drop(journal);
    let record = Record {
        not_started: Some(NotStarted {
            reason: Reason::ModeUnenforceable.into(),
            message: "this host cannot enforce the mode of the task".to_owned(),
        }),
        ..Record::default()
    };
    Left::new(&host.path("agent/supervisors"), task_id.parse().unwrap())
        .write(&record)
        .unwrap();
    host.start_agent().await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Rejected);
    assert_eq!(task.ended.unwrap().reason(), Reason::ModeUnenforceable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_supervisor_leaves_its_task_lost_and_nothing_running() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let text = "ps -o ppid= -p $$; echo $$; setsid sleep 600 & echo $!; trap '' TERM; while :; do sleep 1; done";
    let mut wanted = script(text);
    wanted.grace = Some(Duration::from_millis(100).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane
        .task(&task_id, |task| task.out().lines().count() == 3)
        .await;
    let pids: Vec<i32> = task
        .out()
        .lines()
        .map(|pid| pid.trim().parse().unwrap())
        .collect();
    kill(pids[0]);
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.state(), State::Lost);
    assert_eq!(
        ended.ended.as_ref().unwrap().reason(),
        Reason::SupervisorDied
    );
    assert_eq!(ended.out(), task.out());
    assert!(!pids.iter().any(|&pid| alive(pid)));
    // The host is as good as new.
    let task_id = control_plane.offer(command(&["true"])).await;
    assert_eq!(
        control_plane.settled(&task_id).await.state(),
        State::Succeeded
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_supervisor_leaves_nothing_that_hides() {
    if crate::process::Cells::open().is_none() {
        eprintln!("skipped: this user may make no control groups here");
        return;
    }
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    for agent_is_there in [true, false] {
        let hidden = host.path(&format!("hidden-{agent_is_there}"));
        // In a session of its own, without its environment, and nobody's child.
        let text = format!(
            "ps -o ppid= -p $$; (env -i setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' \
             >/dev/null 2>&1 &); exec sleep 600",
            hidden.display()
        );
        let task_id = control_plane.offer(script(&text)).await;
        let task = control_plane
            .task(&task_id, |task| task.out().lines().count() == 1)
            .await;
        let supervisor = task.out().trim().parse().unwrap();
        until("something hides", || hidden.exists()).await;
        let hidden = fs::read_to_string(hidden).unwrap().trim().parse().unwrap();
        if !agent_is_there {
            host.die();
        }
        kill(supervisor);
        if !agent_is_there {
            until("its end", || !alive(supervisor)).await;
            assert!(alive(hidden), "it hides well");
            host.start_agent().await;
        }
        let ended = control_plane.settled(&task_id).await;
        assert_eq!(ended.state(), State::Lost);
        assert!(!alive(hidden));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stays_one_though_the_agent_stops_meanwhile() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("trap 'echo asked' TERM; echo ready", &go_on, ":");
    let task_id = control_plane.offer(wanted).await;
    let says = |word: &'static str| move |task: &Reported| task.out().contains(word);
    control_plane.task(&task_id, says("ready")).await;
    let grace = Some(Duration::from_secs(600));
    control_plane.cancel(&task_id, grace).await;
    control_plane.task(&task_id, says("asked")).await;
    host.stop().await.unwrap();
    host.start_agent().await;
    control_plane.attached(2).await;
    fs::write(go_on, "").unwrap();
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_reaches_the_process_once() {
    use muster_proto::v1::{CloseStdin, InputStatus, task_input::Kind};
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let mut wanted = script(
        "echo ready; trap 'echo hup' HUP
         until [ \"$line\" = two ]; do line=; read line && echo got $line; done; cat; echo end",
    );
    wanted.open_stdin = true;
    wanted.stdin = "first\n".into();
    let task_id = control_plane.offer(wanted).await;
    control_plane
        .task(&task_id, |task| task.out().contains("got first"))
        .await;
    let data = |text: &str| Kind::Data(text.to_owned().into());
    for _ in 0..2 {
        let status = control_plane.put(&task_id, "1", data("one\n")).await;
        assert_eq!(status, InputStatus::Accepted);
    }
    control_plane
        .task(&task_id, |task| task.out().contains("got one"))
        .await;
    // Another agent puts in no more of it either.
    host.start_agent().await;
    control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    let again = async {
        loop {
            match control_plane.put(&task_id, "1", data("one\n")).await {
                InputStatus::Starting => tokio::task::yield_now().await,
                status => return status,
            }
        }
    };
    assert_eq!(again.await, InputStatus::Accepted);
    let signal = Kind::Signal("SIGHUP".to_owned());
    assert_eq!(
        control_plane.put(&task_id, "2", signal).await,
        InputStatus::Accepted
    );
    assert_eq!(
        control_plane.put(&task_id, "3", data("two\n")).await,
        InputStatus::Accepted
    );
    let end = Kind::CloseStdin(CloseStdin {});
    assert_eq!(
        control_plane.put(&task_id, "4", end).await,
        InputStatus::Accepted
    );
    let task = control_plane.settled(&task_id).await;
    let out = task.out();
    assert!(out.contains("hup\n"), "{out}");
    let rest: Vec<&str> = out.lines().filter(|line| *line != "hup").collect();
    assert_eq!(rest, ["ready", "got first", "got one", "got two", "end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_one_and_outlives_the_agent() {
    use muster_proto::v1::{InputStatus, Terminal, task_input::Kind};
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let mut wanted = script(
        "stty -echo; tty; echo $TERM; stty size; trap 'echo interrupted' INT; trap 'stty size' WINCH;
         echo ready; until [ \"$line\" = quit ]; do line=; read line && echo got $line; done; cat; echo end",
    );
    let terminal = |rows, columns| Terminal {
        rows,
        columns,
        term: "vt100".to_owned(),
    };
    wanted.terminal = Some(terminal(0, 132));
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane
        .task(&task_id, |task| task.out().contains("ready"))
        .await;
    let out = task.out();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{out}");
    assert_eq!(&lines[1..], ["vt100", "24 132", "ready"]);

    host.start_agent().await;
    control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    let resize = async {
        loop {
            let resize = Kind::Resize(terminal(40, 100));
            match control_plane.put(&task_id, "resize", resize).await {
                InputStatus::Starting => tokio::task::yield_now().await,
                status => return status,
            }
        }
    };
    assert_eq!(resize.await, InputStatus::Accepted);
    let data = |text: &str| Kind::Data(text.to_owned().into());
    control_plane.put(&task_id, "1", data("hello\r")).await;
    control_plane
        .task(&task_id, |task| {
            task.out().contains("40 100") && task.out().contains("got hello")
        })
        .await;
    // Both by name and by the character that the terminal makes a signal of.
    control_plane
        .put(&task_id, "2", Kind::Signal("SIGINT".to_owned()))
        .await;
    let says =
        |times: usize| move |task: &Reported| task.out().matches("interrupted").count() == times;
    control_plane.task(&task_id, says(1)).await;
    control_plane.put(&task_id, "3", data("\x03")).await;
    control_plane.task(&task_id, says(2)).await;
    control_plane.put(&task_id, "4", data("quit\r")).await;
    let quits = |task: &Reported| task.out().contains("got quit");
    control_plane.task(&task_id, quits).await;
    let end = Kind::CloseStdin(muster_proto::v1::CloseStdin {});
    control_plane.put(&task_id, "5", end).await;
    let task = control_plane.settled(&task_id).await;
    assert!(task.out().ends_with("end\r\n"), "{}", task.out());
    assert_eq!(task.state(), State::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_belongs_to_whoever_runs_in_it() {
    if !nix::unistd::geteuid().is_root() {
        return; // Nobody else runs commands as others.
    }
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted =
        script("id -un; stat -c %U $(tty); echo > /dev/tty && ps -o tpgid= -p $$; echo $$");
    wanted.user = "nobody".to_owned();
    wanted.cwd = "/".to_owned();
    wanted.terminal = Some(muster_proto::v1::Terminal::default());
    let task_id = control_plane.offer(wanted).await;
    let out = control_plane.settled(&task_id).await.out();
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert_eq!(&lines[..3], ["nobody", "nobody", ""], "{out}");
    assert_eq!(lines[3], lines[4], "it controls the terminal");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_proved_is_lost() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    host.stop().await.unwrap();
    host.die();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let mut cases = Vec::new();
    for (boot_id, steps, reason) in [
        ("another-boot", 1, Reason::HostRebooted),
        ("another-boot", 2, Reason::HostRebooted),
        (boot_id.trim(), 2, Reason::AmbiguousStart),
        // Taken, and surely not started.
        (boot_id.trim(), 1, Reason::Unspecified),
    ] {
        let (task_id, offer) = control_plane.offer_of(command(&["true"]));
        let accepted = Event::Accepted(Accepted {
            task_id: task_id.clone(),
            sealed_offer: offer.sealed_offer,
            seal: offer.seal,
            not_after_ms: 0,
        });
        let starting = Event::Starting(Starting {
            task_id: task_id.clone(),
            ..Default::default()
        });
        let mut events = vec![accepted, starting];
        events.truncate(steps);
        let (journal, _) = Journal::open(&host.path("agent"), boot_id, 0).unwrap();
        journal.write(0, events).unwrap();
        cases.push((task_id, reason));
    }
    host.start_agent().await;
    for (task_id, reason) in cases {
        let task = control_plane.settled(&task_id).await;
        let started = reason == Reason::Unspecified;
        let state = if started {
            State::Succeeded
        } else {
            State::Lost
        };
        assert_eq!(task.state(), state);
        assert_eq!(task.ended.unwrap().reason(), reason);
        assert!(!task.opens[0].sealed_offer.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_network_never_holds_up_the_process() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    control_plane.behave(|behaviour| behaviour.reads_nothing = true);
    let mark = host.path("done");
    let text = format!("head -c 50000000 /dev/zero; touch {}", mark.display());
    let task_id = control_plane.offer(script(&text)).await;
    until("all of it is written", || mark.exists()).await;
    // Another task is not held up by it.
    control_plane.behave(|behaviour| behaviour.reads_nothing = false);
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.missing, [0, 0]);
    assert_eq!(task.stdout.len(), 50_000_000);
}

#[tokio::test]
async fn an_agent_that_has_not_joined_says_so_and_a_directory_has_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::new(directory.path().to_owned());
    assert!(matches!(
        Agent::open(config).await,
        Err(AgentError::NotJoined)
    ));

    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    control_plane.attached(1).await;
    let second = Agent::open(host.config()).await.map(|_| ());
    assert!(matches!(second, Err(AgentError::Taken(_))), "{second:?}");
}
