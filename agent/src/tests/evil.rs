//! A control plane in the wrong hands, with its own certificate: it asks for more than the host permits, says what
//! makes no sense, and sends too much. The host does no more than it would have, and others are not harmed.

use std::{fs, time::Duration};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{
        Ack, HostPolicy, Offer, Resume, SealedOffer, Settled, attach_response, report_response,
    },
    v1::{Confinement, Mode, Network, Reason, task::State},
};
use prost::Message as _;

use super::{FakeControlPlane, Host, Process, command, fake_control_plane::Seen, script};

/// Memory that an attack may cost the agent, bytes.
const MEMORY: u64 = 48 << 20;

/// Offers for other hosts, one after the other.
const FLOOD: usize = 300;

fn asking(mode: i32) -> Confinement {
    Confinement {
        mode,
        ..Confinement::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_cannot_raise_a_mode() {
    let control_plane = FakeControlPlane::start().await;
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let policy = format!(
        "mode = \"edit\"\n[edit]\nroots = [{:?}]\n[network]\naccess = \"none\"",
        root.path()
    );
    let host = Host::start_with(&control_plane, &policy).await;
    let file = elsewhere.path().join("written");
    let text = format!("echo x > {0}; ls {0}", file.display());
    for limit in [Mode::Unrestricted, Mode::Unspecified] {
        let raise = HostPolicy {
            mode_limit: limit.into(),
        };
        control_plane
            .send(attach_response::Message::Policy(raise))
            .await;
        let everything = Confinement {
            roots: vec!["/".to_owned()],
            ..Confinement::default()
        };
        let outside = Confinement {
            roots: vec![elsewhere.path().display().to_string()],
            ..asking(Mode::Edit.into())
        };
        let upwards = Confinement {
            roots: vec![format!("{}/..", root.path().display())],
            ..Confinement::default()
        };
        let network = Confinement {
            network: Some(Network {
                access: 2,
                allow: Vec::new(),
            }),
            ..Confinement::default()
        };
        let nonsense = Confinement {
            network: Some(Network {
                access: 77,
                allow: vec!["x".repeat(10_000)],
            }),
            ..Confinement::default()
        };
        let asked = [
            (asking(Mode::Unrestricted.into()), Reason::ModeTooHigh),
            (asking(99), Reason::ModeUnenforceable),
            (asking(-1), Reason::ModeUnenforceable),
            (everything, Reason::PathDenied),
            (outside, Reason::PathDenied),
            (upwards, Reason::PathDenied),
            (network, Reason::ModeTooHigh),
            (nonsense, Reason::NetworkUnenforceable),
        ];
        for (confinement, reason) in asked {
            let task_id = control_plane.offer_with(script(&text), confinement).await;
            let task = control_plane.settled(&task_id).await;
            assert_eq!(task.state(), State::Rejected);
            let ended = task.ended.unwrap();
            assert_eq!(ended.reason(), reason, "{}", ended.message);
        }
        // What asks for nothing gets what the host permits, which is not that either.
        let task_id = control_plane.offer(script(&text)).await;
        let task = control_plane.settled(&task_id).await;
        assert_eq!(task.out(), "");
        assert!(!file.exists());
    }
    // A limit of a later version can only be obeyed by doing nothing.
    let later = HostPolicy { mode_limit: 99 };
    control_plane
        .send(attach_response::Message::Policy(later))
        .await;
    let task_id = control_plane.offer(command(&["true"])).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.ended.unwrap().reason(), Reason::ModeDisabled);
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_was_taken_is_never_run_again() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let runs = host.path("runs");
    let (task_id, offer) =
        control_plane.offer_of(script(&format!("echo ran >> {}", runs.display())));
    control_plane
        .send(attach_response::Message::Offer(offer.clone()))
        .await;
    control_plane.settled(&task_id).await;
    // Again at once, with another seal, after a restart, and with another action below the same id.
    let (_, mut other) =
        control_plane.offer_of(script(&format!("echo other >> {}", runs.display())));
    let mut sealed = SealedOffer::decode(other.sealed_offer.clone()).unwrap();
    sealed.task_id = task_id.clone();
    other.sealed_offer = sealed.encode_to_vec().into();
    let resealed = Offer {
        seal: Bytes::from_static(b"another"),
        ..offer.clone()
    };
    for again in [offer.clone(), resealed, other.clone()] {
        control_plane
            .send(attach_response::Message::Offer(again))
            .await;
    }
    host.start_agent().await;
    control_plane.attached(2).await;
    for again in [offer, other] {
        control_plane
            .send(attach_response::Message::Offer(again))
            .await;
    }
    let last = control_plane.offer(command(&["true"])).await;
    control_plane.settled(&last).await;
    assert_eq!(fs::read_to_string(&runs).unwrap(), "ran\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_for_another_host_is_refused() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let file = host.path("written");
    let (task_id, mut offer) =
        control_plane.offer_of(script(&format!("echo x > {}", file.display())));
    let mut sealed = SealedOffer::decode(offer.sealed_offer.clone()).unwrap();
    sealed.host_id = "h-11111111111111111111".to_owned();
    offer.sealed_offer = sealed.encode_to_vec().into();
    control_plane
        .send(attach_response::Message::Offer(offer))
        .await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Rejected);
    assert_eq!(task.ended.unwrap().reason(), Reason::SealInvalid);
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_acknowledgements_harm_nobody_but_their_task() {
    let control_plane = FakeControlPlane::start().await;
    control_plane.behave(|behaviour| behaviour.acknowledges = false);
    let host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let text = format!(
        "seq 1 1000; while [ ! -e {} ]; do sleep 0.01; done; seq 1001 2000",
        go_on.display()
    );
    let forged = control_plane.offer(script(&text)).await;
    let other = control_plane.offer(script(&text)).await;
    for task_id in [&forged, &other] {
        control_plane
            .task(task_id, |task| task.stdout.len() > 3000)
            .await;
    }
    for sequence in [i64::MAX, i64::MAX - 1, i64::MIN, -1, 1 << 40] {
        let ack = report_response::Message::Ack(Ack { sequence });
        control_plane.say(&forged, ack).await;
        let resume = report_response::Message::Resume(Resume {
            after_sequence: sequence,
        });
        control_plane.say(&forged, resume).await;
    }
    let settled = report_response::Message::Settled(Settled {});
    control_plane.say(&forged, settled).await;
    fs::write(&go_on, "").unwrap();
    let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
    let task = control_plane.settled(&other).await;
    assert_eq!(task.out(), expected);
    let last = control_plane.offer(command(&["true"])).await;
    let task = control_plane.settled(&last).await;
    assert_eq!(task.state(), State::Succeeded);
}

fn peak_memory(agent: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

/// What a task comes to that is offered until it is answered: under load a session may end in between.
async fn still_works(control_plane: &FakeControlPlane) -> State {
    let (task_id, offer) = control_plane.offer_of(command(&["true"]));
    loop {
        let again = attach_response::Message::Offer(offer.clone());
        control_plane.offer_again(again).await;
        let answered = control_plane.settled(&task_id);
        if let Ok(task) = tokio::time::timeout(Duration::from_secs(3), answered).await {
            return task.state();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_and_malformed_frames_cost_little_and_change_nothing() {
    let control_plane = FakeControlPlane::start().await;
    let directory = tempfile::tempdir().unwrap();
    control_plane.enroll(&directory.path().join("agent"));
    let agent = Process::start(directory.path());
    control_plane.attached(1).await;
    let first = control_plane.offer(command(&["true"])).await;
    control_plane.settled(&first).await;
    let before = peak_memory(&agent);

    let raw = |bytes: Vec<u8>| Offer {
        sealed_offer: bytes.into(),
        ..Offer::default()
    };
    let named = |task_id: String| {
        raw(SealedOffer {
            task_id,
            ..SealedOffer::default()
        }
        .encode_to_vec())
    };
    let malformed = [
        Offer::default(),
        raw(vec![0xff; 1000]),
        raw(vec![b'x'; 3 << 20]),
        named("t-".to_owned()),
        named("../../etc/passwd".to_owned()),
        named("x".repeat(1 << 20)),
    ];
    for offer in malformed {
        control_plane
            .send(attach_response::Message::Offer(offer))
            .await;
    }
    // Many that each want something: none is more than a line in the journal.
    for number in 0..FLOOD {
        let (_, mut offer) = control_plane.offer_of(command(&["true"]));
        let mut sealed = SealedOffer::decode(offer.sealed_offer.clone()).unwrap();
        sealed.host_id = format!("h-{number}");
        offer.sealed_offer = sealed.encode_to_vec().into();
        control_plane
            .send(attach_response::Message::Offer(offer))
            .await;
    }
    let settled = |seen: &Seen| seen.tasks.values().filter(|task| task.settled).count();
    control_plane
        .until("an answer to each", |seen| {
            (settled(seen) > FLOOD).then_some(())
        })
        .await;
    assert_eq!(still_works(&control_plane).await, State::Succeeded);
    // Longer than any message may be: the stream breaks, and the agent comes back.
    let giant = attach_response::Message::Offer(raw(vec![b'x'; 64 << 20]));
    control_plane.send(giant).await;
    control_plane.attached(2).await;
    assert_eq!(still_works(&control_plane).await, State::Succeeded);
    let grown = peak_memory(&agent).saturating_sub(before);
    assert!(grown < MEMORY, "the agent grew by {grown} bytes");
}
