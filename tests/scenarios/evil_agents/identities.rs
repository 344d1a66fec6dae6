//! A host speaks for itself alone, whatever it presents, forges or claims to have seen.

use bytes::Bytes;
use muster_client::identity::{Identity, generate_key};
use muster_proto::{
    agent::v1::{
        AttachRequest, KnownTasks, NotHeld, Offer, Open, RecalledTask, RecalledTasks, UploadOpen,
        attach_request, report_request::Message as Up, upload_request, upload_response,
    },
    v1::{OutputStream, Reason, task::State},
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::hello,
    operator::{request, script},
    raw::{Presented, Wire, kind},
};
use prost::Message as _;

use super::{World, chunk, end, ended, is_refused, said, sealed, started};

#[tokio::test]
async fn a_host_speaks_for_nobody_but_itself() {
    let mut world = World::start().await;
    let go = world.fleet.directory().join("go");
    let wait = format!(
        "until [ -e {} ]; do sleep 0.02; done; echo mine",
        go.display()
    );
    let theirs = world.operator.run("good", wait).await;
    let task = theirs.reaches(State::Running).await;
    let (own, offer) = world.offered(request("evil", script("true"))).await;
    let mine = sealed(&offer).task_id;

    let open = |task_id: &str, with: Option<&Offer>, epoch: i64| {
        Up::Open(Open {
            task_id: task_id.to_owned(),
            session_epoch: epoch,
            fresh: with.is_none(),
            sealed_offer: with.map_or_else(Bytes::new, |offer| offer.sealed_offer.clone()),
            seal: with.map_or_else(Bytes::new, |offer| offer.seal.clone()),
        })
    };
    let mut forged = sealed(&offer);
    forged.task_id = task.task_id.clone();
    let forged = Offer {
        sealed_offer: forged.encode_to_vec().into(),
        ..offer.clone()
    };
    let nobody_s = "t-00000000000000000000";
    let epoch = world.epoch();
    for (what, first, expected) in [
        (
            "another's",
            open(&task.task_id, None, epoch),
            Reason::SealInvalid,
        ),
        (
            "another's, by an offer of its own",
            open(&task.task_id, Some(&offer), epoch),
            Reason::SealInvalid,
        ),
        (
            "another's, by a forged offer",
            open(&task.task_id, Some(&forged), epoch),
            Reason::SealInvalid,
        ),
        ("nobody's", open(nobody_s, None, epoch), Reason::SealInvalid),
        (
            "nobody's, by a forged offer",
            open(nobody_s, Some(&forged), epoch),
            Reason::SealInvalid,
        ),
        (
            "no task",
            open("../../etc", None, epoch),
            Reason::ArgumentInvalid,
        ),
        (
            "its own in a session to come",
            open(&mine, None, epoch + 1),
            Reason::SessionSuperseded,
        ),
        (
            "its own in a session of others",
            open(&mine, None, epoch - 1),
            Reason::SessionSuperseded,
        ),
        (
            "its own in no session",
            open(&mine, None, i64::MIN),
            Reason::SessionSuperseded,
        ),
        ("no open at all", started(None), Reason::ArgumentInvalid),
    ] {
        let lie = vec![
            first,
            started(None),
            chunk(1, 0, "lies"),
            said(ended(State::Failed, Some(1))),
            end(1),
        ];
        is_refused(world.report(lie).await, expected, what);
    }

    // Nor does it give away, forget or recall what is another's.
    let not_held = NotHeld {
        task_ids: vec![task.task_id.clone(), nobody_s.to_owned(), "x".repeat(1_000)],
    };
    let message = Some(attach_request::Message::NotHeld(not_held));
    world
        .attached
        .up
        .send(AttachRequest { message })
        .await
        .unwrap();
    let answers = world
        .agent
        .upload(vec![
            upload_request::Message::Open(UploadOpen {
                session_epoch: epoch,
            }),
            upload_request::Message::Known(KnownTasks {
                task_ids: vec![task.task_id.clone(), mine.clone()],
            }),
            upload_request::Message::Recalled(RecalledTasks {
                tasks: vec![RecalledTask {
                    task_id: task.task_id.clone(),
                    sealed_offer: forged.sealed_offer.clone(),
                    seal: forged.seal.clone(),
                    ended: Some(ended(State::Failed, Some(1))),
                    stdout_bytes: i64::MAX,
                    stderr_bytes: i64::MIN,
                    ..RecalledTask::default()
                }],
            }),
        ])
        .await
        .unwrap();
    let upload_response::Message::Wanted(wanted) = &answers[0] else {
        panic!("{answers:?}");
    };
    assert_eq!(wanted.task_ids, [mine.as_str()], "only its own is wanted");
    let upload_response::Message::Taken(taken) = &answers[1] else {
        panic!("{answers:?}");
    };
    assert_eq!(taken.refused_task_ids, [task.task_id.as_str()]);

    let still = theirs.task().await;
    assert_eq!(still.state(), State::Running, "{still:?}");
    std::fs::write(go, "").unwrap();
    theirs.succeeds().await;
    assert_eq!(theirs.output(OutputStream::Stdout).await, b"mine\n");
    // Its own task it may still end.
    let honest = vec![
        world.open(&mine),
        started(None),
        said(ended(State::Succeeded, Some(0))),
        end(0),
    ];
    world.report(honest).await.unwrap();
    own.succeeds().await;
    world.nobody_is_harmed().await;
}

