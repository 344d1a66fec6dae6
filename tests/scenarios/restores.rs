//! Control planes that come back from a backup, or were set back in silence.

use std::{fs, path::PathBuf, time::Duration};

use muster_proto::{
    agent::v1::{
        KnownTasks, RecalledTask, RecalledTasks, SealedOffer, UploadEnd, UploadOpen,
        attach_response, task_state, upload_request, upload_response,
    },
    v1::{
        CreateJobRequest, GetJobRequest, ListJobsRequest, OutputStream, PrincipalKind, Reason,
        ReleaseJobsRequest,
        task::{State, Wait},
    },
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::{FakeAgent, hello},
    fleet::Fleet,
    operator::{Watched, reason, request, script},
    tally::Tally,
};
use prost::Message as _;

/// A fleet whose hosts hear soon how far the ledger has come.
async fn fleet() -> Fleet {
    Fleet::plan()
        .set("MUSTER_HEARTBEAT_INTERVAL", "200ms")
        .start()
        .await
}

/// The tally of one job.
fn tally(fleet: &Fleet, name: &str) -> Tally {
    let directory = fleet.directory().join(name);
    fs::create_dir_all(&directory).unwrap();
    Tally::new(&directory)
}

fn until(go: &std::path::Path) -> String {
    format!("until [ -e '{}' ]; do sleep 0.02; done", go.display())
}

/// Waits until a job is in history, and final with all its output.
async fn told(job: &Watched, fleet: &Fleet, state: State) -> muster_proto::v1::Task {
    let what = format!("{} is in history as {}", job.job_id, state.as_str_name());
    let operator = fleet.operator();
    eventually(PATIENCE, &what, || async {
        let job_id = job.job_id.clone();
        operator.jobs().get_job(GetJobRequest { job_id }).await.ok()
    })
    .await;
    let job = operator.job(&job.job_id);
    eventually(PATIENCE, &what, || async {
        let task = job.task().await;
        (task.state() == state && task.output_complete).then_some(task)
    })
    .await
}

/// The disk dies, and a backup takes its place.
async fn lose_and_restore(fleet: &Fleet, backup: &str) {
    fleet.kill_control_plane();
    fs::remove_dir_all(fleet.data_dir().join("control-plane")).unwrap();
    let restored = fleet.cli(&["control-plane", "restore", backup]).await;
    assert_eq!(restored.code(), 0, "{}", restored.stderr);
    fleet.start_control_plane().await;
}

