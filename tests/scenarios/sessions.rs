//! Terminals, pipes and typed input with real processes on real hosts.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{BufWriter, Write as _},
    time::{Duration, Instant},
};

use muster_proto::v1::{
    Command, InputStatus, SendInputRequest, TaskInput, Terminal, task::State, task_input::Kind,
};
use muster_tests::{
    PATIENCE,
    console::Console,
    eventually,
    fleet::Fleet,
    mcp::{Era, McpClient},
    operator::{Watched, command, request},
    process::{Process, peak_memory},
};
use serde_json::json;

/// Input of the big pipe in the suite, MiB.
const STDIN_MIB: u64 = 64;

/// Most that a client may hold in memory, bytes: its own program, which is big where it is not optimized,
/// and less than the input.
const CLIENT_MAX: u64 = 90 << 20;

fn in_terminal(fleet: &Fleet, args: &[&str]) -> (Process, Console) {
    let start = fleet.muster(args).env("TERM", "xterm-256color");
    start.spawn_in_terminal(&fleet.logs(), 40, 120)
}

async fn last_job(fleet: &Fleet) -> String {
    let jobs = fleet.cli(&["job", "list", "--json"]).await.stdout;
    let jobs: serde_json::Value = serde_json::from_str(&jobs).unwrap();
    jobs["jobs"][0]["job_id"].as_str().unwrap().to_owned()
}

fn words(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(ToString::to_string).collect(),
        ..Command::default()
    }
}

/// Puts text in until the process has it.
async fn put(fleet: &Fleet, job: &Watched, write_id: &str, text: &str) {
    let task_id = job.task().await.task_id;
    let what = format!("{text:?} is taken");
    eventually(PATIENCE, &what, || async {
        let request = SendInputRequest {
            task_id: task_id.clone(),
            write_id: write_id.to_owned(),
            input: Some(TaskInput {
                kind: Some(Kind::Data(text.to_owned().into())),
            }),
        };
        let answer = fleet.operator().jobs().send_input(request).await.ok()?;
        (answer.into_inner().status() == InputStatus::Accepted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shell_has_the_size_the_signals_and_the_exit_code_of_one_here() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1", "--", "sh"]);
    console.type_in("stty size; tty; echo term=$TERM\r");
    console.shows("40 120").await;
    console.shows("/dev/pts/").await;
    console.shows("term=xterm-256color").await;
    // Only the foreground process hears it.
    console.type_in("echo be''gun; sleep 600\r");
    console.shows("begun").await;
    console.type_in("\u{3}");
    console.type_in("echo still $((6 * 7))\r");
    console.shows("still 42").await;
    console.type_in("exit 9\r");
    assert_eq!(
        shell.ended(PATIENCE).await.code(),
        9,
        "{}",
        console.screen()
    );
}

#[tokio::test]
async fn a_shell_outlives_its_client_and_its_agent() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1", "--", "sh"]);
    console.type_in("x=kept; echo be''gun\r");
    console.shows("begun").await;
    host.kill();
    host.start(&fleet);
    // What is typed meanwhile waits, and is put in once.
    console.type_in("echo \"$x-\"typed\r");
    console.shows("kept-typed").await;
    console.type_in("\u{1d}");
    assert_eq!(shell.ended(PATIENCE).await.code(), 130);

    let job_id = last_job(&fleet).await;
    let (back, console) = in_terminal(&fleet, &["job", "attach", &job_id]);
    console.shows("kept-typed").await;
    // Whether or not the control plane has seen the other go.
    console.type_in("echo $x again\r");
    console.shows("kept again").await;
    console.type_in("exit 0\r");
    assert_eq!(back.ended(PATIENCE).await.code(), 0);
    assert_eq!(console.screen().matches("\nkept-typed").count(), 1);
}

#[tokio::test]
async fn a_pipe_goes_through_whole_and_its_end_ends_the_command() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let bytes: Vec<u8> = (0..16_u32 << 20).map(|at| (at % 251) as u8).collect();
    let start = fleet.muster(&["run", "-i", "web-1", "--", "wc", "-c"]);
    let ended = start.stdin(bytes.clone()).run(&fleet.logs()).await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.trim(), bytes.len().to_string());

    let start = fleet.muster(&["run", "-i", "web-1", "--", "cat"]);
    let text = "line\n".repeat(100_000);
    let ended = start.stdin(text.clone()).run(&fleet.logs()).await;
    assert!(ended.stdout == text, "{} bytes", ended.stdout.len());

    // A command that does not read all of it ends when it likes.
    let start = fleet.muster(&["run", "-i", "web-1", "--", "head", "-c", "5"]);
    let ended = start.stdin(bytes).run(&fleet.logs()).await;
    assert_eq!(
        (ended.code(), ended.stdout.len()),
        (0, 5),
        "{}",
        ended.stderr
    );
}

