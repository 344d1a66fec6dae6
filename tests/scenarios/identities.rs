//! Hosts that are not who they seem.

use std::time::{Duration, SystemTime};

use muster_proto::{
    agent::v1::{Heartbeat, attach_request, attach_response},
    v1::{Reason, host::Presence, task::State},
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::{FakeAgent, hello},
    fleet::Fleet,
    operator::reason,
};

#[tokio::test]
async fn two_agents_with_one_identity_are_both_set_aside_and_nothing_is_lost() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let go = fleet.directory().join("go");
    let text = format!("until [ -e {} ]; do sleep 0.02; done", go.display());
    let job = operator.run("web-1", text).await;
    job.reaches(State::Running).await;

    // A copy of the host's disk, started on another machine.
    let double = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let refused = double
        .attach(hello("another-boot", "another-journal"))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::IdentityConflict);
    eventually(PATIENCE, "the conflict shows", || async {
        let host = operator.host("web-1").await;
        let aside = host.presence() != Presence::Online;
        (!host.identity_conflict.is_empty() && aside).then_some(())
    })
    .await;
    assert_eq!(job.task().await.state(), State::Running, "nothing is lost");

    // An operator decides; the host that is left comes back.
    let unlock = muster_proto::v1::UnlockHostRequest {
        host: "web-1".to_owned(),
    };
    operator.hosts().unlock_host(unlock).await.unwrap();
    operator.online("web-1").await;
    std::fs::write(go, "").unwrap();
    job.succeeds().await;
}

#[tokio::test]
async fn the_newest_attach_wins_and_the_older_one_is_told() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    let older = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let mut first = older.attach(hello("boot", "journal")).await.unwrap();
    let newer = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let second = newer.attach(hello("boot", "journal")).await.unwrap();
    assert!(second.welcome.session_epoch > first.welcome.session_epoch);
    let told = eventually(PATIENCE, "the older session ends", || {
        let next = first.next();
        let waiting = tokio::time::timeout(PATIENCE, next);
        let told = futures_util::FutureExt::now_or_never(waiting);
        async move { told.and_then(|next| next.unwrap().err()) }
    })
    .await;
    assert_eq!(reason(&told), Reason::SessionSuperseded);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_seen_and_harms_nothing() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    let agent = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
    let ahead = || Some((SystemTime::now() + Duration::from_secs(3600)).into());
    let mut greeting = hello("boot", "journal");
    greeting.time = ahead();
    let mut attached = agent.attach(greeting).await.unwrap();
    let heartbeat = Heartbeat {
        journal_position: 0,
        time: ahead(),
    };
    let message = Some(attach_request::Message::Heartbeat(heartbeat));
    attached
        .up
        .send(muster_proto::agent::v1::AttachRequest { message })
        .await
        .unwrap();

    let operator = fleet.operator();
    let host = eventually(PATIENCE, "the offset shows", || async {
        let host = operator.host("web-1").await;
        host.clock_offset
            .is_some_and(|offset| offset.seconds > 3500)
            .then_some(host)
    })
    .await;
    assert_eq!(host.presence(), Presence::Online);
    // Deadlines are the control plane's: the offer says until when by its clock.
    operator.run("web-1", "true").await;
    let offer = loop {
        match attached.next().await.unwrap().unwrap() {
            attach_response::Message::Offer(offer) => break offer,
            _ => continue,
        }
    };
    let sealed: muster_proto::agent::v1::SealedOffer =
        prost::Message::decode(&offer.sealed_offer[..]).unwrap();
    let not_after = SystemTime::try_from(sealed.not_after.unwrap()).unwrap();
    let left = not_after.duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(600), "{left:?}");
}
