//! What happens to old tasks when the ledger is not the one that a host has seen.

use muster_proto::agent::v1::{
    KnownTasks, RecalledTask, RecalledTasks, UploadEnd, UploadOpen, WantedTasks,
    upload_request::Message as Upload, upload_response::Message as Uploaded,
};

use super::*;
use crate::{
    jobs,
    model::{
        Hold, Order,
        dispatch::{Decision, HostView, TaskView, Wait, decide},
        order::record::OrderRecord,
    },
    sessions::offer,
};

/// How many restores the ledger remembers, and how many tasks it holds.
async fn restores(plane: &Plane) -> (i64, i64) {
    store::restores::count(&plane.store.readers).await.unwrap()
}

async fn hold(plane: &Plane, job: JobId) -> Hold {
    let watch = plane.rooms.jobs.watch(job, "", true).await.unwrap();
    watch.unwrap().job().task(0).hold
}

#[tokio::test]
async fn whoever_only_says_that_it_has_seen_more_holds_up_nobody() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let generation = plane.rooms.restores.generation();
    let position = plane.store.position + 1;
    let sealed = |host, generation: &str, position| {
        let restores = &plane.rooms.restores;
        restores.sealed(host, generation, position)
    };
    let other = HostId::from_bytes(&[8; 32]);
    for seal in [
        Bytes::new(),
        sealed(other, &generation, position),
        sealed(host(), &generation, position - 1),
        sealed(host(), "another", position),
    ] {
        let lie = Hello {
            seen_generation: generation.to_string(),
            seen_ledger_position: position,
            seen_ledger_seal: seal,
            ..Agent::hello("boot", "journal", 5)
        };
        let agent = Agent::attach_with(&plane, lie).await;
        assert_eq!(*agent.welcome.generation, *generation);
        assert_eq!(restores(&plane).await, (0, 0));
        let told = agent.welcome.ledger_position;
        let seal = sealed(host(), &generation, told);
        assert_eq!(
            agent.welcome.ledger_seal, seal,
            "what it was told it can prove"
        );
    }
    plane.close().await;
}

#[tokio::test]
async fn a_host_that_has_seen_more_has_old_tasks_held_before_it_is_offered_any() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let old = plane.create("old").await.unwrap();
    plane.close().await;

    // The host was told of more since, by the ledger that is gone.
    let plane = Plane::open(directory.path()).await;
    let generation = plane.rooms.restores.generation();
    let seen = |position| Hello {
        seen_generation: generation.to_string(),
        seen_ledger_position: position,
        seen_ledger_seal: plane.rooms.restores.sealed(host(), &generation, position),
        capabilities: vec!["upload".into()],
        ..Agent::hello("boot", "journal", 5)
    };
    assert_eq!(restores(&plane).await, (0, 0));
    let mut agent = Agent::attach_with(&plane, seen(plane.store.position + 1)).await;
    assert!(agent.welcome.upload);
    assert_ne!(*agent.welcome.generation, *generation);
    assert_eq!(restores(&plane).await.0, 1);
    assert_eq!(hold(&plane, old).await, Hold::Held);
    // What comes now is none of it, and is offered first.
    let new = plane.create("new").await.unwrap();
    let offer = agent.offer().await;
    let sealed = muster_proto::agent::v1::SealedOffer::decode(offer.sealed_offer);
    assert_eq!(sealed.unwrap().job_id, new.to_string());
    assert_eq!(hold(&plane, new).await, Hold::None);

    // A host cannot report what it was never offered.
    let watch = plane.rooms.jobs.watch(old, "", true).await.unwrap();
    let held = watch.unwrap().job().task(0);
    let unoffered = Open {
        task_id: held.task_id.to_string(),
        session_epoch: agent.welcome.session_epoch,
        fresh: true,
        ..Open::default()
    };
    let refused = agent.report(unoffered, success(b"lies")).await.unwrap_err();
    let reason = refused.get_details_error_info().unwrap().reason;
    assert_eq!(reason, "SEAL_INVALID");
    let size = plane.rooms.output.size(held.task_id).await.unwrap();
    assert_eq!(size.last_sequence, 0);

    // The same host is not believed twice, and the next start finds all of it as it was.
    let stale = Agent::attach_with(&plane, seen(i64::MAX)).await;
    assert_eq!(stale.welcome.generation, agent.welcome.generation);
    let generation = plane.rooms.restores.generation();
    drop((agent, stale));
    plane.close().await;
    let plane = Plane::open(directory.path()).await;
    assert_eq!(plane.rooms.restores.generation(), generation);
    assert_eq!(restores(&plane).await, (1, 1));
    assert_eq!(hold(&plane, old).await, Hold::Held);
    assert!(plane.rooms.restores.owes_upload(host()));
}

#[tokio::test]
async fn a_released_task_waits_for_the_upload_and_a_release_is_durable() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let job = plane.create("old").await.unwrap();
    let mark = Batch::new().with("UPDATE ledger SET backup_time = 1", []);
    plane.store.writer.commit(mark).await.unwrap();
    plane.close().await;

    let plane = Plane::open(directory.path()).await;
    assert_eq!(restores(&plane).await, (1, 1));
    assert_eq!(plane.rooms.jobs.load_of(host()), (0, 1, 1));
    let released = plane.rooms.jobs.release(Some(vec![job]), "operator/ada");
    let released = released.await.unwrap().unwrap();
    assert_eq!((released.jobs, released.tasks), (1, 1));
    assert_eq!(restores(&plane).await, (1, 0));
    plane.close().await;

    let plane = Plane::open(directory.path()).await;
    assert_eq!(hold(&plane, job).await, Hold::Released);
    let hello = Hello {
        capabilities: vec!["upload".into()],
        ..Agent::hello("boot", "journal", 5)
    };
    let mut agent = Agent::attach_with(&plane, hello).await;
    assert!(agent.welcome.upload);
    let view = plane
        .rooms
        .jobs
        .watch(job, "", true)
        .await
        .unwrap()
        .unwrap();
    let view = TaskView::waiting(&view.job().task(0));
    assert_eq!(
        decide(view, HostView::Uploading, true),
        Decision::Wait(Wait::Upload)
    );
    let generation = plane.rooms.restores.generation();
    let done = plane
        .rooms
        .restores
        .uploaded(host(), &generation, &plane.rooms.inventory);
    done.await.unwrap();
    plane.rooms.connections.current(host()).unwrap().look();
    agent.offer().await;
}

