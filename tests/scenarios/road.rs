//! The road of one command: in at the door, to a process on a host, and back.

use std::time::Duration;

use muster_proto::v1::{OutputStream, PrincipalKind, RunJobRequest, task::State};
use muster_tests::{
    fleet::Fleet,
    operator::{Seen, reason, request, script},
    tally::Tally,
};

#[tokio::test]
async fn a_command_runs_on_a_host_and_its_output_comes_back() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let job = fleet
        .operator()
        .run("web-1", "echo out; echo err >&2; exit 3")
        .await;

    let seen = job.watch().await;
    let task = job.task().await;
    assert_eq!(task.state(), State::Failed);
    assert_eq!(task.exit_code, Some(3));
    assert!(task.output_complete);
    assert_eq!(seen.states[&task.task_id].last(), Some(&State::Failed));
    assert_eq!(seen.stdout(), b"out\n");
    assert_eq!(job.output(OutputStream::Stderr).await, b"err\n");
    assert_eq!(
        job.job().await.principal,
        "operator/".to_owned() + &operator_name()
    );
}

/// The operator of a data directory is named for the user who made it.
fn operator_name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap();
    user.map_or_else(|| "local".to_owned(), |user| user.name)
}

#[tokio::test]
async fn one_call_creates_and_watches_a_job() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let create = Some(request("web-1", script("echo one; echo two")));
    let mut jobs = fleet.operator().jobs();
    let mut updates = jobs
        .run_job(RunJobRequest { create })
        .await
        .unwrap()
        .into_inner();
    let mut seen = Seen::default();
    while let Some(answer) = updates.message().await.unwrap() {
        seen.take(answer.update.unwrap());
    }
    assert_eq!(seen.stdout(), b"one\ntwo\n");
    assert_eq!(seen.tasks.len(), 1);
}

#[tokio::test]
async fn a_job_runs_on_every_host_that_matches() {
    let fleet = Fleet::start().await;
    let mut hosts = Vec::new();
    for (name, role) in [("web-1", "web"), ("web-2", "web"), ("db-1", "db")] {
        let host = fleet.joined(name, &[("role", role)]).await;
        host.start(&fleet);
        hosts.push(host);
    }
    let operator = fleet.operator();
    for host in &hosts {
        operator.online(host.name()).await;
    }
    let job = operator.run("role=web,os=linux", "echo hello").await;
    job.watch().await;
    let tasks = job.tasks().await;
    let names: Vec<&str> = tasks.iter().map(|task| task.host_name.as_str()).collect();
    assert_eq!(names, ["web-1", "web-2"]);
    assert!(tasks.iter().all(|task| task.state() == State::Succeeded));
}

#[tokio::test]
async fn a_host_runs_more_tasks_than_streams_fit_on_a_connection() {
    /// The control plane takes 200 streams on one connection.
    const TASKS: usize = 230;

    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let mut jobs = Vec::new();
    for _ in 0..TASKS {
        jobs.push(operator.run("web-1", "exec sleep 600").await);
    }
    for job in &jobs {
        job.reaches(State::Running).await;
    }
    operator.run("web-1", "true").await.succeeds().await;
    for job in &jobs {
        job.cancel(Duration::ZERO).await;
    }
    for job in &jobs {
        job.reaches(State::Cancelled).await;
    }
}

#[tokio::test]
async fn the_same_request_id_names_the_same_job_and_another_request_is_refused() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let operator = fleet.operator();
    let once = request("web-1", script(tally.mark()));
    let (first, second, third) = tokio::join!(
        operator.create(once.clone()),
        operator.create(once.clone()),
        operator.create(once.clone()),
    );
    let first = first.unwrap();
    assert_eq!(second.unwrap().job_id, first.job_id);
    assert_eq!(third.unwrap().job_id, first.job_id);
    first.succeeds().await;
    assert_eq!(
        operator.create(once.clone()).await.unwrap().job_id,
        first.job_id
    );
    assert_eq!(tally.runs(), 1);

    let mut other = once.clone();
    other.action = Some(script("echo other"));
    let refused = operator.create(other).await.unwrap_err();
    assert_eq!(reason(&refused), muster_proto::v1::Reason::RequestIdReused);
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);

    // Another principal's ids are its own.
    let token = operator
        .bearer_token(PrincipalKind::Automation, "nightly")
        .await;
    let theirs = fleet.bearer(&token).create(once).await.unwrap();
    assert_ne!(theirs.job_id, first.job_id);
    theirs.succeeds().await;
    assert_eq!(tally.runs(), 2);
}

