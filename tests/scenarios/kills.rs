//! Programs that die at the worst moment.

use std::{fs, time::Duration};

use muster_proto::v1::{OutputStream, Reason, host::Presence, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    flow::{Flow, Lines},
    operator::{request, script},
    process::reap_matching,
    tally::Tally,
};

/// Between two pieces of a flow of output: some 2 MB/s, well below what is kept of it.
const PAUSE_S: f64 = 0.06;

#[tokio::test]
async fn killed_before_the_commit_there_is_no_job_until_the_client_asks_again() {
    killed_while_accepting("asked").await;
}

#[tokio::test]
async fn killed_between_commit_and_offer_the_job_runs_once_after_the_restart() {
    killed_while_accepting("committed").await;
}

/// Kills the control plane at this place of its road, while a client waits for its answer. The client asks again.
async fn killed_while_accepting(place: &'static str) {
    let fleet = Fleet::start().await;
    let _host = fleet.host("web-1").await;
    fleet.kill_control_plane();
    fleet
        .start_control_plane_with(&[("MUSTER_FAILPOINT", place)])
        .await;
    fleet.operator().online("web-1").await;

    let tally = Tally::new(fleet.directory());
    let wanted = request("web-1", script(tally.mark()));
    let operator = fleet.operator();
    let asking = tokio::spawn({
        let (operator, wanted) = (operator.clone(), wanted.clone());
        async move { operator.create(wanted).await }
    });
    fleet.held_at(place).await;
    fleet.kill_control_plane();
    assert!(asking.await.unwrap().is_err(), "the answer was lost");
    assert_eq!(tally.runs(), 0);

    fleet.start_control_plane().await;
    let known = fleet.cli(&["job", "list", "--json"]).await;
    let jobs = serde_json::from_str::<serde_json::Value>(&known.stdout).unwrap();
    let jobs = jobs["jobs"].as_array().map_or(0, Vec::len);
    assert_eq!(jobs, usize::from(place == "committed"), "{}", known.stdout);
    let job = operator.create(wanted).await.unwrap();
    job.succeeds().await;
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn killed_between_offer_and_reply_a_retry_names_the_task_that_already_runs() {
    let fleet = Fleet::start().await;
    let host = fleet.host("web-1").await;
    fleet.kill_control_plane();
    fleet
        .start_control_plane_with(&[("MUSTER_FAILPOINT", "offered")])
        .await;
    fleet.operator().online("web-1").await;

    let tally = Tally::new(fleet.directory());
    let go = fleet.directory().join("go");
    // It outlives the control plane: one that ended before the kill would be found as it ended.
    let text = format!(
        "{}; until [ -e {} ]; do sleep 0.02; done; echo whole",
        tally.mark(),
        go.display()
    );
    let wanted = request("web-1", script(text));
    let operator = fleet.operator();
    let asking = tokio::spawn({
        let (operator, wanted) = (operator.clone(), wanted.clone());
        async move { operator.create(wanted).await }
    });
    eventually(PATIENCE, "the offer is carried out", || async {
        (tally.runs() == 1).then_some(())
    })
    .await;
    fleet.held_at("offered").await;
    host.wire().cut();
    fleet.kill_control_plane();
    assert!(asking.await.unwrap().is_err(), "the answer was lost");

    // The client asks again before the agent is back.
    fleet.start_control_plane().await;
    let job = operator.create(wanted).await.unwrap();
    let state = job.task().await.state();
    assert!(
        [State::Pending, State::Running].contains(&state),
        "{state:?}"
    );
    host.wire().mend();
    fs::write(go, "").unwrap();
    job.succeeds().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"whole\n");
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn killed_while_a_task_runs_the_control_plane_finds_it_again() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let go = fleet.directory().join("go");
    let text = format!(
        "{}; echo before; until [ -e {} ]; do sleep 0.02; done; echo after",
        tally.mark(),
        go.display()
    );
    let job = fleet.operator().run("web-1", text).await;
    job.reaches(State::Running).await;
    fleet.kill_control_plane();
    fleet.start_control_plane().await;
    assert_eq!(job.task().await.state(), State::Running);
    fleet.operator().online("web-1").await;
    fs::write(go, "").unwrap();
    job.succeeds().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"before\nafter\n");
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn killed_while_a_task_ends_the_control_plane_hears_of_it_later() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let (go, done) = (fleet.directory().join("go"), fleet.directory().join("done"));
    let text = format!(
        "until [ -e {} ]; do sleep 0.02; done; touch {}; exit 5",
        go.display(),
        done.display()
    );
    let job = fleet.operator().run("web-1", text).await;
    job.reaches(State::Running).await;
    fleet.kill_control_plane();
    fs::write(go, "").unwrap();
    eventually(PATIENCE, "the process ends", || async {
        done.exists().then_some(())
    })
    .await;
    fleet.start_control_plane().await;
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(5));
}

