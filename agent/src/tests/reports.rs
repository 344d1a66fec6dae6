//! Reports over a connection that is cut, stalls or comes back, and offers that come again.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_in_mid_output_loses_and_repeats_nothing() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let text = format!(
        "seq 1 200000; while [ ! -e {} ]; do sleep 0.01; done; seq 1 1000",
        go_on.display()
    );
    let task_id = control_plane.offer(script(&text)).await;
    control_plane
        .task(&task_id, |task| task.stdout.len() > 100_000)
        .await;
    control_plane.cut();
    control_plane.attached(2).await;
    fs::write(go_on, "").unwrap();
    let task = control_plane.settled(&task_id).await;
    let expected: String = (1..=200_000)
        .chain(1..=1000)
        .map(|n| format!("{n}\n"))
        .collect();
    assert!(
        task.out() == expected,
        "{} of {} bytes",
        task.stdout.len(),
        expected.len()
    );
    assert!(!task.opens.last().unwrap().sealed_offer.is_empty());
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_comes_again_is_answered_not_started() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mark = host.path("ran");
    let (task_id, offer) =
        control_plane.offer_of(script(&format!("echo once >> {}", mark.display())));
    let offer = muster_proto::agent::v1::attach_response::Message::Offer(offer);
    control_plane.send(offer.clone()).await;
    control_plane.settled(&task_id).await;
    control_plane.send(offer).await;
    let task = control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    assert!(!task.opens[1].fresh);
    control_plane.drain().await;
    control_plane.attached(2).await;
    assert_eq!(fs::read_to_string(mark).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_was_taken_and_is_asked_for_again_does_not_pass_for_none() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let (task_id, offer) = control_plane.offer_of(script("echo something"));
    let offer = muster_proto::agent::v1::attach_response::Message::Offer(offer);
    control_plane.send(offer.clone()).await;
    assert_eq!(control_plane.settled(&task_id).await.out(), "something\n");
    control_plane.forget(&task_id);
    control_plane.send(offer).await;
    let task = control_plane
        .task(&task_id, |task| task.ended.is_some())
        .await;
    assert_eq!(task.state(), State::Succeeded);
    control_plane.drain().await;
    control_plane.attached(2).await;
    let task = control_plane.task(&task_id, |_| true).await;
    assert!(!task.output_ended, "{task:?}");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_control_plane_hears_what_became_of_settled_tasks() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let failed = control_plane.offer(script("echo out; exit 3")).await;
    control_plane.settled(&failed).await;
    // Remembered over a restart of the agent.
    host.stop().await.unwrap();
    host.start_agent().await;
    control_plane.attached(2).await;
    let offered = control_plane.offer_of(command(&["true"])).0;
    control_plane.behave(|behaviour| {
        behaviour.upload = true;
        behaviour.expected = vec![failed.clone(), offered.clone()];
    });
    control_plane.cut();
    let recalled = control_plane
        .until("the upload", |seen| seen.recalled.first().cloned())
        .await;
    assert_eq!(recalled.task_id, failed);
    assert!(!recalled.sealed_offer.is_empty() && !recalled.seal.is_empty());
    assert_eq!(recalled.ended.unwrap().exit_code, Some(3));
    assert_eq!((recalled.stdout_bytes, recalled.stderr_bytes), (4, 0));
    assert!(recalled.started.unwrap().pid > 0);
    control_plane
        .until("what was never seen is named", |seen| {
            let named = |message: &attach_request::Message| matches!(message, attach_request::Message::NotHeld(not_held) if not_held.task_ids == [offered.clone()]);
            seen.messages.iter().any(named).then_some(())
        })
        .await;
    host.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_was_cancelled_before_it_came_never_starts() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mark = host.path("ran");
    let (task_id, offer) = control_plane.offer_of(script(&format!("touch {}", mark.display())));
    control_plane.cancel(&task_id, None).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    control_plane
        .send(muster_proto::agent::v1::attach_response::Message::Offer(
            offer,
        ))
        .await;
    let task = control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    assert_eq!(task.state(), State::Cancelled);
    assert!(!mark.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_tasks_are_named_and_late_offers_expire() {
    let control_plane = FakeControlPlane::start().await;
    let (unknown, mut late) = control_plane.offer_of(command(&["true"]));
    control_plane.behave(|behaviour| behaviour.expected = vec![unknown.clone()]);
    let host = Host::start(&control_plane).await;
    control_plane
        .until("not held", |seen| {
            seen.messages.iter().find_map(|message| match message {
                attach_request::Message::NotHeld(not_held) => {
                    (not_held.task_ids == [unknown.clone()]).then_some(())
                }
                _ => None,
            })
        })
        .await;
    use prost::Message as _;
    let mut sealed = muster_proto::agent::v1::SealedOffer::decode(late.sealed_offer).unwrap();
    sealed.not_after = Some((std::time::SystemTime::now() - Duration::from_secs(1)).into());
    late.sealed_offer = sealed.encode_to_vec().into();
    control_plane
        .send(muster_proto::agent::v1::attach_response::Message::Offer(
            late,
        ))
        .await;
    let task = control_plane.settled(&unknown).await;
    assert_eq!(task.state(), State::Expired);
    assert_eq!(task.ended.unwrap().reason(), Reason::StartDeadlinePassed);
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_network_never_holds_up_the_process() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    control_plane.behave(|behaviour| behaviour.reads_nothing = true);
    let mark = host.path("done");
    let text = format!("head -c 50000000 /dev/zero; touch {}", mark.display());
    let task_id = control_plane.offer(script(&text)).await;
    until("all of it is written", || mark.exists()).await;
    // Another task is not held up by it.
    control_plane.behave(|behaviour| behaviour.reads_nothing = false);
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.missing, [0, 0]);
    assert_eq!(task.stdout.len(), 50_000_000);
}
