//! Hosts that are hostile to their control plane: refused with the reason, bounded, and nobody else is harmed.
//!
//! "evil" has a certificate of its own and says what it likes. "good" has a real agent, and goes on all the while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use muster_client::{
    audit::{ReceiptSigner, sha256},
    identity::{Identity, generate_key},
};
use muster_proto::{
    agent::v1::{
        AttachRequest, Chunk, Gap, Kept, KnownTasks, NotHeld, Offer, Open, OutputEnd, RecalledTask,
        RecalledTasks, ReportRequest, SealedOffer, TaskState, UploadOpen, attach_request,
        attach_response,
        report_request::Message as Up,
        report_response::Message as Down,
        task_state::{Ended, Event, Started},
        upload_request, upload_response,
    },
    v1::{
        Confinement, CreateJobRequest, EnrollRequest, Facts, Mode, OutputStream, PrincipalKind,
        ReadOutputRequest, Reason, Receipt, SignedReceipt, Task, enroll_request, task::State,
    },
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::{Attached, FakeAgent, hello},
    fleet::{Agent, Fleet},
    operator::{Operator, Seen, Watched, reason, request, script},
    process,
    raw::{self, Presented, Wire, kind},
};
use prost::Message as _;
use tonic::{Code, Status};

/// A job of an innocent host is done within this while another host does its worst, on few cores and without
/// optimizations. Who was locked out would wait for ever.
const SOON: Duration = Duration::from_secs(6);

/// A fleet of two.
struct World {
    fleet: Fleet,
    operator: Operator,
    _good: Arc<Agent>,
    evil: Arc<Agent>,
    agent: FakeAgent,
    attached: Attached,
}

impl World {
    async fn start() -> Self {
        Self::of(Fleet::start().await).await
    }

    async fn of(fleet: Fleet) -> Self {
        let good = fleet.host("good").await;
        let evil = fleet.joined("evil", &[]).await;
        let agent = FakeAgent::new(evil.dial(fleet.address()).await.unwrap());
        let attached = agent.attach(hello("boot", "journal")).await.unwrap();
        Self {
            operator: fleet.operator(),
            _good: good,
            fleet,
            evil,
            agent,
            attached,
        }
    }

    fn epoch(&self) -> i64 {
        self.attached.welcome.session_epoch
    }

    /// The most memory that the control plane has had so far, bytes.
    fn memory(&self) -> u64 {
        process::peak_memory(self.fleet.control_plane_pid()).unwrap()
    }

    /// The control plane's memory has grown by less than so many MiB.
    #[track_caller]
    fn took_less_than(&self, mebibytes: u64, before: u64) {
        let grown = self.memory().saturating_sub(before) >> 10;
        eprintln!("the control plane had {before} bytes, and {grown} KiB more");
        assert!(grown < mebibytes << 10, "{grown} KiB more");
    }

    /// A job for the hostile host, and what it is offered.
    async fn offered(&mut self, request: CreateJobRequest) -> (Watched, Offer) {
        let job = self.operator.create(request).await.unwrap();
        let offer = async {
            loop {
                match self.attached.next().await.unwrap().expect("it is attached") {
                    attach_response::Message::Offer(offer) => return offer,
                    _ => continue,
                }
            }
        };
        let offer = tokio::time::timeout(PATIENCE, offer).await.unwrap();
        (job, offer)
    }

    /// A report of a task of this session, opened as a new one.
    fn open(&self, task_id: &str) -> Up {
        Up::Open(Open {
            task_id: task_id.to_owned(),
            session_epoch: self.epoch(),
            fresh: true,
            ..Open::default()
        })
    }

