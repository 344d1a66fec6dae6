//! What comes at an unlucky moment: offers between sessions, results after the end, hosts that do not read.

use super::*;
use crate::jobs;

#[tokio::test]
async fn an_offer_is_made_in_one_session_and_answers_to_an_older_welcome_do_not_touch_it() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let job = plane.create("r-1").await.unwrap();
    let mut first = Agent::attach(&plane, "boot", "journal", 5).await;
    first.offer().await;
    let mut second = Agent::attach(&plane, "boot", "journal", 5).await;
    assert_eq!(second.welcome.expected_task_ids.len(), 1);
    second.says_not_held().await;
    let again = second.offer().await;
    // Says so once more, as one whose answer was on its way when the offer left.
    second.says_not_held().await;
    let open = second.open(&again, true);
    let heard = second.report(open, success(b"x")).await.unwrap();
    assert!(matches!(heard.last(), Some(ReportDown::Settled(_))));
    assert_eq!(plane.state(job).await, JobState::Succeeded);
}

#[tokio::test]
async fn an_offer_that_fails_leaves_one_of_a_newer_session_alone() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let id = plane.create("r-1").await.unwrap();
    let watch = plane.rooms.jobs.watch(id, "", true).await.unwrap().unwrap();
    let job = watch.job();
    let fence = || Fence {
        boot_id: "boot".into(),
        journal_id: "journal".into(),
    };
    assert!(job.set_offered(0, fence(), 1, 0));
    assert!(!job.set_offered(0, fence(), 2, 0), "it is taken");
    assert!(job.never_arrived(0, 2, 0));
    assert!(job.set_offered(0, fence(), 2, 0));
    assert!(!job.never_arrived(0, 2, 0));
    assert!(!job.offer_failed(0, 1, 0));
    assert_eq!(job.task(0).offered, Some(fence()));
    assert!(job.offer_failed(0, 2, 0));
    assert_eq!(job.task(0).offered, None);
}

#[tokio::test]
async fn a_host_that_does_not_read_is_not_told_again_and_again() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let fence = Fence {
        boot_id: "boot".into(),
        journal_id: "journal".into(),
    };
    // Its messages are never taken.
    let (session, mut messages) = plane.rooms.connections.open(host(), fence, false, true);
    plane.rooms.connections.enter(&session);
    session.greet(AttachResponse::default());
    let job = plane.create("r-1").await.unwrap();
    while session.send(AttachResponse::default()) {}
    let by = "operator/ada".into();
    plane.rooms.jobs.cancel(job, None, None, by).await.unwrap();

    let mut telling = pin!(plane.rooms.jobs.hand_over(&session));
    assert!(futures_util::poll!(&mut telling).is_pending());
    let mut told = 0;
    let drain = async {
        while let Some(message) = messages.recv().await {
            if matches!(message.message, Some(Down::Cancel(_))) {
                told += 1;
                return;
            }
        }
    };
    let (handed, ()) = tokio::join!(telling, drain);
    handed.unwrap();
    assert_eq!(told, 1);
}

#[tokio::test]
async fn output_of_a_host_that_is_gone_is_still_shown() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mut agent = Agent::attach(&plane, "boot", "journal", 0).await;
    let id = plane.create("r-1").await.unwrap();
    let offer = agent.offer().await;
    let task_id = agent.open(&offer, true).task_id.parse().unwrap();
    let jobs = &plane.rooms.jobs;
    let task = jobs.find(task_id).await.unwrap().unwrap();
    let chunk = crate::output::Chunk {
        sequence: 1,
        stream: crate::model::Stream::Stdout,
        offset: 0,
        data: Bytes::from_static(b"half of it"),
        time: None,
    };
    plane.rooms.output.append(task_id, chunk).await.unwrap();
    let ending = Ending {
        receipt: bytes::Bytes::new(),
        result: Bytes::new(),
        state: State::Succeeded,
        reason: Reason::Unspecified,
        message: String::new(),
        exit_code: Some(0),
        signal: String::new(),
        run_time: Some(0),
        time: 1,
    };
    jobs.ended(&task, ending).unwrap();
    plane.rooms.inventory.remove(host()).await.unwrap();
    jobs.sweep(0);
    let (tasks, output) = plane.followed(id, "").await;
    assert_eq!(output, b"half of it");
    assert!(tasks.last().unwrap().output_complete);
}