#[tokio::test]
async fn nobody_can_make_the_ledger_look_set_back() {
    let world = World::start().await;
    let away = world.fleet.joined("away", &[]).await;
    let waits = world.operator.run("away", "true").await;
    // The task that waits is from before now, as after a restore.
    world.fleet.stop_control_plane().await;
    world.fleet.start_control_plane().await;
    for (generation, position) in [
        (world.attached.welcome.generation.as_str(), i64::MAX),
        ("another", 1),
    ] {
        let mut lie = hello("boot", "journal");
        lie.seen_generation = generation.to_owned();
        lie.seen_ledger_position = position;
        lie.seen_ledger_seal = vec![7; 32].into();
        let attached = world.agent.attach(lie).await.unwrap();
        let told = attached.welcome;
        assert_eq!(told.generation, world.attached.welcome.generation);
        assert!(!told.upload, "nobody owes anything");
    }
    let shown = world.operator.host("away").await;
    assert_eq!((shown.held_tasks, shown.pending_tasks), (0, 1));
    away.start(&world.fleet);
    waits.succeeds().await;
    world.nobody_is_harmed().await;
}

#[tokio::test]
async fn nobody_is_another_host() {
    let world = World::start().await;
    let (address, directory) = (world.fleet.address(), world.evil.directory().join("agent"));
    let good = world.operator.host("good").await.host_id;
    let own = Identity::load(&directory).unwrap();
    let theirs = world.fleet.directory().join("good/agent");
    let theirs = Identity::load(&theirs).unwrap();

    // A certificate of another's, with a key of its own.
    let presented = Presented::new(theirs.chain().to_vec(), own.key());
    is_shut_out(
        Wire::open(address, Some(presented)).await,
        "another's certificate",
    )
    .await;
    // A certificate that says so, of an authority of its own making.
    let spiffe_id = theirs.spiffe_id().to_string();
    assert!(spiffe_id.ends_with(&good), "{spiffe_id}");
    for (what, name) in [
        ("another authority", spiffe_id),
        ("one like ours", own.spiffe_id().to_string()),
    ] {
        let presented = foreign(&name);
        is_shut_out(Wire::open(address, Some(presented)).await, what).await;
    }
    // Its own certificate does not vouch for another name, either.
    let leaf = own.chain()[0].clone();
    let below = issued_by(&leaf, own.key(), &theirs.spiffe_id().to_string());
    is_shut_out(Wire::open(address, Some(below)).await, "signed by its own").await;
    // The same hands are let in with what is theirs.
    let wire = Wire::open(address, Some(Presented::of(&directory)))
        .await
        .unwrap();
    eventually(PATIENCE, "it is greeted", || async {
        (wire.frames(kind::SETTINGS) > 0).then_some(())
    })
    .await;
    world.nobody_is_harmed().await;
}

/// A certificate of a new authority.
fn foreign(spiffe_id: &str) -> Presented {
    let key = generate_key();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    issued_by(authority.der(), &key, spiffe_id)
}

fn issued_by(
    authority: &rustls::pki_types::CertificateDer<'static>,
    key: &rcgen::KeyPair,
    spiffe_id: &str,
) -> Presented {
    let own = generate_key();
    let mut params = rcgen::CertificateParams::default();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![rcgen::SanType::URI(spiffe_id.try_into().unwrap())];
    let key = rcgen::KeyPair::try_from(key.serialized_der()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(authority, key).unwrap();
    let leaf = params.signed_by(&own, &issuer).unwrap();
    Presented::new(vec![leaf.der().clone(), authority.clone()], &own)
}

/// In TLS 1.3 a client is done before the server has judged it: it finds out as soon as it listens.
async fn is_shut_out(wire: std::io::Result<Wire>, what: &str) {
    let Ok(wire) = wire else { return };
    eventually(PATIENCE, what, || async { wire.is_over().then_some(()) }).await;
    assert_eq!(wire.frames(kind::SETTINGS), 0, "{what} is greeted");
}