    /// Says this, and hears until the report is settled or refused.
    async fn report(&self, messages: Vec<Up>) -> Result<(), Status> {
        let mut messages = messages.into_iter().map(|message| ReportRequest {
            message: Some(message),
        });
        let (up, mut down) = self.agent.open_report(messages.next().unwrap()).await?;
        let hearing = async {
            loop {
                match down.message().await {
                    Ok(Some(answer)) if matches!(answer.message, Some(Down::Settled(_))) => {
                        return Ok(());
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(Status::unknown("it ended without a word")),
                    Err(status) => return Err(status),
                }
            }
        };
        let saying = async {
            for message in messages {
                // Refused, nobody listens any more.
                let _ = up.send(message).await;
            }
            std::future::pending::<()>().await;
        };
        let talk = async {
            tokio::select! {
                heard = hearing => heard,
                () = saying => unreachable!("it never ends"),
            }
        };
        let talked = tokio::time::timeout(PATIENCE, talk).await;
        talked.expect("the report is settled or refused")
    }

    /// Others are served, and soon.
    async fn nobody_is_harmed(&self) {
        let since = Instant::now();
        for _ in 0..3 {
            self.operator.run("good", "true").await.succeeds().await;
        }
        let each = since.elapsed() / 3;
        assert!(each < SOON, "{each:?} a job");
    }

    /// Waits until something that speaks against a task is shown.
    async fn doubted(&self, job: &Watched) -> Task {
        eventually(PATIENCE, "the doubt shows", || async {
            let task = job.task().await;
            (!task.doubt.is_empty()).then_some(task)
        })
        .await
    }
}

fn started(confinement: Option<Confinement>) -> Up {
    Up::State(TaskState {
        journal_position: 1,
        event: Some(Event::Started(Started {
            time: Some(std::time::SystemTime::now().into()),
            pid: 7,
            confinement,
        })),
    })
}

fn ended(state: State, code: Option<i32>) -> Ended {
    Ended {
        state: state.into(),
        exit_code: code,
        run_time: Some(prost_types::Duration::default()),
        time: Some(std::time::SystemTime::now().into()),
        ..Ended::default()
    }
}

fn said(ended: Ended) -> Up {
    Up::State(TaskState {
        journal_position: 2,
        event: Some(Event::Ended(ended)),
    })
}

fn end(last_sequence: i64) -> Up {
    Up::OutputEnd(OutputEnd { last_sequence })
}

fn chunk(sequence: i64, offset: i64, data: impl Into<Bytes>) -> Up {
    Up::Chunk(Chunk {
        sequence,
        stream: OutputStream::Stdout.into(),
        offset,
        data: data.into(),
    })
}

fn gap(sequence: i64, offset: i64, length: i64) -> Up {
    Up::Gap(Gap {
        sequence,
        stream: OutputStream::Stdout.into(),
        offset,
        length,
        cause: "none of your business".to_owned(),
    })
}

fn sealed(offer: &Offer) -> SealedOffer {
    SealedOffer::decode(offer.sealed_offer.clone()).unwrap()
}

fn is_refused(outcome: Result<(), Status>, expected: Reason, what: &str) {
    let status = outcome.expect_err(what);
    assert_eq!(reason(&status), expected, "{what}: {status:?}");
}

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
    // What is its own, it may still end.
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
    // So that what waits is from before, as after a restore.
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

#[tokio::test]
async fn numbers_that_cannot_be_are_refused_and_what_overlaps_changes_nothing() {
    let mut world = World::start().await;
    let (job, offer) = world.offered(request("evil", script("true"))).await;
    let task = sealed(&offer).task_id;
    let unknown_stream = Up::Chunk(Chunk {
        sequence: 1,
        stream: 99,
        offset: 0,
        data: "x".into(),
    });
    for (what, message) in [
        ("a sequence ahead", chunk(2, 0, "x")),
        ("far ahead", chunk(i64::MAX, 0, "x")),
        ("none", chunk(0, 0, "x")),
        ("before any", chunk(-1, 0, "x")),
        ("the lowest", chunk(i64::MIN, 0, "x")),
        ("an offset ahead", chunk(1, 5, "x")),
        ("the farthest", chunk(1, i64::MAX, "x")),
        ("a negative one", chunk(1, -1, "x")),
        ("the lowest offset", chunk(1, i64::MIN, "x")),
        ("too much at once", chunk(1, 0, vec![7; (256 << 10) + 1])),
        ("of no stream", unknown_stream),
        ("a gap of less than nothing", gap(1, 0, -1)),
        ("of everything", gap(1, 0, i64::MAX)),
        ("ahead", gap(i64::MAX, i64::MAX, 1)),
        ("an end that was not reached", end(i64::MAX)),
        (
            "all that ever was, kept elsewhere",
            Up::Kept(Kept {
                stdout_offset: i64::MAX,
                stderr_offset: i64::MIN,
                pty_offset: -1,
            }),
        ),
        ("a second open", world.open(&task)),
    ] {
        let lie = vec![world.open(&task), started(None), message];
        is_refused(world.report(lie).await, Reason::ArgumentInvalid, what);
    }
    // Times and positions from elsewhere are taken as what they can be at most.
    let absurd = |seconds| prost_types::Timestamp { seconds, nanos: -1 };
    let mut lie = vec![world.open(&task)];
    for (position, seconds) in [
        (i64::MIN, i64::MIN),
        (i64::MAX, i64::MAX),
        (-1, -62_135_596_801),
    ] {
        lie.push(Up::State(TaskState {
            journal_position: position,
            event: Some(Event::Started(Started {
                time: Some(absurd(seconds)),
                pid: -7,
                confinement: None,
            })),
        }));
    }
    for state in [
        State::Running,
        State::Pending,
        State::AwaitingApproval,
        State::Unspecified,
    ] {
        lie.push(said(ended(state, Some(0))));
    }
    // It ran, so it was neither refused nor too late.
    lie.extend([
        said(ended(State::Rejected, None)),
        said(ended(State::Expired, None)),
    ]);
    // What was said stands, however often and differently it is said again.
    lie.extend([
        chunk(1, 0, "abc"),
        chunk(1, 0, "xyz"),
        chunk(1, 2, "z"),
        chunk(2, 1, "bcd"),
        chunk(3, 0, "abcd"),
    ]);
    lie.extend([end(-5), end(0)]);
    // Nothing comes after the end.
    lie.extend([chunk(4, 4, "more"), gap(4, 4, 1 << 40)]);
    lie.extend([
        said(ended(State::Succeeded, Some(0))),
        said(ended(State::Failed, Some(1))),
    ]);
    world.report(lie).await.unwrap();
    let done = job.succeeds().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"abcd");
    let size = done.output_size.unwrap();
    assert_eq!((size.stdout_bytes, size.dropped_bytes), (4, 0));

