//! The connection goes away, in all the ways in which connections do.

use std::fs;

use muster_proto::v1::{OutputStream, host::Presence, task::State};
use muster_tests::{
    cut::{Cut, Wire},
    fleet::Fleet,
    flow::{Flow, Lines},
    operator::Seen,
    tally::Tally,
};

/// Between two pieces of a flow of output: some 2 MB/s, well below what is kept of it.
const PAUSE_S: f64 = 0.06;

#[tokio::test]
async fn a_connection_cut_in_mid_output_and_mended_loses_no_byte() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let flow = Flow::new(fleet.directory());
    let text = format!("{}; {}", tally.mark(), flow.script(PAUSE_S));
    let job = fleet.operator().run("web-1", text).await;

    for _ in 0..3 {
        host.wire().carried_up(300 << 10).await;
        host.wire().cut();
        fleet.operator().presence("web-1", Presence::Suspect).await;
        host.wire().mend();
        fleet.operator().online("web-1").await;
    }
    flow.stop();
    let seen = job.watch().await;
    let mut lines = Lines::default();
    lines.follow(seen.stdout());
    lines.ended_with(flow.lines());
    job.succeeds().await;
    assert!(job.output(OutputStream::Stdout).await == seen.stdout());
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn a_watch_cut_in_mid_output_goes_on_without_gap_or_repeat() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let wire = Cut::to(fleet.address()).await;
    let flow = Flow::new(fleet.directory());
    let far = fleet.operator_at(wire.address());
    let job = far.run("web-1", flow.script(PAUSE_S)).await;

    let mut seen = Seen::default();
    let cutting = async {
        for _ in 0..4 {
            wire.carried_down(300 << 10).await;
            wire.cut();
            wire.has_no_connection().await;
            wire.mend();
        }
        flow.stop();
    };
    tokio::join!(job.watch_into(&mut seen), cutting);
    let mut lines = Lines::default();
    lines.follow(seen.stdout());
    lines.ended_with(flow.lines());
}

#[tokio::test]
async fn a_task_goes_on_while_its_host_is_cut_off_and_its_end_is_heard_later() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let (go, done) = (fleet.directory().join("go"), fleet.directory().join("done"));
    let text = format!(
        "{}; until [ -e {} ]; do sleep 0.02; done; echo finished; touch {}",
        tally.mark(),
        go.display(),
        done.display()
    );
    let job = fleet.operator().run("web-1", text).await;
    job.reaches(State::Running).await;

    host.wire().cut();
    fleet.operator().presence("web-1", Presence::Suspect).await;
    let task = job.task().await;
    assert_eq!(task.state(), State::Running, "being cut off is no state");
    assert!(
        task.disconnect_time.is_some(),
        "but it is said, with its age"
    );
    fs::write(&go, "").unwrap();
    muster_tests::eventually(muster_tests::PATIENCE, "the process ends", || async {
        done.exists().then_some(())
    })
    .await;

    host.wire().mend();
    let task = job.succeeds().await;
    assert!(task.disconnect_time.is_none());
    assert_eq!(job.output(OutputStream::Stdout).await, b"finished\n");
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn a_network_that_goes_silent_makes_a_host_suspect_then_offline() {
    let fleet = Fleet::plan()
        .set("MUSTER_HEARTBEAT_INTERVAL", "200ms")
        .set("MUSTER_SUSPECT_AFTER", "600ms")
        .set("MUSTER_OFFLINE_AFTER", "6s")
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    host.wire().set(Wire::Stalled);
    let suspect = operator.presence("web-1", Presence::Suspect).await;
    assert!(suspect.last_heard_age.is_some());
    operator.presence("web-1", Presence::Offline).await;
    host.wire().mend();
    operator.online("web-1").await;
    assert_eq!(
        operator
            .run("web-1", "echo back")
            .await
            .watch()
            .await
            .stdout(),
        b"back\n"
    );
}

#[tokio::test]
async fn a_half_open_connection_loses_nothing() {
    let fleet = Fleet::plan()
        .set("MUSTER_HEARTBEAT_INTERVAL", "200ms")
        .set("MUSTER_SUSPECT_AFTER", "600ms")
        .set("MUSTER_OFFLINE_AFTER", "10s")
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let tally = Tally::new(fleet.directory());
    // The host is heard and hears nothing: an offer may be on its way, unanswered.
    host.wire().set(Wire::UpOnly);
    let job = fleet.operator().run("web-1", tally.mark()).await;
    assert_eq!(job.task().await.state(), State::Pending);
    host.wire().cut();
    fleet.operator().presence("web-1", Presence::Suspect).await;
    host.wire().mend();
    job.succeeds().await;
    assert_eq!(tally.runs(), 1);
}