fn backup_path(fleet: &Fleet, name: &str) -> (PathBuf, String) {
    let path = fleet.directory().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

#[tokio::test]
async fn history_is_whole_again_after_a_restore_and_nothing_runs_twice() {
    let fleet = fleet().await;
    let _web = fleet.host("web-1").await;
    let later = fleet.joined("later-1", &[]).await;
    let away = fleet.joined("away-1", &[]).await;
    let operator = fleet.operator();
    let (go, go_on) = (fleet.directory().join("go"), fleet.directory().join("on"));

    // Before the backup: one that is over, one that runs over it, and some that wait for their hosts.
    let over = operator.run("web-1", "echo before; exit 4").await;
    over.reaches(State::Failed).await;
    let running_tally = tally(&fleet, "running");
    let text = format!(
        "echo early; {}; {}; exit 7",
        running_tally.mark(),
        until(&go)
    );
    let running = operator.run("web-1", text).await;
    running.reaches(State::Running).await;
    let ran_tally = tally(&fleet, "ran");
    let ran = operator.run("later-1", ran_tally.mark()).await;
    let held_tally = tally(&fleet, "held");
    let held = operator.run("away-1", held_tally.mark()).await;
    let cancelled = operator.run("away-1", held_tally.mark()).await;
    let expired = CreateJobRequest {
        start_deadline: Some(Duration::from_secs(5).try_into().unwrap()),
        ..request("away-1", script(held_tally.mark()))
    };
    let expired = operator.create(expired).await.unwrap();

    let (_, backup) = backup_path(&fleet, "backup.tar");
    let made = fleet
        .cli(&["control-plane", "backup", "--to", &backup])
        .await;
    assert_eq!(made.code(), 0, "{}", made.stderr);

    // After it: what ran ends, what waited for a host runs, more comes, and one runs on.
    fs::write(&go, "").unwrap();
    running.reaches(State::Failed).await;
    later.start(&fleet);
    ran.succeeds().await;
    let mut after = Vec::new();
    for code in 0..6 {
        let tally = tally(&fleet, &format!("after-{code}"));
        let text = format!("{}; echo {code}; echo err >&2; exit {code}", tally.mark());
        let job = operator.run("web-1", text).await;
        let state = if code == 0 {
            State::Succeeded
        } else {
            State::Failed
        };
        job.reaches(state).await;
        job.complete().await;
        after.push((job, tally, state, code));
    }
    // All of them are settled: their output is nowhere but in what is about to be lost.
    let history = fleet.directory().join("web-1/agent/history");
    for (job, ..) in &after {
        let task_id = job.task().await.task_id;
        eventually(PATIENCE, "the host remembers it as settled", || async {
            let bytes = fs::read(&history).unwrap_or_default();
            let mut places = bytes.windows(task_id.len());
            places
                .any(|place| place == task_id.as_bytes())
                .then_some(())
        })
        .await;
    }
    let on_tally = tally(&fleet, "on-going");
    let text = format!("{}; {}; echo end", on_tally.mark(), until(&go_on));
    let on_going = operator.run("web-1", text).await;
    on_going.reaches(State::Running).await;

    lose_and_restore(&fleet, &backup).await;
    let operator = fleet.operator();
    operator.online("web-1").await;
    operator.online("later-1").await;

    let task = told(&running, &fleet, State::Failed).await;
    assert_eq!(task.exit_code, Some(7));
    told(&ran, &fleet, State::Succeeded).await;
    for (job, tally, state, code) in &after {
        let task = told(job, &fleet, *state).await;
        assert_eq!(task.exit_code, Some(*code));
        let size = task.output_size.unwrap();
        assert_eq!((size.stdout_bytes, size.stderr_bytes), (2, 4));
        assert_eq!(size.dropped_bytes, 6, "what the backup lacks is a gap");
        let verified = ["job", "receipt", &task.task_id, "--verify"];
        let verified = fleet.cli(&verified).await;
        assert_eq!(verified.code(), 0, "{}", verified.stderr);
        let job = operator.job(&job.job_id).job().await;
        assert!(job.note.contains("adopted"), "{}", job.note);
        assert!(job.action.is_some() && job.principal.starts_with("operator/"));
        assert_eq!(tally.runs(), 1);
    }
    let seen = operator.job(&over.job_id);
    assert_eq!(seen.output(OutputStream::Stdout).await, b"before\n");
    fs::write(&go_on, "").unwrap();
    told(&on_going, &fleet, State::Succeeded).await;
    let on_going = operator.job(&on_going.job_id);
    assert_eq!(on_going.output(OutputStream::Stdout).await, b"end\n");

    // What was pending and nobody knows of is held, however its host comes and whatever else runs there.
    let held = operator.job(&held.job_id);
    assert_eq!(held.task().await.wait(), Wait::ForRelease);
    away.start(&fleet);
    operator.online("away-1").await;
    operator.run("away-1", "true").await.succeeds().await;
    let host = eventually(PATIENCE, "the host has uploaded", || async {
        let host = operator.host("away-1").await;
        (!host.owes_upload).then_some(host)
    })
    .await;
    assert!(host.held_tasks >= 2, "{host:?}");
    let task = held.task().await;
    assert_eq!(
        (task.state(), task.wait()),
        (State::Pending, Wait::ForRelease)
    );
    let shown = fleet.cli(&["job", "get", &held.job_id]).await;
    assert!(
        shown.stdout.contains("muster job release"),
        "{}",
        shown.stdout
    );
    let shown = fleet.cli(&["host", "list"]).await;
    assert!(shown.stdout.contains("held"), "{}", shown.stdout);
    let cancelled = operator.job(&cancelled.job_id);
    cancelled.cancel(Duration::ZERO).await;
    cancelled.reaches(State::Cancelled).await;
    operator.job(&expired.job_id).reaches(State::Expired).await;
    assert_eq!(held_tally.runs(), 0);

    // An operator decides, and nobody else.
    let token = operator.bearer_token(PrincipalKind::Ai, "claude").await;
    let everything = ReleaseJobsRequest {
        all: true,
        job_ids: Vec::new(),
    };
    let refused = fleet.bearer(&token).jobs().release_jobs(everything).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::NotAllowed);
    let released = fleet.cli(&["job", "release", &held.job_id]).await;
    assert_eq!(released.stdout, "released 1 tasks of 1 jobs\n");
    held.succeeds().await;
    assert_eq!(held_tally.runs(), 1);
    for tally in [&running_tally, &ran_tally, &on_tally] {
        assert_eq!(tally.runs(), 1);
    }
    let again = fleet.cli(&["job", "release", "--all"]).await;
    assert_eq!(again.stdout, "released 0 tasks of 0 jobs\n");
}