    // A second end, in a report of its own, is heard and changes nothing.
    for back in [started(None), said(ended(State::Failed, Some(1)))] {
        let again = vec![world.open(&task), back];
        world.report(again).await.unwrap();
    }
    let again = vec![world.open(&task), end(9)];
    is_refused(
        world.report(again).await,
        Reason::ArgumentInvalid,
        "a later end",
    );
    let again = job.task().await;
    assert_eq!(
        (again.state(), again.exit_code),
        (State::Succeeded, Some(0))
    );
    world.nobody_is_harmed().await;
}

#[tokio::test]
async fn what_was_confined_less_than_asked_is_told_beside_the_task() {
    let mut world = World::start().await;
    let applied = |mode: Mode| Confinement {
        mode: mode.into(),
        ..Confinement::default()
    };
    for (asked, applied, words) in [
        (
            Mode::ReadOnly,
            Some(applied(Mode::Unrestricted)),
            "read-only was asked for, and the host says unrestricted",
        ),
        (
            Mode::ReadOnly,
            Some(applied(Mode::Edit)),
            "read-only was asked for, and the host says edit",
        ),
        (Mode::Edit, None, "does not say how the task is confined"),
        (Mode::Edit, Some(applied(Mode::ReadOnly)), ""),
        (Mode::Unrestricted, Some(applied(Mode::Unrestricted)), ""),
    ] {
        let mut request = request("evil", script("true"));
        request.mode = asked.into();
        let (job, offer) = world.offered(request).await;
        let task = sealed(&offer).task_id;
        let honest = vec![
            world.open(&task),
            started(applied.clone()),
            said(ended(State::Succeeded, Some(0))),
            end(0),
        ];
        world.report(honest).await.unwrap();
        let task = job.succeeds().await;
        assert_eq!(task.confinement, applied);
        assert!(task.doubt.contains(words), "{}", task.doubt);
        assert_eq!(task.doubt.is_empty(), words.is_empty(), "{}", task.doubt);
        let shown = world.fleet.cli(&["job", "get", &task.job_id]).await;
        assert_eq!(
            shown.stdout.contains("in doubt: "),
            !words.is_empty(),
            "{}",
            shown.stdout
        );
        let method = "task.doubt";
        let log = world
            .fleet
            .cli(&["audit", "list", "--method", method, "--json"])
            .await;
        assert_eq!(
            log.stdout.contains(&task.task_id),
            !words.is_empty(),
            "{}",
            log.stdout
        );
    }
    // What was told is kept.
    let job = world.operator.run("good", "true").await;
    let before = job.succeeds().await.confinement;
    assert_eq!(before.clone().unwrap().mode(), Mode::Unrestricted);
    world.fleet.stop_control_plane().await;
    world.fleet.start_control_plane().await;
    assert_eq!(job.task().await.confinement, before);
}

