//! Processes that outlive the agent, and what it takes to end them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use muster_proto::v1::{
    Command, OutputStream, Reason, Script, SignedReceipt, Terminal, task::State,
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Agent, Fleet},
    flow::{Flow, Lines},
    operator::{Watched, command, request},
    process::{marked, parent},
    tally::Tally,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost::Message as _;
use serde_json::Value;

/// Between two pieces of a flow of output: some 2 MB/s, well below what is kept of it.
const PAUSE_S: f64 = 0.06;

/// A fleet with one host, a tally, and a file that lets a task go on.
struct Story {
    fleet: Fleet,
    host: Arc<Agent>,
    tally: Tally,
    go: PathBuf,
}

impl Story {
    async fn begin() -> Self {
        let (fleet, host) = Fleet::with_host("web-1").await;
        let tally = Tally::new(fleet.directory());
        let go = fleet.directory().join("go");
        Self {
            fleet,
            host,
            tally,
            go,
        }
    }

    /// Runs a script that marks the tally first; `WAIT` in it waits for the file.
    async fn run(&self, text: &str) -> Watched {
        let wait = format!("until [ -e {} ]; do sleep 0.02; done", self.go.display());
        let text = format!("{}; {}", self.tally.mark(), text.replace("WAIT", &wait));
        let job = self.fleet.operator().run("web-1", text).await;
        job.reaches(State::Running).await;
        job
    }

    fn let_go(&self) {
        fs::write(&self.go, "").unwrap();
    }

    async fn agent_is_back(&self) {
        self.host.start(&self.fleet);
        self.fleet.operator().online("web-1").await;
    }

    async fn says(&self, job: &Watched, stream: OutputStream, text: &str) {
        eventually(PATIENCE, text, || async {
            let output = job.output(stream).await;
            String::from_utf8_lossy(&output)
                .contains(text)
                .then_some(())
        })
        .await;
    }

    /// The process that runs with this text in its command line, and the supervisor above it.
    fn process(&self, text: &str) -> (Pid, Pid) {
        let all = marked(self.fleet.mark());
        let (pid, _) = all
            .iter()
            .find(|(_, command)| command.contains(text))
            .unwrap();
        (*pid, parent(*pid).unwrap())
    }
}

fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

#[tokio::test]
async fn a_killed_agent_costs_a_running_task_nothing() {
    let story = Story::begin().await;
    let job = story.run("echo before; WAIT; echo after; exit 3").await;
    for _ in 0..2 {
        story.host.kill();
        story.agent_is_back().await;
    }
    story.let_go();
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(3));
    assert_eq!(job.output(OutputStream::Stdout).await, b"before\nafter\n");
    assert_eq!(story.tally.runs(), 1);
    // The host is as good as new.
    story
        .fleet
        .operator()
        .run("web-1", "true")
        .await
        .succeeds()
        .await;
}

