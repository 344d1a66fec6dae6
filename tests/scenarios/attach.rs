//! Terminals and pipes from the operator's end, with hosts whose processes are made up.

use muster_proto::v1::task::State;
use muster_tests::{
    PATIENCE, console::Console, echo_host::EchoHost, eventually, fleet::Fleet, process::Process,
};
use nix::sys::signal::Signal;

fn in_terminal(fleet: &Fleet, args: &[&str]) -> (Process, Console) {
    let start = fleet.muster(args).env("TERM", "xterm-256color");
    start.spawn_in_terminal(&fleet.logs(), 40, 120)
}

/// The job that was asked for last.
async fn last_job(fleet: &Fleet) -> String {
    let jobs = fleet.cli(&["job", "list", "--json"]).await.stdout;
    let jobs: serde_json::Value = serde_json::from_str(&jobs).unwrap();
    jobs["jobs"][0]["job_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_shell_is_a_terminal_and_ends_with_its_code() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("xterm-256color 40x120").await;
    assert!(console.is_raw());
    console.type_in("hello\r");
    console.shows("\u{1b}[32mheard hello").await;
    console.type_in("exit 7\r");
    let ended = shell.ended(PATIENCE).await;
    assert_eq!(ended.code(), 7, "{}", console.screen());
    assert!(!console.is_raw(), "the terminal is its own again");
}

#[tokio::test]
async fn a_key_detaches_and_the_shell_goes_on_for_whoever_comes_back() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("$ ").await;
    console.type_in("one\r");
    console.shows("heard one").await;
    console.type_in("\u{1d}");
    let ended = shell.ended(PATIENCE).await;
    assert_eq!(ended.code(), 130);
    console.shows("muster job attach j-").await;
    assert!(!console.is_raw());

    let job_id = last_job(&fleet).await;
    let (back, console) = in_terminal(&fleet, &["job", "attach", &job_id]);
    // What was shown before comes first.
    console.shows("heard one").await;
    // Whether or not the control plane has seen the other go.
    console.type_in("two\r");
    console.shows("heard two").await;

    let (other, second) = in_terminal(&fleet, &["job", "attach", &job_id, "--take-over"]);
    console.shows("took over; you watch now").await;
    second.type_in("three\r");
    second.shows("heard three").await;
    console.shows("heard three").await;
    back.signal(Signal::SIGTERM);
    assert_eq!(back.ended(PATIENCE).await.code(), 130);
    assert!(!console.is_raw(), "on every way out");
    second.type_in("exit 0\r");
    assert_eq!(other.ended(PATIENCE).await.code(), 0);
}

#[tokio::test]
async fn a_pipe_of_any_length_goes_through_and_its_end_too() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let bytes = vec![b'x'; 5 << 20];
    let start = fleet.muster(&["run", "-i", "web-1", "--", "wc", "-c"]);
    let ended = start.stdin(bytes.clone()).run(&fleet.logs()).await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.trim(), bytes.len().to_string());
    let ended = fleet.cli(&["run", "-i", "web-1", "--", "wc", "-c"]).await;
    assert_eq!(ended.stdout.trim(), "0", "an empty input has its end too");
}

#[tokio::test]
async fn what_was_typed_before_the_key_that_detaches_reaches_the_shell() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    for _ in 0..3 {
        let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
        console.shows("$ ").await;
        let lines: String = (1..=30).map(|line| format!("line {line}\r")).collect();
        console.type_in(&format!("{lines}\u{1d}"));
        assert_eq!(shell.ended(PATIENCE).await.code(), 130);
        // What a slow road may still lack after two seconds is told; then nothing is promised.
        if console.screen().contains("may not have got") {
            continue;
        }
        let job_id = last_job(&fleet).await;
        let output = fleet.cli(&["job", "output", &job_id]).await.stdout;
        assert!(output.contains("heard line 30"), "{output}");
        return;
    }
    panic!("three times what was typed may not have arrived");
}

