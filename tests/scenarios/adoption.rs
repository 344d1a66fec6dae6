//! Tasks that an agent holds and the control plane does not know.

use std::fs;

use muster_proto::{
    agent::v1::{Open, ReportRequest, SealedOffer, attach_response, report_request},
    v1::{Reason, task::State},
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::{FakeAgent, hello},
    fleet::{Fleet, copy_directory},
    operator::reason,
    tally::Tally,
};
use prost::Message as _;

#[tokio::test]
async fn a_job_that_a_restore_forgot_is_adopted_from_its_sealed_offer() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    fleet.stop_control_plane().await;
    let backup = fleet.directory().join("backup");
    copy_directory(&fleet.data_dir(), &backup);
    fleet.start_control_plane().await;
    fleet.operator().online("web-1").await;

    let tally = Tally::new(fleet.directory());
    let go = fleet.directory().join("go");
    let text = format!(
        "{}; until [ -e {} ]; do sleep 0.02; done; echo end",
        tally.mark(),
        go.display()
    );
    let job = fleet.operator().run("web-1", text).await;
    job.reaches(State::Running).await;
    let before = job.job().await;

    // The disk dies; what is left is the backup of before the job.
    fleet.kill_control_plane();
    fs::remove_dir_all(fleet.data_dir()).unwrap();
    copy_directory(&backup, &fleet.data_dir());
    fleet.start_control_plane().await;
    eventually(PATIENCE, "the job is adopted", || async {
        let request = muster_proto::v1::GetJobRequest {
            job_id: job.job_id.clone(),
        };
        fleet.operator().jobs().get_job(request).await.ok()
    })
    .await;
    let adopted = job.job().await;
    assert!(
        !adopted.note.is_empty(),
        "a reader is told that it was adopted"
    );
    assert_eq!(adopted.principal, before.principal);
    assert_eq!(adopted.action, before.action);
    assert_eq!(adopted.create_time, before.create_time);
    fs::write(go, "").unwrap();
    job.succeeds().await;
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn a_forged_offer_is_refused_and_nothing_is_made_of_it() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    let agent = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let mut attached = agent.attach(hello("boot", "journal")).await.unwrap();
    let job = fleet.operator().run("web-1", "true").await;
    let offer = loop {
        match attached.next().await.unwrap().unwrap() {
            attach_response::Message::Offer(offer) => break offer,
            _ => continue,
        }
    };

    // The same offer under another principal, job and task: sealed by nobody.
    let mut forged = SealedOffer::decode(&offer.sealed_offer[..]).unwrap();
    forged.principal = "operator/mallory".to_owned();
    let swap = |id: &str, with: char| -> String {
        let (start, _) = id.split_at(id.len() - 1);
        let last = if id.ends_with(with) { '1' } else { with };
        format!("{start}{last}")
    };
    forged.job_id = swap(&forged.job_id, '0');
    forged.task_id = swap(&forged.task_id, '0');
    let open = Open {
        task_id: forged.task_id.clone(),
        session_epoch: attached.welcome.session_epoch,
        fresh: false,
        sealed_offer: forged.encode_to_vec().into(),
        seal: offer.seal.clone(),
    };
    let request = ReportRequest {
        message: Some(report_request::Message::Open(open)),
    };
    let refused = agent.report(vec![request]).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::SealInvalid);

    let known = fleet
        .operator()
        .jobs()
        .list_jobs(muster_proto::v1::ListJobsRequest::default())
        .await;
    let known = known.unwrap().into_inner().jobs;
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].job_id, job.job_id);
}