#[tokio::test]
async fn a_receipt_that_does_not_verify_is_kept_and_marked_and_holds_nothing_up() {
    let mut world = World::start().await;
    let signer = |host: &str| {
        let directory = world.fleet.directory().join(host).join("agent");
        ReceiptSigner::of(&Identity::load(&directory).unwrap()).unwrap()
    };
    let (own, theirs) = (signer("evil"), signer("good"));
    let host_id = world.operator.host("evil").await.host_id;
    type Change = fn(&mut Receipt);
    let cases: [(&str, Change); 10] = [
        ("", |_| {}),
        ("its task", |receipt| receipt.task_id = "t-1".to_owned()),
        ("its job", |receipt| receipt.job_id.clear()),
        ("its host", |receipt| receipt.host_id = "h-1".to_owned()),
        ("its offer", |receipt| {
            receipt.offer_digest = sha256(b"something else")
        }),
        ("its state", |receipt| receipt.set_state(State::Failed)),
        ("its exit code", |receipt| receipt.exit_code = Some(1)),
        ("its signal", |receipt| {
            receipt.signal = "SIGKILL".to_owned()
        }),
        ("its output", |receipt| {
            receipt.output_digest = sha256(b"something else")
        }),
        ("its confinement", |receipt| {
            let applied = Confinement {
                mode: Mode::Edit.into(),
                ..Confinement::default()
            };
            receipt.confinement = applied.encode_to_vec().into();
        }),
    ];
    type Sign<'a> = Box<dyn Fn(&Receipt) -> Bytes + 'a>;
    let mut signed: Vec<(&str, Sign<'_>)> = Vec::new();
    for (words, change) in cases {
        let own = &own;
        signed.push((
            words,
            Box::new(move |receipt| {
                let mut receipt = receipt.clone();
                change(&mut receipt);
                own.sign(&receipt).unwrap().encode_to_vec().into()
            }),
        ));
    }
    signed.push((
        "host/",
        Box::new(|receipt| written(theirs.sign(receipt).unwrap())),
    ));
    signed.push((
        "the signature is not the certificate's",
        Box::new(|receipt| {
            let mut signed = own.sign(receipt).unwrap();
            signed.certificate_chain = theirs.sign(receipt).unwrap().certificate_chain;
            written(signed)
        }),
    ));
    signed.push((
        "there is no certificate",
        Box::new(|receipt| {
            let mut signed = own.sign(receipt).unwrap();
            signed.certificate_chain.clear();
            written(signed)
        }),
    ));
    signed.push((
        "it cannot be read",
        Box::new(|_| Bytes::from_static(b"\xff\xff")),
    ));
    signed.push(("was not kept", Box::new(|_| vec![7; 1 << 20].into())));

    for (words, sign) in signed {
        let (job, offer) = world.offered(request("evil", script("true"))).await;
        let told = sealed(&offer);
        let mut last = ended(State::Succeeded, Some(0));
        let receipt = Receipt {
            task_id: told.task_id.clone(),
            job_id: told.job_id.clone(),
            host_id: host_id.clone(),
            offer_digest: sha256(&offer.sealed_offer),
            state: last.state,
            exit_code: last.exit_code,
            end_time: last.time,
            run_time: last.run_time,
            output_digest: output_digest(b"hi\n"),
            ..Receipt::default()
        };
        last.receipt = sign(&receipt);
        let kept = last.receipt.clone();
        let all = vec![
            world.open(&told.task_id),
            started(None),
            chunk(1, 0, "hi\n"),
            said(last),
            end(1),
        ];
        world.report(all).await.unwrap();
        job.succeeds().await;
        if words.is_empty() {
            assert_eq!(job.task().await.doubt, "", "an honest one");
            continue;
        }
        let task = world.doubted(&job).await;
        assert!(task.doubt.contains(words), "{words}: {}", task.doubt);
        let shown = world
            .fleet
            .cli(&["job", "receipt", &task.task_id, "--json"])
            .await;
        if kept.len() < 16_000 && words != "it cannot be read" {
            assert!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
        }
        let log = world
            .fleet
            .cli(&["audit", "list", "--method", "task.doubt", "--json"])
            .await;
        assert!(log.stdout.contains(&task.task_id), "{}", log.stdout);
    }
    // A real one verifies, and the mark stays over a restart.
    let job = world.operator.run("good", "echo hi").await;
    assert_eq!(job.succeeds().await.doubt, "");
    world.nobody_is_harmed().await;
}

fn written(signed: SignedReceipt) -> Bytes {
    signed.encode_to_vec().into()
}

fn output_digest(stdout: &[u8]) -> Bytes {
    let mut digest = muster_client::audit::OutputDigest::default();
    digest.add(0, stdout);
    Bytes::copy_from_slice(&digest.digest().unwrap())
}

#[tokio::test]
async fn frames_that_are_none_end_their_connection_and_nothing_else() {
    let mut world = World::start().await;
    let before = world.memory();
    let directory = world.evil.directory().join("agent");
    let presented = || Some(Presented::of(&directory));
    let address = world.fleet.address();
    // No TLS at all.
    for rubbish in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 65_536],
        b"\x16\x03\x01\xff\xff",
    ] {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        // It may be closed meanwhile.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, rubbish).await;
    }
    // No HTTP/2, or not for long.
    let large = raw::frame(kind::DATA, 0, 1, &vec![7; 1 << 20]);
    let mut endless = raw::frame(
        kind::HEADERS,
        0,
        1,
        &raw::call("/muster.agent.v1.AgentService/Report"),
    );
    for _ in 0..2_000 {
        endless.extend(raw::frame(
            kind::CONTINUATION,
            0,
            1,
            &[0x00, 0x01, b'a', 0x01, b'b'].repeat(200),
        ));
    }
    for (what, bytes) in [
        ("rubbish", vec![0x55; 100_000]),
        ("a frame beyond its limit", large),
        ("data of no stream", raw::frame(kind::DATA, 0, 9, b"x")),
        (
            "headers that are none",
            raw::frame(kind::HEADERS, raw::END_HEADERS, 1, &[0xff; 100]),
        ),
        (
            "an even stream",
            raw::frame(kind::HEADERS, raw::END_HEADERS, 2, &raw::call("/x")),
        ),
        ("headers without end", endless),
    ] {
        let mut wire = Wire::open(address, presented()).await.unwrap();
        let _ = wire.write(&bytes).await;
        eventually(PATIENCE, what, || async { wire.is_over().then_some(()) }).await;
    }
    // Messages that are none, and one that is too long.
    let (_, offer) = world.offered(request("evil", script("true"))).await;
    let task = sealed(&offer).task_id;
    let lie = vec![world.open(&task), chunk(1, 0, vec![7; 8 << 20])];
    let status = world.report(lie).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let mut wire = Wire::open(address, presented()).await.unwrap();
    let path = "/muster.agent.v1.AgentService/Attach";
    for stream in 0..50 {
        let stream = 2 * stream + 1;
        let flags = raw::END_HEADERS;
        wire.frame(kind::HEADERS, flags, stream, &raw::call(path))
            .await
            .unwrap();
        wire.frame(
            kind::DATA,
            1,
            stream,
            b"\x00\x00\x00\x00\x04\xff\xff\xff\xff",
        )
        .await
        .unwrap();
    }
    eventually(PATIENCE, "each is answered", || async {
        (wire.frames(kind::HEADERS) >= 50).then_some(())
    })
    .await;
    world.took_less_than(100, before);
    world.nobody_is_harmed().await;
}

