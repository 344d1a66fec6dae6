//! Floods of frames, streams, connections and messages: they stay the host's own, and take little memory.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use muster_proto::{
    agent::v1::{AttachRequest, attach_request},
    v1::{EnrollRequest, Facts, PrincipalKind, enroll_request},
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::hello,
    fleet::Fleet,
    operator::{Seen, request, script},
    raw::{self, Presented, Wire, kind},
};
use tonic::{Code, Status};

use super::{World, chunk, sealed};

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
    // Few places, so that the crowd below can take them all.
    let fleet = Fleet::plan()
        .set("MUSTER_MAX_CONNECTIONS", 200)
        .start()
        .await;
    let world = World::of(fleet).await;
    let address = world.fleet.address();
    let before = world.memory();
    let mut silent = Vec::new();
    // Sockets that say nothing, or begin a handshake and do not end it.
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