#[tokio::test]
async fn killed_while_output_flows_the_agent_loses_no_byte() {
    let story = Story::begin().await;
    let flow = Flow::new(story.fleet.directory());
    let text = format!("{}; WAIT; seq 1 100000 >&2", flow.script(PAUSE_S));
    let job = story.run(&text).await;
    for _ in 0..3 {
        story.host.wire().carried_up(1 << 20).await;
        story.host.kill();
        story.agent_is_back().await;
    }
    flow.stop();
    story.let_go();
    job.succeeds().await;
    job.complete().await;
    let mut lines = Lines::default();
    job.output_into(OutputStream::Stdout, |bytes| lines.follow(bytes))
        .await;
    lines.ended_with(flow.lines());
    let err = job.output(OutputStream::Stderr).await;
    assert!(err == numbers(100_000).as_bytes(), "{} bytes", err.len());
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn an_agent_that_does_not_move_holds_nothing_up() {
    let story = Story::begin().await;
    let done = story.fleet.directory().join("done");
    let text = format!("WAIT; seq 1 700000; echo done > {}", done.display());
    let job = story.run(&text).await;
    kill(story.host.pid(), Signal::SIGSTOP).unwrap();
    story.let_go();
    // More than pipe, sockets and memory hold.
    eventually(PATIENCE, "the process has written all", || async {
        done.exists().then_some(())
    })
    .await;
    kill(story.host.pid(), Signal::SIGCONT).unwrap();
    job.succeeds().await;
    job.complete().await;
    let out = job.output(OutputStream::Stdout).await;
    assert!(out == numbers(700_000).as_bytes(), "{} bytes", out.len());
}

#[tokio::test]
async fn what_ends_while_its_agent_is_away_is_known_later() {
    let story = Story::begin().await;
    let job = story.run("WAIT; seq 1 400000; exit 9").await;
    story.host.kill();
    story.let_go();
    eventually(PATIENCE, "it is written down", || async {
        let left = fs::read_dir(story.host.directory().join("agent/supervisors")).unwrap();
        left.flatten()
            .any(|entry| entry.path().extension().is_some_and(|end| end == "ended"))
            .then_some(())
    })
    .await;
    story.agent_is_back().await;
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(9));
    job.complete().await;
    let out = job.output(OutputStream::Stdout).await;
    assert!(out == numbers(400_000).as_bytes(), "{} bytes", out.len());
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn a_terminal_outlives_the_agent_too() {
    let story = Story::begin().await;
    let text = format!(
        "{}; stty size; until [ -e {} ]; do sleep 0.02; done; tty -s && echo still; exit 4",
        story.tally.mark(),
        story.go.display()
    );
    let wanted = Command {
        script: Some(Script {
            text,
            shell: String::new(),
        }),
        cwd: "/".to_owned(),
        terminal: Some(Terminal {
            rows: 33,
            columns: 0,
            term: String::new(),
        }),
        ..Command::default()
    };
    let operator = story.fleet.operator();
    let job = operator
        .create(request("web-1", command(wanted)))
        .await
        .unwrap();
    job.reaches(State::Running).await;
    story.says(&job, OutputStream::Pty, "33 80").await;
    story.host.kill();
    story.agent_is_back().await;
    story.let_go();
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(4));
    job.complete().await;
    assert_eq!(job.output(OutputStream::Pty).await, b"33 80\r\nstill\r\n");
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn an_agent_that_is_asked_to_stop_leaves_its_tasks() {
    let story = Story::begin().await;
    let job = story.run("echo before; WAIT; echo after").await;
    let asked = std::time::Instant::now();
    let ended = story.host.stop().await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert!(asked.elapsed() < Duration::from_secs(5));
    eventually(
        PATIENCE,
        "only the supervisor of the task stays",
        || async { (story.fleet.processes(" supervise").len() == 1).then_some(()) },
    )
    .await;
    story.agent_is_back().await;
    story.let_go();
    job.succeeds().await;
    job.complete().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"before\nafter\n");
    assert_eq!(story.tally.runs(), 1);
    story.host.stop().await;
    eventually(PATIENCE, "without a task none stays", || async {
        story.fleet.processes(" supervise").is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cancel_reaches_a_task_that_was_taken_up() {
    let story = Story::begin().await;
    let job = story.run("sleep 600; true").await;
    story.host.kill();
    story.agent_is_back().await;
    job.cancel(Duration::from_secs(1)).await;
    job.reaches(State::Cancelled).await;
    assert!(story.fleet.processes("sleep 600").is_empty());
}

#[tokio::test]
async fn a_killed_supervisor_leaves_its_task_lost_and_nothing_running() {
    let story = Story::begin().await;
    let job = story
        .run("echo something; setsid sleep 601 & sleep 600; true")
        .await;
    story.says(&job, OutputStream::Stdout, "something").await;
    eventually(PATIENCE, "it sleeps", || async {
        (story.fleet.processes("sleep 60").len() >= 3).then_some(())
    })
    .await;
    let (_, shell) = story.process("sleep 600");
    let supervisor = parent(shell).filter(|_| shell != Pid::this()).unwrap();
    let supervisors = story.host.supervisors();
    let supervisor = [shell, supervisor]
        .into_iter()
        .find(|pid| supervisors.contains(pid))
        .unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    let task = job.reaches(State::Lost).await;
    assert_eq!(task.reason(), Reason::SupervisorDied);
    assert!(story.fleet.processes("sleep 60").is_empty());
    job.complete().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"something\n");
    story
        .fleet
        .operator()
        .run("web-1", "true")
        .await
        .succeeds()
        .await;
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn killed_together_agent_and_supervisor_leave_a_lost_task() {
    let story = Story::begin().await;
    let job = story.run("sleep 600; true").await;
    eventually(PATIENCE, "it sleeps", || async {
        (story.fleet.processes("sleep 600").len() >= 2).then_some(())
    })
    .await;
    story.host.kill();
    for supervisor in story.host.supervisors() {
        let _ = kill(supervisor, Signal::SIGKILL);
    }
    story.agent_is_back().await;
    let task = job.reaches(State::Lost).await;
    assert_eq!(task.reason(), Reason::SupervisorDied);
    assert!(story.fleet.processes("sleep 600").is_empty());
}

#[tokio::test]
async fn without_its_nursery_everything_goes_on() {
    let story = Story::begin().await;
    let job = story.run("WAIT; echo after").await;
    let nursery = parent(story.host.supervisors()[0]).unwrap();
    assert_ne!(nursery, story.host.pid());
    kill(nursery, Signal::SIGKILL).unwrap();
    let operator = story.fleet.operator();
    // More than wait: some need a nursery.
    let mut others = Vec::new();
    for _ in 0..12 {
        others.push(operator.run("web-1", "true").await);
    }
    for other in others {
        other.succeeds().await;
    }
    story.let_go();
    job.succeeds().await;
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn a_daemon_that_hides_is_ended_with_its_task() {
    let story = Story::begin().await;
    // It forks twice, leads a session of its own, and says nothing of its task in its environment.
    let nap = 1_000_000 + std::process::id();
    let text =
        format!("env -i setsid sh -c 'sleep {nap} > /dev/null 2>&1 &'; echo up; sleep 600; true");
    let job = story.run(&text).await;
    story.says(&job, OutputStream::Stdout, "up").await;
    let sleeps = format!("sleep\0{nap}\0");
    let hidden = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            command == sleeps.as_bytes()
        })
    };
    eventually(PATIENCE, "it hides", || async { hidden().then_some(()) }).await;
    job.cancel(Duration::from_secs(1)).await;
    job.reaches(State::Cancelled).await;
    assert!(!hidden());
}

#[tokio::test]
async fn a_process_may_close_its_output_and_live_on() {
    let story = Story::begin().await;
    let job = story.run("echo before; exec >&- 2>&-; WAIT; exit 7").await;
    story.says(&job, OutputStream::Stdout, "before").await;
    assert_eq!(job.task().await.state(), State::Running);
    story.let_go();
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(7));
    job.complete().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"before\n");
}