#[tokio::test]
async fn an_agent_that_cannot_upload_is_not_waited_for() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mark = Batch::new().with("UPDATE ledger SET backup_time = 1", []);
    plane.store.writer.commit(mark).await.unwrap();
    plane.close().await;
    let plane = Plane::open(directory.path()).await;
    assert!(plane.rooms.restores.owes_upload(host()));
    let agent = Agent::attach(&plane, "boot", "journal", 5).await;
    assert!(!agent.welcome.upload);
    assert!(!plane.rooms.restores.owes_upload(host()));
}

#[tokio::test]
async fn an_upload_of_many_tasks_is_history_again() {
    const TASKS: u32 = 600;
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mark = Batch::new().with("UPDATE ledger SET backup_time = 1", []);
    plane.store.writer.commit(mark).await.unwrap();
    plane.close().await;
    let plane = Plane::open(directory.path()).await;
    let hello = Hello {
        capabilities: vec!["upload".into()],
        ..Agent::hello("boot", "journal", 5)
    };
    let mut agent = Agent::attach_with(&plane, hello).await;
    let sealer = Sealer::open(&directory.path().join("seal.key")).unwrap();
    let tasks: Vec<RecalledTask> = (0..TASKS)
        .map(|number| recalled(&plane, &sealer, number))
        .collect();
    let ids = |tasks: &[RecalledTask]| -> Vec<String> {
        tasks.iter().map(|task| task.task_id.clone()).collect()
    };

    let (up, messages) = mpsc::channel(1);
    let send = async |message| {
        let message = Some(message);
        up.send(UploadRequest { message }).await.unwrap();
    };
    let session_epoch = agent.welcome.session_epoch;
    send(Upload::Open(UploadOpen { session_epoch })).await;
    let answers = agent.client.upload(ReceiverStream::new(messages)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut answer = async || answers.message().await.unwrap().unwrap().message.unwrap();
    for page in tasks.chunks(500) {
        let task_ids = ids(page);
        send(Upload::Known(KnownTasks { task_ids })).await;
        let Uploaded::Wanted(wanted) = answer().await else {
            panic!("it says what it wants");
        };
        assert_eq!(wanted.task_ids, ids(page));
        let tasks = page.to_vec();
        send(Upload::Recalled(RecalledTasks { tasks })).await;
        let Uploaded::Taken(taken) = answer().await else {
            panic!("it takes them");
        };
        assert!(taken.refused_task_ids.is_empty());
    }
    // Said again, as after a cut, it is known already.
    let task_ids = ids(&tasks[..500]);
    send(Upload::Known(KnownTasks { task_ids })).await;
    assert_eq!(answer().await, Uploaded::Wanted(WantedTasks::default()));
    send(Upload::End(UploadEnd {})).await;
    assert!(matches!(answer().await, Uploaded::Complete(_)));

    let counts = plane.rooms.jobs.load_of(host());
    assert_eq!(counts, (0, 0, 0), "nothing is open, and nothing is offered");
    let filter = store::jobs::JobFilter::default();
    let jobs = plane.rooms.jobs.list(&filter, None, 10_000).await.unwrap();
    assert_eq!(jobs.len(), TASKS as usize);
    assert!(jobs.iter().all(|job| job.state == JobState::Failed));
}

/// A task that a host ran and whose output it handed over.
fn recalled(plane: &Plane, sealer: &Sealer, number: u32) -> RecalledTask {
    let request_id = format!("r-{number}");
    let plane_id = &plane.store.control_plane_id;
    let job_id = jobs::job_id(plane_id, "operator/ada", &request_id);
    let action = Action {
        kind: Some(action::Kind::Command(Command::default())),
    };
    let order = Order {
        job_id,
        principal: "operator/ada".into(),
        request_id: request_id.into(),
        request_digest: [1; 32],
        selector: "all".into(),
        action: crate::model::Action::new(action).0,
        secrets: Default::default(),
        confinement: Default::default(),
        reason: "".into(),
        approval_id: "".into(),
        create_time: 0,
        start_deadline_time: 1,
        lost_after: 1,
    };
    let task_id = jobs::task_id(job_id, host());
    let task = Task::new(task_id, host(), "web-1".into(), None, 0);
    let sealed = offer::seal(sealer, &OrderRecord::offer(plane_id, &order, 0, &task));
    let message = offer::message(sealed, Default::default(), Default::default());
    let Some(Down::Offer(offer)) = message.message else {
        panic!("an offer is an offer");
    };
    RecalledTask {
        task_id: task_id.to_string(),
        sealed_offer: offer.sealed_offer,
        seal: offer.seal,
        ended: Some(task_state::Ended {
            state: task::State::Failed.into(),
            exit_code: Some(3),
            ..Default::default()
        }),
        stdout_bytes: 7,
        ..RecalledTask::default()
    }
}