#[tokio::test]
async fn thousands_of_streams_and_connections_take_little_memory() {
    let world = World::start().await;
    let directory = world.evil.directory().join("agent");
    let presented = || Some(Presented::of(&directory));
    let address = world.fleet.address();
    world.nobody_is_harmed().await;
    let before = world.memory();

    // 10,000 streams on one connection: no more of them are served than is said.
    let mut wire = Wire::open(address, presented()).await.unwrap();
    let call = raw::call("/muster.agent.v1.AgentService/Report");
    for stream in 0..10_000_u32 {
        let opened = wire
            .frame(kind::HEADERS, raw::END_HEADERS, 2 * stream + 1, &call)
            .await;
        if opened.is_err() || wire.is_over() {
            break;
        }
    }
    eventually(PATIENCE, "the surplus is refused", || async {
        let refused = wire.frames(kind::RST_STREAM);
        (refused > 500 || wire.frames(kind::GOAWAY) > 0 || wire.is_over()).then_some(())
    })
    .await;
    world.nobody_is_harmed().await;

    // Long messages, begun on every stream and never ended.
    let mut wires = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::open(address, presented()).await.unwrap();
        let mut begun = 4_000_000_u32.to_be_bytes().to_vec();
        begun.insert(0, 0);
        begun.resize(16_000, 7);
        for stream in 0..190 {
            let stream = 2 * stream + 1;
            let _ = wire
                .frame(kind::HEADERS, raw::END_HEADERS, stream, &call)
                .await;
            let _ = wire.frame(kind::DATA, 0, stream, &begun).await;
        }
        // As much as the windows of streams let through.
        for _ in 0..60 {
            for stream in 0..190 {
                let _ = wire.frame(kind::DATA, 0, 2 * stream + 1, &begun).await;
            }
        }
        wires.push(wire);
    }
    world.nobody_is_harmed().await;
    world.took_less_than(150, before);
    drop((wire, wires));

    // Many connections of one host: the oldest give way.
    let shaking = (0..200).map(|_| Wire::open(address, presented()));
    let wires: Vec<Wire> = join_all(shaking).await.into_iter().flatten().collect();
    eventually(PATIENCE, "all but a few are closed", || async {
        let open = wires.iter().filter(|wire| !wire.is_over()).count();
        (open <= 64).then_some(())
    })
    .await;
    world.nobody_is_harmed().await;
    world.took_less_than(150, before);
}