#[tokio::test]
async fn whoever_writes_next_brings_the_size_of_its_terminal() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("$ ").await;
    let job_id = last_job(&fleet).await;
    let attach = fleet.muster(&["job", "attach", &job_id]);
    let (next, second) = attach.spawn_in_terminal(&fleet.logs(), 50, 100);
    second.shows("you watch until that one has gone").await;
    console.type_in("\u{1d}");
    assert_eq!(shell.ended(PATIENCE).await.code(), 130);
    second.shows("you write now").await;
    second.shows("size 50x100").await;
    second.type_in("exit 0\r");
    assert_eq!(next.ended(PATIENCE).await.code(), 0);
}

#[tokio::test]
async fn half_of_a_pipe_does_not_pass_for_the_whole() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    // Lines, since nothing here has a terminal but whoever types them.
    let (first, console) = in_terminal(&fleet, &["run", "-i", "--json", "web-1", "--", "wc", "-c"]);
    console.shows("\"attached\"").await;
    console.type_in("12345\n");
    console.shows("accepted").await;
    let job_id = last_job(&fleet).await;

    let refused = fleet.muster(&["job", "attach", &job_id, "--input"]);
    let refused = refused.stdin("no").run(&fleet.logs()).await;
    assert_eq!(refused.code(), 77, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("did not get through whole"),
        "{}",
        refused.stderr
    );

    let (second, taker) = in_terminal(&fleet, &["job", "attach", &job_id, "--take-over"]);
    console.shows("writer_changed").await;
    console.type_in("more\n");
    assert_eq!(first.ended(PATIENCE).await.code(), 77);
    console.shows("did not get through whole").await;
    // Neither took the other's end for its own.
    taker.type_in("abc\n\u{4}");
    assert_eq!(second.ended(PATIENCE).await.code(), 0);
    taker.shows("\n10\r\n").await;
}

#[tokio::test]
async fn what_is_no_terminal_only_watches_and_ends_no_shell() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("$ ").await;
    console.type_in("\u{1d}");
    assert_eq!(shell.ended(PATIENCE).await.code(), 130);
    let job_id = last_job(&fleet).await;
    let refused = fleet.cli(&["job", "attach", &job_id, "--take-over"]).await;
    assert_eq!(refused.code(), 64, "{}", refused.stderr);

    let watcher = fleet.muster(&["job", "attach", &job_id]);
    let watcher = watcher.spawn(&fleet.logs());
    let piped = fleet.muster(&["job", "attach", &job_id, "--input"]);
    let piped = piped.stdin("two\r").spawn(&fleet.logs());
    eventually(PATIENCE, "the pipe is put in", || async {
        let output = fleet.cli(&["job", "output", &job_id]).await.stdout;
        output.contains("heard two").then_some(())
    })
    .await;
    let (last, console) = in_terminal(&fleet, &["job", "attach", &job_id]);
    console.shows("you watch until that one has gone").await;
    piped.signal(Signal::SIGINT);
    assert_eq!(piped.ended(PATIENCE).await.code(), 130);
    console.shows("you write now").await;
    console.type_in("exit 3\r");
    assert_eq!(last.ended(PATIENCE).await.code(), 3);
    let watched = watcher.ended(PATIENCE).await;
    assert_eq!(watched.code(), 3, "{}", watched.stderr);
    assert!(watched.stdout.contains("heard two"), "{}", watched.stdout);
}

#[tokio::test]
async fn something_is_put_in_without_attaching() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["run", "-t", "web-1", "--", "python3"]);
    console.shows("$ ").await;
    let job_id = last_job(&fleet).await;
    let input = [
        "job", "input", &job_id, "--text", "6 * 7", "--keys", "enter",
    ];
    let ended = fleet.cli(&input).await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    console.shows("heard 6 * 7").await;
    let ended = fleet
        .cli(&["job", "input", &job_id, "--signal", "int"])
        .await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    console.shows("got SIGINT").await;
    console.type_in("exit 0\r");
    shell.ended(PATIENCE).await;
    let late = fleet.cli(&["job", "input", &job_id, "--text", "x"]).await;
    assert!(
        late.code() > 0 && late.stderr.contains("ended"),
        "{}",
        late.stderr
    );
}

#[tokio::test]
async fn an_interrupt_before_the_start_cancels() {
    let fleet = Fleet::start().await;
    let _away = fleet.joined("web-1", &[]).await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("waits for its host").await;
    console.type_in("\u{3}");
    let ended = shell.ended(PATIENCE).await;
    assert_eq!(ended.code(), 130, "{}", console.screen());
    let job = fleet.operator().job(&last_job(&fleet).await);
    job.reaches(State::Cancelled).await;
}