#[tokio::test]
async fn cancelling_ends_the_whole_tree() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    // A child, a grandchild in a session of its own, and one that ignores the polite signal.
    let tree = "sleep 600 & (setsid sleep 600 & wait) & sh -c 'trap \"\" TERM; while :; do sleep 600; done' & wait";
    let job = fleet.operator().run("web-1", tree).await;
    job.reaches(State::Running).await;
    muster_tests::eventually(muster_tests::PATIENCE, "the tree stands", || async {
        (fleet.processes("sleep 600").len() >= 3).then_some(())
    })
    .await;

    job.cancel(std::time::Duration::from_millis(200)).await;
    let task = job.reaches(State::Cancelled).await;
    assert_eq!(task.reason(), muster_proto::v1::Reason::CancelRequested);
    assert!(task.cancel_time.is_some());
    assert_eq!(fleet.processes("sleep"), Vec::<String>::new());
}

#[tokio::test]
async fn ending_a_watch_detaches_and_ends_nothing() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let go = fleet.directory().join("go");
    let text = format!(
        "echo started; until [ -e {} ]; do sleep 0.02; done; echo ended",
        go.display()
    );
    let create = Some(request("web-1", script(text)));
    let mut jobs = fleet.operator().jobs();
    let mut updates = jobs
        .run_job(RunJobRequest { create })
        .await
        .unwrap()
        .into_inner();
    let mut seen = Seen::default();
    while seen.output.is_empty() {
        seen.take(updates.message().await.unwrap().unwrap().update.unwrap());
    }
    drop(updates);

    std::fs::write(go, "").unwrap();
    let job_id = &seen.tasks.values().next().unwrap().job_id;
    let job = fleet.operator().job(job_id);
    job.watch_into(&mut seen).await;
    assert_eq!(seen.stdout(), b"started\nended\n");
    job.succeeds().await;
}

#[tokio::test]
async fn a_reader_that_stops_reading_delays_nobody() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    const BYTES: usize = 24 << 20;
    let create = Some(request(
        "web-1",
        script(format!("head -c {BYTES} /dev/zero")),
    ));
    let mut jobs = fleet.operator().jobs();
    // Opened and never read.
    let stuck = jobs
        .run_job(RunJobRequest { create })
        .await
        .unwrap()
        .into_inner();

    let quick = operator.run("web-1", "echo quick").await;
    assert_eq!(quick.watch().await.stdout(), b"quick\n");
    let mut newest = operator.jobs();
    let listed = newest
        .list_jobs(muster_proto::v1::ListJobsRequest::default())
        .await
        .unwrap();
    let flood = operator.job(&listed.into_inner().jobs.last().unwrap().job_id);
    let task = flood.succeeds().await;
    assert_eq!(task.output_size.unwrap().stdout_bytes, BYTES as i64);
    drop(stuck);
    assert_eq!(flood.watch().await.stdout().len(), BYTES);
}

#[tokio::test]
async fn output_is_read_by_range_tail_and_grep() {
    use muster_proto::v1::read_output_request::{Grep, Part, Tail};
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let job = fleet.operator().run("web-1", "seq 1 1000").await;
    let task_id = job.succeeds().await.task_id;
    let read = async |part: Part| {
        let request = muster_proto::v1::ReadOutputRequest {
            task_id: task_id.clone(),
            part: Some(part),
            ..Default::default()
        };
        fleet
            .operator()
            .jobs()
            .read_output(request)
            .await
            .map(tonic::Response::into_inner)
    };

    let tail = read(Part::Tail(Tail { lines: 2 })).await.unwrap();
    let bytes: Vec<u8> = tail
        .chunks
        .iter()
        .flat_map(|chunk| chunk.data.to_vec())
        .collect();
    assert_eq!(bytes, b"999\n1000\n");

    let grep = Grep {
        pattern: "^50$".into(),
        before: 1,
        after: 1,
        ..Grep::default()
    };
    let found = read(Part::Grep(grep)).await.unwrap();
    let lines: Vec<(i64, bool)> = found
        .lines
        .iter()
        .map(|line| (line.number, line.r#match))
        .collect();
    assert_eq!(lines, [(49, false), (50, true), (51, false)]);
    assert_eq!(found.match_count, 1);

    let bad = Grep {
        pattern: "(".into(),
        ..Grep::default()
    };
    let refused = read(Part::Grep(bad)).await.unwrap_err();
    assert_eq!(reason(&refused), muster_proto::v1::Reason::PatternInvalid);
}