#[tokio::test]
async fn slow_ones_keep_nobody_out() {
    // So few that they can all be taken.
    let fleet = Fleet::plan()
        .set("MUSTER_MAX_CONNECTIONS", 200)
        .start()
        .await;
    let world = World::of(fleet).await;
    let address = world.fleet.address();
    let before = world.memory();
    let mut silent = Vec::new();
    // Those who say nothing, or begin a handshake and do not end it.
    for number in 0..400_u32 {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        if number.is_multiple_of(2) {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut socket, b"\x16\x03\x01\x02\x00\x01").await;
        }
        silent.push(socket);
    }
    world.nobody_is_harmed().await;
    // A script that has no certificate either, but a token: it watches while they come.
    let token = world
        .operator
        .bearer_token(PrincipalKind::Automation, "script");
    let script = world.fleet.bearer(&token.await);
    let go = world.fleet.directory().join("go");
    let wait = format!("until [ -e '{}' ]; do sleep 0.05; done", go.display());
    let job = script.run("good", wait).await;
    // Strangers who shake hands and say nothing more, and who say it letter by letter.
    let mut strangers = Vec::new();
    let flood = async {
        for number in 0..300_u32 {
            let Ok(mut wire) = Wire::shake(address, None).await else {
                continue;
            };
            if number.is_multiple_of(2) {
                let _ = wire.write(b"PRI * HT").await;
            }
            strangers.push(wire);
        }
        std::fs::write(&go, "").unwrap();
    };
    let mut seen = Seen::default();
    let (whole, ()) = tokio::join!(job.watch_once(&mut seen), flood);
    assert!(whole, "the watch was not cut");
    // A host that comes now is let in, and so is whoever joins.
    let since = Instant::now();
    let late = world.fleet.host("late").await;
    world.operator.run("late", "true").await.succeeds().await;
    assert!(
        since.elapsed() < Duration::from_secs(15),
        "{:?}",
        since.elapsed()
    );
    world.nobody_is_harmed().await;
    // They are not waited for without limit.
    let limit = PATIENCE;
    eventually(limit, "whoever does not begin is let go", || async {
        strangers.iter().all(Wire::is_over).then_some(())
    })
    .await;
    // Headers that come letter by letter, on a connection that is known.
    let mut wire = Wire::open(
        address,
        Some(Presented::of(&world.evil.directory().join("agent"))),
    )
    .await
    .unwrap();
    for byte in raw::frame(kind::HEADERS, raw::END_HEADERS, 1, &raw::call("/x"))
        .iter()
        .take(30)
    {
        wire.write(&[*byte]).await.unwrap();
    }
    world.nobody_is_harmed().await;
    world.took_less_than(150, before);
    drop((silent, late));
}

