//! Hosts that are not there when they are asked.

use std::time::Duration;

use muster_proto::v1::{
    CreateJobRequest, ListJobsRequest, LockHostRequest, Reason, UnlockHostRequest,
    host::Presence,
    task::{State, Wait},
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    operator::{request, script},
    tally::Tally,
};

fn within(deadline: Duration, request: CreateJobRequest) -> CreateJobRequest {
    CreateJobRequest {
        start_deadline: Some(deadline.try_into().unwrap()),
        ..request
    }
}

#[tokio::test]
async fn a_task_waits_for_its_host_and_another_expires() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    host.stop().await;
    operator.presence("web-1", Presence::Offline).await;

    let tally = Tally::new(fleet.directory());
    let patient = operator.run("web-1", tally.mark()).await;
    let hasty = request("web-1", script(tally.mark()));
    let hasty = operator
        .create(within(Duration::from_millis(300), hasty))
        .await
        .unwrap();
    let task = patient.task().await;
    assert_eq!((task.state(), task.wait()), (State::Pending, Wait::ForHost));
    assert!(task.state_time.is_some(), "since when it waits is said");

    let expired = hasty.reaches(State::Expired).await;
    assert_eq!(expired.reason(), Reason::StartDeadlinePassed);
    host.start(&fleet);
    patient.succeeds().await;
    assert_eq!(hasty.task().await.state(), State::Expired);
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn a_task_of_an_offline_host_can_be_cancelled_and_never_runs() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    host.stop().await;
    fleet.operator().presence("web-1", Presence::Offline).await;
    let tally = Tally::new(fleet.directory());
    let job = fleet.operator().run("web-1", tally.mark()).await;
    job.cancel(Duration::ZERO).await;
    job.reaches(State::Cancelled).await;
    host.start(&fleet);
    fleet.operator().run("web-1", "true").await.succeeds().await;
    assert_eq!(tally.runs(), 0);
}

#[tokio::test]
async fn a_locked_host_starts_nothing_until_it_is_unlocked() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let lock = LockHostRequest {
        host: "web-1".to_owned(),
        note: "stolen".to_owned(),
    };
    let locked = std::time::Instant::now();
    let answer = operator
        .hosts()
        .lock_host(lock)
        .await
        .unwrap()
        .into_inner()
        .host
        .unwrap();
    assert_eq!(answer.lock.unwrap().note, "stolen");

    // Cut off, and refused at the door, within a second.
    eventually(Duration::from_secs(1), "the host is cut off", || async {
        (operator.host("web-1").await.presence() != Presence::Online).then_some(())
    })
    .await;
    eventually(
        Duration::from_secs(1),
        "its handshakes are refused",
        || async {
            let refused = host.dial(fleet.address()).await.err()?;
            refused.is_refused().then_some(())
        },
    )
    .await;
    assert!(
        locked.elapsed() < Duration::from_secs(1),
        "{:?}",
        locked.elapsed()
    );

    let job = operator.run("web-1", "echo free").await;
    assert_eq!(job.task().await.wait(), Wait::ForUnlock);
    let unlock = UnlockHostRequest {
        host: "web-1".to_owned(),
    };
    operator.hosts().unlock_host(unlock).await.unwrap();
    job.succeeds().await;
}

#[tokio::test]
async fn a_removed_host_is_gone_for_ever_and_its_open_task_is_lost() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let host_id = operator.host("web-1").await.host_id;
    let job = operator.run("web-1", "sleep 600").await;
    job.reaches(State::Running).await;
    let remove = muster_proto::v1::RemoveHostRequest {
        host: "web-1".to_owned(),
    };
    operator.hosts().remove_host(remove).await.unwrap();
    let task = job.reaches(State::Lost).await;
    assert_eq!(task.reason(), Reason::HostGone);
    eventually(PATIENCE, "its handshakes are refused", || async {
        let refused = host.dial(fleet.address()).await.err()?;
        refused.is_refused().then_some(())
    })
    .await;
    // The name is free again; the id is not.
    host.kill();
    muster_tests::process::reap_matching(fleet.mark(), "sleep 600");
    let join = operator.join_string("web-1", &[]).await;
    let again = fleet.agent("web-1-again").await;
    assert_eq!(again.join(&fleet, &join).await.code(), 0);
    assert_ne!(operator.host("web-1").await.host_id, host_id);
    // History keeps the name that the host had.
    let jobs = operator
        .jobs()
        .list_jobs(ListJobsRequest::default())
        .await
        .unwrap();
    assert_eq!(jobs.into_inner().jobs.len(), 1);
    assert_eq!(job.task().await.host_name, "web-1");
}