#[tokio::test]
async fn killed_while_output_streams_the_output_is_complete_in_the_end() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let flow = Flow::new(fleet.directory());
    let text = format!("{}; {}", tally.mark(), flow.script(PAUSE_S));
    let job = fleet.operator().run("web-1", text).await;
    for _ in 0..2 {
        host.wire().carried_up(1 << 20).await;
        fleet.kill_control_plane();
        fleet.start_control_plane().await;
    }
    flow.stop();
    let seen = job.watch().await;
    let mut lines = Lines::default();
    lines.follow(seen.stdout());
    lines.ended_with(flow.lines());
    let task = job.succeeds().await;
    assert_eq!(task.output_size.unwrap().stdout_bytes, lines.bytes as i64);
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn every_job_that_was_acknowledged_survives_a_kill() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let operator = fleet.operator();
    let mut acknowledged = Vec::new();
    let asking = async {
        loop {
            match operator
                .create(request("web-1", script(tally.mark())))
                .await
            {
                Ok(job) => acknowledged.push(job),
                Err(_) => return,
            }
        }
    };
    let killing = async {
        eventually(PATIENCE, "some have run", || async {
            (tally.runs() >= 20).then_some(())
        })
        .await;
        fleet.kill_control_plane();
    };
    tokio::join!(asking, killing);
    fleet.start_control_plane().await;
    // The last that ran may not have been answered yet.
    assert!(acknowledged.len() >= 19);
    for job in &acknowledged {
        job.succeeds().await;
    }
    // The last request may have been accepted without an answer: then it ran once too.
    let (ran, known) = (tally.runs(), acknowledged.len());
    assert!(
        ran == known || ran == known + 1,
        "{ran} runs of {known} jobs"
    );
}

#[tokio::test]
async fn an_agent_back_with_an_empty_journal_starts_nothing_again() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let job = fleet
        .operator()
        .run("web-1", format!("{}; sleep 600", tally.mark()))
        .await;
    job.reaches(State::Running).await;
    host.kill();
    reap_matching(fleet.mark(), "sleep 600");
    for entry in host.journal() {
        fs::remove_file(entry).unwrap();
    }
    host.start(&fleet);
    let task = job.reaches(State::Lost).await;
    assert_eq!(task.reason(), Reason::HostRolledBack);
    fleet.operator().run("web-1", "true").await.succeeds().await;
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn an_agent_back_with_an_older_journal_starts_nothing_again() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    fleet.operator().run("web-1", "true").await.succeeds().await;
    host.stop().await;
    let kept: Vec<_> = host
        .journal()
        .into_iter()
        .map(|path| (fs::read(&path).unwrap(), path))
        .collect();
    host.start(&fleet);
    fleet.operator().online("web-1").await;

    let tally = Tally::new(fleet.directory());
    let job = fleet
        .operator()
        .run("web-1", format!("{}; sleep 600", tally.mark()))
        .await;
    job.reaches(State::Running).await;
    host.kill();
    reap_matching(fleet.mark(), "sleep 600");
    for path in host.journal() {
        fs::remove_file(path).unwrap();
    }
    for (bytes, path) in kept {
        fs::write(path, bytes).unwrap();
    }
    host.start(&fleet);
    let task = job.reaches(State::Lost).await;
    assert_eq!(task.reason(), Reason::HostRolledBack);
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn stopping_politely_loses_nothing_either() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let go = fleet.directory().join("go");
    let text = format!(
        "{}; until [ -e {} ]; do sleep 0.02; done",
        tally.mark(),
        go.display()
    );
    let job = fleet.operator().run("web-1", text).await;
    job.reaches(State::Running).await;
    let stopped = std::time::Instant::now();
    let ended = fleet.stop_control_plane().await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert!(stopped.elapsed() < Duration::from_secs(10));
    fleet.start_control_plane().await;
    fleet.operator().presence("web-1", Presence::Online).await;
    fs::write(go, "").unwrap();
    job.succeeds().await;
    assert_eq!(tally.runs(), 1);
}