#[tokio::test]
async fn floods_of_one_host_stay_its_own() {
    let world = World::start().await;
    world.nobody_is_harmed().await;
    let before = world.memory();

    // Facts of absurd size, which change all the time.
    let facts = |number: usize| Facts {
        os: format!("{number}-{}", "x".repeat(500_000)),
        addresses: vec!["y".repeat(1_000); 1_000],
        ..Facts::default()
    };
    let flood = async {
        for number in 0..400 {
            let message = Some(attach_request::Message::Facts(facts(number)));
            if world
                .attached
                .up
                .send(AttachRequest { message })
                .await
                .is_err()
            {
                return;
            }
        }
    };
    // It is read at the pace of an agent: the flood waits, and nobody else does.
    let (_, ()) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(10), flood),
        world.nobody_is_harmed()
    );
    let shown = world.operator.host("evil").await.facts.unwrap();
    assert!(
        shown.os.len() <= 256 && shown.addresses.len() <= 64,
        "{}",
        shown.os.len()
    );
    assert!(shown.addresses.iter().all(|address| address.len() <= 256));

    // Hellos without end: each ends the session before it, and soon no more are heard.
    let hellos = (0..300).map(|_| world.agent.attach(hello("boot", "journal")));
    let outcomes = join_all(hellos).await;
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let too_often = |status: &&Status| status.message().contains("too often");
    let refused = refused.filter(too_often).count();
    assert!(refused >= 200, "{refused} of 300 were refused");
    world.nobody_is_harmed().await;

    // Strangers who try tokens.
    let nobody = world.fleet.nobody();
    let tries = (0..2_000).map(|number| {
        let mut enrollment = nobody.enrollment();
        async move {
            let request = EnrollRequest {
                csr: vec![7; 500].into(),
                proof: Some(enroll_request::Proof::JoinToken(format!("{number}"))),
                ..EnrollRequest::default()
            };
            enrollment.enroll(request).await.unwrap_err()
        }
    });
    for status in join_all(tries).await {
        assert_ne!(status.code(), Code::Internal, "{status:?}");
    }
    let long = EnrollRequest {
        csr: vec![7; 1 << 20].into(),
        ..EnrollRequest::default()
    };
    let status = nobody.enrollment().enroll(long).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    world.nobody_is_harmed().await;
    world.took_less_than(150, before);
}

#[tokio::test]
async fn a_host_that_does_not_listen_holds_nobody_up() {
    let world = World::start().await;
    let before = world.memory();
    // Offers that nobody reads: they wait as tasks.
    let jobs = (0..400).map(|_| {
        world
            .operator
            .create(request("evil", script("x".repeat(20_000))))
    });
    for job in join_all(jobs).await {
        job.unwrap();
    }
    world.nobody_is_harmed().await;
    world.took_less_than(100, before);
}