#[tokio::test]
async fn a_ledger_that_was_copied_back_by_hand_is_noticed_once() {
    let fleet = fleet().await;
    let _web = fleet.host("web-1").await;
    let away = fleet.joined("away-1", &[]).await;
    let operator = fleet.operator();
    let held_tally = tally(&fleet, "held");
    let held = operator.run("away-1", held_tally.mark()).await;
    fleet.stop_control_plane().await;
    let directory = fleet.data_dir().join("control-plane");
    let ledger = ["ledger.db", "ledger.db-wal", "ledger.db-shm"];
    let copy = fleet.directory().join("copy");
    fs::create_dir(&copy).unwrap();
    for name in ledger.iter().filter(|name| directory.join(name).exists()) {
        fs::copy(directory.join(name), copy.join(name)).unwrap();
    }

    fleet.start_control_plane().await;
    let operator = fleet.operator();
    operator.online("web-1").await;
    let after_tally = tally(&fleet, "after");
    let after = operator
        .run(
            "web-1",
            format!("{}; echo kept; exit 3", after_tally.mark()),
        )
        .await;
    after.reaches(State::Failed).await;
    after.complete().await;
    for _ in 0..20 {
        operator.run("web-1", "true").await.succeeds().await;
    }
    // Heard of in the next heartbeats.
    let beats = operator.host("web-1").await.last_heard_time;
    eventually(PATIENCE, "the host hears how far the ledger is", || async {
        let now = operator.host("web-1").await.last_heard_time.unwrap();
        (now.seconds >= beats.unwrap().seconds + 2).then_some(())
    })
    .await;
    fleet.stop_control_plane().await;
    for name in ledger {
        let _ = fs::remove_file(directory.join(name));
        if copy.join(name).exists() {
            fs::copy(copy.join(name), directory.join(name)).unwrap();
        }
    }
    fleet.start_control_plane().await;
    let operator = fleet.operator();

    let task = told(&after, &fleet, State::Failed).await;
    assert_eq!(task.exit_code, Some(3));
    assert_eq!(
        operator
            .job(&after.job_id)
            .output(OutputStream::Stdout)
            .await,
        b"kept\n",
        "the output was not set back"
    );
    assert_eq!(after_tally.runs(), 1);
    let noticed = |log: &str| log.matches("the ledger was set back").count();
    assert!(fleet.log().contains("the ledger was set back"));

    // It stays so over the next start, and is not noticed again.
    fleet.stop_control_plane().await;
    let before = noticed(&fleet.log());
    fleet.start_control_plane().await;
    let operator = fleet.operator();
    operator.online("web-1").await;
    away.start(&fleet);
    operator.online("away-1").await;
    operator.run("away-1", "true").await.succeeds().await;
    assert!(noticed(&fleet.log()) <= before);
    let held = operator.job(&held.job_id);
    assert_eq!(held.task().await.wait(), Wait::ForRelease);
    assert_eq!(held_tally.runs(), 0);
    let released = fleet.cli(&["job", "release", "--all"]).await;
    assert_eq!(released.stdout, "released 1 tasks of 1 jobs\n");
    held.succeeds().await;
    assert_eq!(held_tally.runs(), 1);
}