#[tokio::test]
async fn late_results_of_one_job_are_all_kept() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let jobs = &plane.rooms.jobs;
    let hosts = [host(), HostId::from_bytes(&[8; 32])];
    let id = plane.create_on("r-1", &hosts).await.unwrap();
    let watch = jobs.watch(id, "", true).await.unwrap().unwrap();
    let tasks = watch.job().tasks(|_| true);
    for (ordinal, task) in &tasks {
        let fence = Fence {
            boot_id: "boot".into(),
            journal_id: "journal".into(),
        };
        watch.job().set_offered(*ordinal, fence, 1, 0);
        let task = jobs.find(task.task_id).await.unwrap().unwrap();
        jobs.give_up(&task, Reason::HostGone, "gone".into());
    }
    jobs.durable().await.unwrap();
    drop(watch);

    // The job is done and written. Now the hosts come back, the second while the first still reports.
    let late = || Ending {
        receipt: bytes::Bytes::new(),
        result: Bytes::new(),
        state: State::Succeeded,
        reason: Reason::Unspecified,
        message: String::new(),
        exit_code: Some(0),
        signal: String::new(),
        run_time: Some(0),
        time: 1,
    };
    let first = jobs.find(tasks[0].1.task_id).await.unwrap().unwrap();
    jobs.ended(&first, late()).unwrap();
    jobs.durable().await.unwrap();
    jobs.output_ended(&first, 0);
    let second = jobs.find(tasks[1].1.task_id).await.unwrap().unwrap();
    jobs.ended(&second, late()).unwrap();
    jobs.durable().await.unwrap();
    let filter = store::jobs::TaskFilter {
        job: Some(id),
        ..Default::default()
    };
    let rows = jobs.list_tasks(&filter, None, 10).await.unwrap();
    let results: Vec<_> = rows.iter().map(|row| &*row.task.late_result).collect();
    assert_eq!(results, ["succeeded, exit code 0"; 2]);
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_is_told_to_callers() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let id = plane.create("r-1").await.unwrap();
    // From here on every transaction fails.
    let broken = Batch::new().with("PRAGMA query_only = ON", []);
    let commit = plane.store.writer.commit(broken);
    assert!(commit.await.is_err());
    let jobs = &plane.rooms.jobs;
    let cancel = jobs.cancel(id, None, None, "operator/ada".into());
    let told = timeout(PATIENCE, cancel).await.unwrap().unwrap_err();
    assert!(matches!(told, store::StoreError::Broken(_)), "{told}");
    let told = timeout(PATIENCE, plane.create("r-2")).await.unwrap();
    assert!(matches!(told, Err(CreateError::Ledger(_))));
}

#[tokio::test]
async fn a_new_job_that_is_written_twice_is_one_job() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let id = plane.create("r-1").await.unwrap();
    plane.rooms.jobs.durable().await.unwrap();
    // As after a commit whose answer was an error.
    let summary = plane.rooms.jobs.get(id).await.unwrap().unwrap();
    let mut again = store::Batch::new();
    store::jobs::put(&mut again, &[summary], &[], &[]);
    plane.store.writer.commit(again).await.unwrap();
    assert_eq!(plane.state(id).await, JobState::Pending);
}

#[tokio::test]
async fn a_job_that_only_the_intake_has_is_found_by_the_next_start() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    // From here on no job gets into the ledger.
    let broken = Batch::new().with("PRAGMA query_only = ON", []);
    assert!(plane.store.writer.commit(broken).await.is_err());
    let id = plane.create("r-1").await.unwrap();
    // Nor does a backup miss it.
    let records = store::intake::read(directory.path()).unwrap();
    let accepted = jobs::replay::decode(&records).unwrap();
    let (ledger, copy) = (
        directory.path().join("ledger.db"),
        directory.path().join("copy.db"),
    );
    let copied = store::backup::copy(&ledger, &copy, accepted, 1);
    assert_eq!(copied.await.unwrap().pending_tasks, 1);
    plane.close().await;

    let plane = Plane::open(directory.path()).await;
    assert_eq!(plane.state(id).await, JobState::Pending);
    assert_eq!(plane.create("r-1").await.unwrap(), id);
    let filter = Default::default();
    let all = plane.rooms.jobs.list(&filter, None, 10).await.unwrap();
    assert_eq!(all.len(), 1);
}