#[tokio::test]
async fn output_beyond_the_limit_is_not_kept() {
    let fleet = Fleet::plan().set("MUSTER_OUTPUT_OF_TASK", 1).start().await;
    let mut world = World::of(fleet).await;
    let before = world.memory();
    let (job, offer) = world.offered(request("evil", script("true"))).await;
    let task = sealed(&offer).task_id;
    const CHUNK: i64 = 128 << 10;
    const CHUNKS: i64 = 512;
    let mut flood = vec![world.open(&task), started(None)];
    let data = Bytes::from(vec![b'x'; CHUNK as usize]);
    flood.extend((0..CHUNKS).map(|number| chunk(number + 1, number * CHUNK, data.clone())));
    // The same, over and over: it takes neither room nor what its principal may use.
    flood.extend((0..CHUNKS).map(|_| chunk(1, 0, data.clone())));
    flood.extend([said(ended(State::Succeeded, Some(0))), end(CHUNKS)]);
    let (reported, ()) = tokio::join!(world.report(flood), world.nobody_is_harmed());
    reported.unwrap();
    job.succeeds().await;
    eventually(PATIENCE, "the middle is dropped", || async {
        let request = ReadOutputRequest {
            task_id: task.clone(),
            max_bytes: 1,
            ..ReadOutputRequest::default()
        };
        let read = world.operator.jobs().read_output(request).await.unwrap();
        let size = read.into_inner().task.unwrap().output_size.unwrap();
        assert_eq!(size.stdout_bytes, CHUNK * CHUNKS);
        let kept = size.stdout_bytes - size.dropped_bytes;
        (1..=2 << 20).contains(&kept).then_some(())
    })
    .await;
    world.took_less_than(150, before);
}

#[tokio::test]
async fn a_receipt_that_was_kept_is_checked_without_a_control_plane() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let stranger = Fleet::start().await;
    let job = fleet.operator().run("web-1", "echo hi").await;
    let task = job.succeeds().await;
    let at = |name: &str| fleet.directory().join(name).display().to_string();
    let kept = at("kept.receipt");
    let task_id = &task.task_id;
    let saved = fleet
        .cli(&["job", "receipt", task_id, "--verify", "--save", &kept])
        .await;
    assert_eq!(saved.code(), 0, "{}", saved.stderr);
    assert!(saved.stdout.contains("unrestricted"), "{}", saved.stdout);
    let ca = fleet
        .data_dir()
        .join("operator/ca.pem")
        .display()
        .to_string();
    let other_ca = stranger
        .data_dir()
        .join("operator/ca.pem")
        .display()
        .to_string();
    fleet.stop_control_plane().await;

    let verify = async |file: &str, ca: &str| {
        let args = ["job", "receipt", "verify", file, "--ca", ca, "--json"];
        // Of a machine that knows nothing of the fleet.
        let elsewhere = fleet.muster(&args).env("MUSTER_DATA_DIR", at("elsewhere"));
        elsewhere.run(&fleet.logs()).await
    };
    let verified = verify(&kept, &ca).await;
    assert_eq!(verified.code(), 0, "{}", verified.stderr);
    let told: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(told["task_id"], task_id.as_str());
    assert_eq!(told["verified"], true);
    assert_eq!(told["confinement"]["mode"], "unrestricted");

    let signed = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        told["signed_receipt"].as_str().unwrap(),
    )
    .unwrap();
    let (plain, changed, rubbish) = (at("plain"), at("changed"), at("rubbish"));
    std::fs::write(&plain, &signed).unwrap();
    let mut lie = SignedReceipt::decode(&signed[..]).unwrap();
    let mut receipt = Receipt::decode(lie.receipt.clone()).unwrap();
    receipt.exit_code = Some(1);
    lie.receipt = receipt.encode_to_vec().into();
    std::fs::write(&changed, lie.encode_to_vec()).unwrap();
    std::fs::write(&rubbish, "{}").unwrap();
    assert_eq!(verify(&plain, &ca).await.code(), 0);
    for (file, ca, words) in [
        (&changed, &ca, "the signature is not the certificate's"),
        (&kept, &other_ca, "none of these authorities vouches for it"),
        (&rubbish, &ca, "it holds no receipt"),
    ] {
        let refused = verify(file, ca).await;
        assert_eq!(refused.code(), 1, "{file}: {}", refused.stdout);
        assert!(refused.stderr.contains(words), "{file}: {}", refused.stderr);
    }
}