#[tokio::test]
async fn a_restore_refuses_what_would_lose_something() {
    let fleet = fleet().await;
    let (folder, backup) = backup_path(&fleet, "backup");
    let nothing = fleet.cli(&["control-plane", "restore", &backup]).await;
    assert_eq!(nothing.code(), 69, "it runs: {}", nothing.stderr);
    let made = fleet
        .cli(&["control-plane", "backup", "--to", &backup])
        .await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    let again = fleet
        .cli(&["control-plane", "backup", "--to", &backup])
        .await;
    assert_eq!(again.code(), 64, "{}", again.stderr);
    let running = fleet
        .cli(&["control-plane", "restore", &backup, "--force"])
        .await;
    assert!(running.stderr.contains("runs in"), "{}", running.stderr);

    let job = fleet.operator().bearer_token(PrincipalKind::Ai, "x").await;
    assert!(!job.is_empty());
    fleet.stop_control_plane().await;
    let newer = fleet.cli(&["control-plane", "restore", &backup]).await;
    assert_eq!(newer.code(), 64);
    assert!(newer.stderr.contains("newer"), "{}", newer.stderr);

    // While it does not run it can be backed up too, without a name.
    let made = fleet.cli(&["control-plane", "backup", "--json"]).await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    let latest = made["backup"]["path"].as_str().unwrap().to_owned();
    let restored = fleet.cli(&["control-plane", "restore", &latest]).await;
    assert_eq!(restored.code(), 0, "nothing is lost: {}", restored.stderr);

    fs::write(folder.join("seal.key"), "forged").unwrap();
    let damaged = fleet
        .cli(&["control-plane", "restore", &backup, "--force"])
        .await;
    assert_eq!(damaged.code(), 64);
    assert!(damaged.stderr.contains("seal.key"), "{}", damaged.stderr);
    fleet.start_control_plane().await;
    assert!(fleet.operator().all_hosts().await.is_empty());
}

#[tokio::test]
async fn a_forged_upload_is_refused_and_nothing_is_made_of_it() {
    let fleet = fleet().await;
    let host = fleet.joined("web-1", &[]).await;
    let other = fleet.joined("web-2", &[]).await;
    let (_, backup) = backup_path(&fleet, "backup");
    let made = fleet
        .cli(&["control-plane", "backup", "--to", &backup])
        .await;
    assert_eq!(made.code(), 0, "{}", made.stderr);

    // A real offer, which the backup lacks.
    let agent = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let mut attached = agent.attach(hello("boot", "journal")).await.unwrap();
    let job = fleet.operator().run("web-1", "true").await;
    let offer = loop {
        match attached.next().await.unwrap().unwrap() {
            attach_response::Message::Offer(offer) => break offer,
            _ => continue,
        }
    };
    lose_and_restore(&fleet, &backup).await;

    let mut forged = SealedOffer::decode(&offer.sealed_offer[..]).unwrap();
    let task_id = forged.task_id.clone();
    forged.principal = "operator/mallory".to_owned();
    let recalled = |sealed_offer: Vec<u8>| RecalledTask {
        task_id: task_id.clone(),
        sealed_offer: sealed_offer.into(),
        seal: offer.seal.clone(),
        ended: Some(task_state::Ended {
            state: State::Succeeded.into(),
            exit_code: Some(0),
            ..Default::default()
        }),
        ..RecalledTask::default()
    };
    let forged = recalled(forged.encode_to_vec());
    let stolen = recalled(offer.sealed_offer.to_vec());
    for (host, task, refused) in [
        (&host, &forged, true),
        // The seal is real, and for another host.
        (&other, &stolen, true),
        (&host, &stolen, false),
    ] {
        let agent = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
        let mut hello = hello("boot", "journal");
        hello.capabilities.push("upload".to_owned());
        let attached = agent.attach(hello).await.unwrap();
        assert!(attached.welcome.upload, "it was restored");
        let answers = agent
            .upload(vec![
                upload_request::Message::Open(UploadOpen {
                    session_epoch: attached.welcome.session_epoch,
                }),
                upload_request::Message::Known(KnownTasks {
                    task_ids: vec![task_id.clone()],
                }),
                upload_request::Message::Recalled(RecalledTasks {
                    tasks: vec![task.clone()],
                }),
            ])
            .await
            .unwrap();
        let [
            upload_response::Message::Wanted(wanted),
            upload_response::Message::Taken(taken),
        ] = &answers[..]
        else {
            panic!("{answers:?}");
        };
        assert_eq!(wanted.task_ids, std::slice::from_ref(&task_id));
        assert_eq!(taken.refused_task_ids.contains(&task_id), refused);
        let known = fleet
            .operator()
            .jobs()
            .list_jobs(ListJobsRequest::default())
            .await;
        let known = known.unwrap().into_inner().jobs;
        assert_eq!(known.len(), usize::from(!refused));
    }
    told(&job, &fleet, State::Succeeded).await;

    // Once it has said all, it is not asked again.
    let agent = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let mut uploads = hello("boot", "journal");
    uploads.capabilities.push("upload".to_owned());
    let attached = agent.attach(uploads.clone()).await.unwrap();
    let session_epoch = attached.welcome.session_epoch;
    let answers = agent
        .upload(vec![
            upload_request::Message::Open(UploadOpen { session_epoch }),
            upload_request::Message::End(UploadEnd {}),
        ])
        .await
        .unwrap();
    assert!(matches!(
        answers[..],
        [upload_response::Message::Complete(_)]
    ));
    assert!(!agent.attach(uploads).await.unwrap().welcome.upload);
    assert!(!fleet.operator().host("web-1").await.owes_upload);
}