/// By hand: `MUSTER_STDIN_MIB=1024 cargo test -p muster-tests --test scenarios big_pipe -- --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_pipe_goes_through_whole_and_nobody_holds_all_of_it() {
    let mib = std::env::var("MUSTER_STDIN_MIB").ok();
    let mib: u64 = mib.map_or(STDIN_MIB, |mib| mib.parse().unwrap());
    let (fleet, host) = Fleet::with_host("web-1").await;
    let path = fleet.directory().join("big");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    // Eight bytes that come only once.
    for number in 0..mib << 17 {
        file.write_all(&number.to_le_bytes()).unwrap();
    }
    file.into_inner().unwrap();
    let same = "cmp - \"$0\" && wc -c < \"$0\"";
    let args = ["run", "-i", "web-1", "--", "sh", "-c", same];
    let client = fleet
        .muster(&args)
        .args([&path])
        .stdin_from(&path)
        .spawn(&fleet.logs());
    let begun = Instant::now();
    let limit = PATIENCE + Duration::from_millis(mib * 250);
    let peak = Cell::new(0);
    eventually(limit, "all of it has gone through", || async {
        peak.set(
            peak_memory(client.pid())
                .unwrap_or_default()
                .max(peak.get()),
        );
        client.is_over().then_some(())
    })
    .await;
    let peak = peak.get();
    let took = begun.elapsed();
    let ended = client.ended(PATIENCE).await;
    assert_eq!(ended.code(), 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout.trim(), (mib << 20).to_string());
    let mib_of = |pid| peak_memory(pid).unwrap_or_default() >> 20;
    eprintln!(
        "{mib} MiB of input in {took:?}; most memory held, MiB: client {}, control plane {}, agent {}",
        peak >> 20,
        mib_of(fleet.control_plane_pid()),
        mib_of(host.pid())
    );
    assert!(peak < CLIENT_MAX, "{peak} bytes");
}

#[tokio::test]
async fn the_same_input_twice_is_put_in_once() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let cat = Command {
        open_stdin: true,
        ..words(&["cat"])
    };
    let job = fleet
        .operator()
        .create(request("web-1", command(cat)))
        .await;
    let job = job.unwrap();
    job.reaches(State::Running).await;
    for write_id in ["w-1", "w-1", "w-2", "w-1"] {
        put(&fleet, &job, write_id, "x").await;
    }
    let job_id = job.job_id.clone();
    let closed = fleet.cli(&["job", "input", &job_id, "--close"]).await;
    assert_eq!(closed.code(), 0, "{}", closed.stderr);
    job.succeeds().await;
    let output = fleet.cli(&["job", "output", &job_id]).await;
    assert_eq!(output.stdout, "xx");
}

#[tokio::test]
async fn a_signal_reaches_the_process() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let script = "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let job = fleet.operator().run("web-1", script).await;
    job.reaches(State::Running).await;
    eventually(PATIENCE, "the trap is set", || async {
        let output = fleet.cli(&["job", "output", &job.job_id]).await;
        output.stdout.contains("ready").then_some(())
    })
    .await;
    let sent = fleet
        .cli(&["job", "input", &job.job_id, "--signal", "usr1"])
        .await;
    assert_eq!(sent.code(), 0, "{}", sent.stderr);
    let task = job.complete().await;
    assert_eq!(task.exit_code, Some(3));
}

#[tokio::test]
async fn what_a_process_may_use_and_sees_is_as_asked_for() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let nice = fleet
        .cli(&["run", "web-1", "--nice", "19", "--", "nice"])
        .await;
    assert_eq!(nice.stdout.trim(), "19", "{}", nice.stderr);
    let bare = [
        "run",
        "web-1",
        "--env-inherit",
        "none",
        "-e",
        "ONLY=this",
        "--",
        "/usr/bin/env",
    ];
    let env = fleet.cli(&bare).await;
    assert!(env.stdout.contains("ONLY=this"), "{}", env.stderr);
    assert!(!env.stdout.contains("HOME="), "{}", env.stdout);
}

