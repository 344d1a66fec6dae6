//! First trust, and how it goes wrong.

use std::{fs, time::Duration};

use muster_proto::v1::{CreateJoinTokenRequest, JoinKind, host::Presence};
use muster_tests::{PATIENCE, eventually, fleet::Fleet};

#[tokio::test]
async fn a_join_token_lets_one_host_in_with_its_labels() {
    let fleet = Fleet::start().await;
    let operator = fleet.operator();
    let join = operator.join_string("web-1", &[("env", "prod")]).await;
    let first = fleet.agent("first").await;
    assert_eq!(first.join(&fleet, &join).await.code(), 0);
    let host = operator.host("web-1").await;
    assert_eq!(host.labels["env"], "prod");
    assert_eq!(
        host.presence(),
        Presence::Offline,
        "joined, not yet attached"
    );

    let second = fleet.agent("second").await;
    let refused = second.join(&fleet, &join).await;
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("JOIN_TOKEN_USED"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("new one"),
        "no next step: {}",
        refused.stderr
    );
}

#[tokio::test]
async fn an_expired_join_token_says_so() {
    let fleet = Fleet::start().await;
    let request = CreateJoinTokenRequest {
        kind: JoinKind::Host.into(),
        name: "web-1".to_owned(),
        ttl: Some(Duration::from_millis(1).try_into().unwrap()),
        ..CreateJoinTokenRequest::default()
    };
    let made = fleet
        .operator()
        .enrollment()
        .create_join_token(request)
        .await
        .unwrap();
    let host = fleet.agent("web-1").await;
    let refused = host.join(&fleet, &made.into_inner().join_string).await;
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("JOIN_TOKEN_EXPIRED"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_foreign_join_token_or_the_wrong_authority_lets_nobody_in() {
    let (ours, theirs) = tokio::join!(Fleet::start(), Fleet::start());
    let our_join = ours.operator().join_string("web-1", &[]).await;
    let their_join = theirs.operator().join_string("web-1", &[]).await;

    // Their token with our pin: the control plane is the right one and does not know the token.
    let (secret, _) = their_join.split_once('@').unwrap();
    let (_, place) = our_join.split_once('@').unwrap();
    let host = ours.agent("foreign").await;
    let refused = host.join(&ours, &format!("{secret}@{place}")).await;
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("JOIN_TOKEN_INVALID"),
        "{}",
        refused.stderr
    );

    // Their whole join string at our address: the secret is never sent.
    let host = ours.agent("misled").await;
    let refused = host.join(&ours, &their_join).await;
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("is not the control plane"),
        "{}",
        refused.stderr
    );
    assert!(!host.directory().join("agent/cert.pem").exists());

    // Nothing was disturbed.
    let host = ours.agent("web-1").await;
    assert_eq!(host.join(&ours, &our_join).await.code(), 0);
}

#[tokio::test]
async fn a_join_string_comes_by_file_and_standard_input_too() {
    let fleet = Fleet::start().await;
    let operator = fleet.operator();
    let by_stdin = fleet.agent("by-stdin").await;
    let join = operator.join_string("by-stdin", &[]).await;
    let start = fleet
        .agent_program("by-stdin-join")
        .env("MUSTER_DATA_DIR", by_stdin.directory());
    let ended = start
        .args(["join"])
        .stdin(join + "\n")
        .run(&fleet.logs())
        .await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);

    let by_file = fleet.agent("by-file").await;
    let file = fleet.directory().join("join.txt");
    fs::write(&file, operator.join_string("by-file", &[]).await).unwrap();
    let start = fleet
        .agent_program("by-file-join")
        .env("MUSTER_DATA_DIR", by_file.directory());
    let ended = start
        .args(["join".as_ref(), "--join-file".as_ref(), file.as_os_str()])
        .run(&fleet.logs())
        .await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    operator.host("by-stdin").await;
    operator.host("by-file").await;
}

#[tokio::test]
async fn certificates_are_renewed_under_load_without_dropping_the_stream() {
    let fleet = Fleet::plan()
        .set("MUSTER_CERTIFICATE_LIFETIME", "3s")
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let certificate = || fs::read(host.directory().join("agent/cert.pem")).unwrap();
    let mut seen = vec![certificate()];
    let load = async {
        loop {
            let job = operator.run("web-1", "echo still here").await;
            assert_eq!(job.watch().await.stdout(), b"still here\n");
            assert_eq!(operator.host("web-1").await.presence(), Presence::Online);
        }
    };
    let renewals = eventually(PATIENCE, "two renewals", || {
        let now = certificate();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        let renewed = seen.len() > 2;
        async move { renewed.then_some(()) }
    });
    tokio::select! {
        () = load => {}
        () = renewals => {}
    }
    assert_eq!(
        host.log(&fleet).matches("attached").count(),
        1,
        "{}",
        host.log(&fleet)
    );
}

#[tokio::test]
async fn a_host_comes_back_by_its_old_key_after_its_certificate_expired() {
    let fleet = Fleet::plan()
        .set("MUSTER_CERTIFICATE_LIFETIME", "2s")
        .start()
        .await;
    let host = fleet.joined("web-1", &[]).await;
    let id = fleet.operator().host("web-1").await.host_id;
    eventually(PATIENCE, "its certificate expires", || async {
        let refused = host.dial(fleet.address()).await.err()?;
        refused.is_expired().then_some(())
    })
    .await;
    host.start(&fleet);
    let back = fleet.operator().online("web-1").await;
    assert_eq!(back.host_id, id);
}