#[tokio::test]
async fn a_task_that_runs_over_a_restore_goes_on_behind_a_gap() {
    let fleet = fleet().await;
    let _host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let (go, go_on) = (fleet.directory().join("go"), fleet.directory().join("on"));
    let tally = tally(&fleet, "runs");
    let text = format!(
        "{}; echo early; {}; seq 1 4000000; {}; echo end",
        tally.mark(),
        until(&go),
        until(&go_on)
    );
    let job = operator.run("web-1", text).await;
    let has = async |job: &Watched, bytes: i64| {
        eventually(PATIENCE, "output has come", || async {
            let size = job.task().await.output_size.unwrap_or_default();
            (size.stdout_bytes >= bytes).then_some(())
        })
        .await;
    };
    has(&job, 6).await;
    let (_, backup) = backup_path(&fleet, "backup");
    let made = fleet
        .cli(&["control-plane", "backup", "--to", &backup])
        .await;
    assert_eq!(made.code(), 0, "{}", made.stderr);

    let bulk: i64 = (1..=4_000_000_i64)
        .map(|number| number.to_string().len() as i64 + 1)
        .sum();
    fs::write(&go, "").unwrap();
    has(&job, 6 + bulk).await;
    // What was handed over leaves the host a moment later.
    let spool = fleet.directory().join("web-1/agent/spool");
    eventually(PATIENCE, "the host has thrown it away", || async {
        let files = fs::read_dir(&spool).unwrap().flatten();
        let bytes: u64 = files
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum();
        ((bytes as i64) < bulk / 2).then_some(())
    })
    .await;
    lose_and_restore(&fleet, &backup).await;
    fs::write(&go_on, "").unwrap();
    let job = fleet.operator().job(&job.job_id);
    let task = job.succeeds().await;
    let size = task.output_size.unwrap();
    assert_eq!(size.stdout_bytes, 6 + bulk + 4);
    assert!(size.dropped_bytes > 0, "{size:?}");
    let seen = job.watch().await;
    assert_eq!(seen.missing, size.dropped_bytes);
    let kept = seen.stdout();
    assert!(kept.starts_with(b"early\n") && kept.ends_with(b"end\n"));
    assert_eq!(kept.len() as i64, size.stdout_bytes - size.dropped_bytes);
    assert_eq!(tally.runs(), 1);
}