#[tokio::test]
async fn a_script_works_in_a_terminal_that_it_does_not_have() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let begin = async |how: &str, argv: &[&str]| {
        let args = [&["run", how, "web-1", "--detach", "--"], argv].concat();
        let begun = fleet.cli(&args).await;
        assert_eq!(begun.code(), 0, "{}", begun.stderr);
        assert!(
            begun.stderr.contains("muster job input j-"),
            "{}",
            begun.stderr
        );
        begun.stdout.trim().to_owned()
    };
    let puts_in = async |job: &str, what: &[&str]| {
        let args = [&["job", "input", job], what].concat();
        eventually(PATIENCE, "the task takes input", || async {
            (fleet.cli(&args).await.code() == 0).then_some(())
        })
        .await;
    };
    let shell = begin("-t", &["sh", "-c", "read word; test -t 0 && exit $word"]).await;
    puts_in(&shell, &["--text", "7", "--keys", "enter"]).await;
    assert_eq!(fleet.cli(&["job", "watch", &shell]).await.code(), 7);

    let cat = begin("-i", &["cat"]).await;
    puts_in(&cat, &["--text", "forty-two", "--close"]).await;
    let watched = fleet.cli(&["job", "watch", &cat]).await;
    assert_eq!((watched.code(), &*watched.stdout), (0, "forty-two"));
}

#[tokio::test]
async fn a_terminal_is_recorded_with_its_times() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let args = ["run", "-t", "--record", "web-1", "--", "sh", "-c"];
    let go = fleet.directory().join("go");
    let script = format!(
        "echo one; until [ -e '{}' ]; do sleep 0.02; done; sleep 0.3; echo two",
        go.display()
    );
    let (run, console) = in_terminal(&fleet, &[&args[..], &[&script]].concat());
    console.shows("one").await;
    fs::write(go, "").unwrap();
    assert_eq!(run.ended(PATIENCE).await.code(), 0);
    let job_id = last_job(&fleet).await;
    let saved = fleet.cli(&["job", "replay", &job_id, "--cast", "-"]).await;
    let time = |word: &str| -> f64 {
        let line = saved
            .stdout
            .lines()
            .find(|line| line.contains(&format!("\"{word}")));
        let line: serde_json::Value = serde_json::from_str(line.unwrap()).unwrap();
        line[0].as_f64().unwrap()
    };
    assert!(time("two") - time("one") > 0.2, "{}", saved.stdout);
}

#[tokio::test]
async fn a_model_drives_a_shell() {
    let fleet = Fleet::plan().start_up().await;
    fleet.up_is_whole().await;
    let client = McpClient::new(fleet.mcp_address(), Era::Modern, &fleet.mcp_token())
        .connect()
        .await;
    let argv = ["sh", "-c", "PS1='ready> ' exec sh -i"];
    let started = client
        .call(
            "run",
            json!({"target": "all", "argv": argv, "pty": true, "wait_s": 1}),
        )
        .await;
    assert!(
        !started.is_error && started.text.contains("job_input"),
        "{}",
        started.text
    );
    let job_id = started.text.split(' ').nth(1).unwrap().to_owned();
    let answer = client
        .call(
            "job_input",
            json!({"job_id": job_id, "text": "echo $((6 * 7))\n", "until": "^42$[^$]*ready> $"}),
        )
        .await;
    assert!(
        !answer.is_error && answer.text.contains("\n42\n"),
        "{}",
        answer.text
    );
    let answer = client
        .call(
            "job_input",
            json!({"job_id": job_id, "text": "sleep 600\n", "wait_s": 1}),
        )
        .await;
    assert!(!answer.is_error, "{}", answer.text);
    let answer = client
        .call(
            "job_input",
            json!({"job_id": job_id, "keys": ["ctrl-c"], "until": "ready> $"}),
        )
        .await;
    assert!(!answer.text.contains("not seen"), "{}", answer.text);
    let answer = client
        .call(
            "job_input",
            json!({"job_id": job_id, "keys": ["ctrl-d"], "quiet_ms": 20000, "wait_s": 20}),
        )
        .await;
    assert!(answer.text.contains("it has ended"), "{}", answer.text);
}

#[tokio::test]
async fn a_terminal_that_is_resized_tells_its_processes() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let shell = Command {
        terminal: Some(Terminal {
            rows: 10,
            columns: 20,
            ..Terminal::default()
        }),
        ..words(&["sh"])
    };
    let job = fleet
        .operator()
        .create(request("web-1", command(shell)))
        .await;
    let job = job.unwrap();
    job.reaches(State::Running).await;
    put(&fleet, &job, "w-1", "stty size\n").await;
    let job_id = job.job_id.clone();
    let shows = async |text: &str| {
        let what = format!("{text:?} is written");
        eventually(PATIENCE, &what, || async {
            let output = fleet.cli(&["job", "output", &job_id]).await;
            output.stdout.contains(text).then_some(())
        })
        .await;
    };
    shows("10 20").await;
    let (back, console) = in_terminal(&fleet, &["job", "attach", &job_id]);
    console.shows("10 20").await;
    console.type_in("stty size\r");
    console.shows("40 120").await;
    console.type_in("exit\r");
    assert_eq!(back.ended(PATIENCE).await.code(), 0);
}