#[tokio::test]
async fn whoever_cannot_cancel_can_still_leave() {
    let fleet = Fleet::start().await;
    let _away = fleet.joined("web-1", &[]).await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("waits for its host").await;
    fleet.stop_control_plane().await;
    console.shows("trying again").await;
    console.type_in("\u{3}");
    console.shows("it is not cancelled").await;
    console.type_in("\u{1d}");
    assert_eq!(shell.ended(PATIENCE).await.code(), 130);
    console.shows("may not have got what was typed last").await;
}

#[tokio::test]
async fn a_session_survives_a_restart_of_the_control_plane() {
    let fleet = Fleet::start().await;
    let host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1"]);
    console.shows("$ ").await;
    console.type_in("one\r");
    console.shows("heard one").await;
    fleet.stop_control_plane().await;
    drop(host);
    fleet.start_control_plane().await;
    console.shows("connected again").await;
    console.type_in("\u{1d}");
    assert_eq!(shell.ended(PATIENCE).await.code(), 130);
    let shown = console.screen().matches("heard one").count();
    assert_eq!(shown, 1, "neither gap nor repeat: {}", console.screen());
    assert!(
        !console.screen().contains("trying again: "),
        "what the screen says is not logged across it: {}",
        console.screen()
    );
}

#[tokio::test]
async fn one_terminal_goes_to_one_host() {
    let fleet = Fleet::start().await;
    let _one = EchoHost::start(&fleet, "web-1").await;
    let _two = EchoHost::start(&fleet, "web-2").await;
    let ended = fleet.cli(&["run", "-i", "all", "--", "cat"]).await;
    assert_eq!(ended.code(), 64);
    assert!(
        ended.stderr.contains("more than one host"),
        "{}",
        ended.stderr
    );
    let ended = fleet.cli(&["shell", "web-1"]).await;
    assert!(ended.stderr.contains("no terminal"), "{}", ended.stderr);
    let jobs = eventually(PATIENCE, "the list", || async {
        Some(fleet.cli(&["job", "list", "--json"]).await.stdout)
    });
    assert!(jobs.await.contains("\"jobs\": []"), "nothing was asked for");
}

#[tokio::test]
async fn a_recorded_terminal_is_played_again_and_saved() {
    let fleet = Fleet::start().await;
    let _host = EchoHost::start(&fleet, "web-1").await;
    let (shell, console) = in_terminal(&fleet, &["shell", "web-1", "--record", "--", "top"]);
    console.shows("$ ").await;
    console.type_in("schön\r");
    console.shows("heard schön").await;
    console.type_in("exit 0\r");
    shell.ended(PATIENCE).await;
    let job_id = last_job(&fleet).await;

    let played = fleet
        .cli(&["job", "replay", &job_id, "--speed", "1000"])
        .await;
    assert_eq!(played.code(), 0, "{}", played.stderr);
    assert!(
        played.stdout.contains("\u{1b}[32mheard schön"),
        "{}",
        played.stdout
    );

    let saved = fleet.cli(&["job", "replay", &job_id, "--cast", "-"]).await;
    let lines: Vec<serde_json::Value> = saved
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["version"], 2, "{}", saved.stderr);
    assert_eq!(
        (&lines[0]["width"], &lines[0]["title"]),
        (&120.into(), &"top on web-1".into())
    );
    let mut before = 0.0;
    let mut text = String::new();
    for line in &lines[1..] {
        let time = line[0].as_f64().unwrap();
        assert!(time >= before && line[1] == "o", "{line}");
        before = time;
        text.push_str(line[2].as_str().unwrap());
    }
    assert!(text.ends_with("heard schön\u{1b}[0m\r\n$ "), "{text}");

    let plain = fleet.cli(&["run", "-n", "web-1", "--", "true"]).await;
    assert_eq!(plain.stdout, "no input\n", "{}", plain.stderr);
    let refused = fleet.cli(&["job", "replay", &last_job(&fleet).await]).await;
    assert!(
        refused.stderr.contains("was not recorded"),
        "{}",
        refused.stderr
    );
}