#[tokio::test]
async fn a_process_that_takes_no_hint_is_killed() {
    let story = Story::begin().await;
    let job = story
        .run("trap '' TERM; echo deaf; while :; do sleep 0.05; done")
        .await;
    story.says(&job, OutputStream::Stdout, "deaf").await;
    job.cancel(Duration::from_millis(200)).await;
    let task = job.reaches(State::Cancelled).await;
    assert_eq!(task.signal, "SIGKILL");
}

/// Kills the agent at one of its failpoints while it holds a task there.
async fn killed_at(place: &str) -> (Story, Watched) {
    let story = Story::begin().await;
    story.host.kill();
    story
        .host
        .start_with(&story.fleet, &[("MUSTER_FAILPOINT", place)]);
    let operator = story.fleet.operator();
    operator.online("web-1").await;
    let text = format!("{}; echo ran; exit 6", story.tally.mark());
    let job = operator.run("web-1", text).await;
    story.host.held_at(&story.fleet, place).await;
    story.host.kill();
    (story, job)
}

#[tokio::test]
async fn killed_with_a_task_that_it_took_the_agent_starts_it_once() {
    let (story, job) = killed_at("accepted").await;
    assert_eq!(story.tally.runs(), 0);
    story.agent_is_back().await;
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(6));
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn killed_before_it_tells_the_supervisor_nobody_knows_and_nothing_runs() {
    let (story, job) = killed_at("starting").await;
    story.agent_is_back().await;
    let task = job.reaches(State::Lost).await;
    assert_eq!(task.reason(), Reason::AmbiguousStart);
    assert_eq!(story.tally.runs(), 0);
}

#[tokio::test]
async fn killed_before_it_hears_of_the_start_the_supervisor_knows() {
    let (story, job) = killed_at("sent").await;
    story.agent_is_back().await;
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(6));
    job.complete().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"ran\n");
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn killed_before_it_signs_for_a_task_the_agent_signs_for_the_same_bytes_at_its_next_start() {
    let (story, job) = killed_at("signing").await;
    let task = job.reaches(State::Failed).await;
    let receipt = async || {
        let args = ["job", "receipt", &task.task_id, "--json"];
        let shown = story.fleet.cli(&args).await;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        let signed = STANDARD.decode(shown["signed_receipt"].as_str().unwrap());
        let signed = SignedReceipt::decode(&signed.unwrap()[..]).unwrap();
        (signed.receipt, shown["pending"] == true)
    };
    // Nor does a control plane that is started anew meanwhile lose it.
    story.fleet.stop_control_plane().await;
    story.fleet.start_control_plane().await;
    let (before, pending) = receipt().await;
    assert!(pending);
    story.agent_is_back().await;
    let signed = eventually(PATIENCE, "the host signs", || async {
        let (receipt, pending) = receipt().await;
        (!pending).then_some(receipt)
    })
    .await;
    assert_eq!(signed, before);
    let verified = ["job", "receipt", &task.task_id, "--verify"];
    assert_eq!(story.fleet.cli(&verified).await.code(), 0);
    let task = story.fleet.operator().job(&job.job_id).task().await;
    assert_eq!(task.doubt, "");
    assert_eq!(story.tally.runs(), 1);
}

#[tokio::test]
async fn killed_before_it_writes_the_end_down_the_supervisor_says_it_again() {
    let (story, job) = killed_at("ended").await;
    story.agent_is_back().await;
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(6));
    job.complete().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"ran\n");
    assert_eq!(story.tally.runs(), 1);
}
