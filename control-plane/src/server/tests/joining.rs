//! Hosts that join, renew and come back, and what a stranger is told.

use super::*;

#[tokio::test]
async fn a_host_joins_renews_and_comes_back_by_its_old_key() {
    let plane = Plane::start_with(|config| {
        config.certificate_lifetime = Duration::from_secs(6);
    })
    .await;
    let joined = plane.host("web-1").await;
    let channel = dial(&joined).await.unwrap();
    let id = joined.host_id().unwrap().to_owned();
    let me = format!("Host/{id}");
    assert_eq!(caller(channel.clone(), None).await.unwrap(), me);
    let in_inventory = plane.inventory.find("web-1").unwrap();
    assert_eq!(in_inventory.id_text, id);
    assert_eq!(in_inventory.labels["env"], "prod");

    // The channel that was open goes on; the next connection has the new certificate.
    let renewed = enrollment::renew(&joined).await.unwrap();
    assert_eq!(renewed.host_id(), joined.host_id());
    assert!(renewed.expires() >= joined.expires());
    assert_eq!(caller(channel, None).await.unwrap(), me);

    let deadline = Instant::now() + Duration::from_secs(60);
    let mut tries = tokio::time::interval(Duration::from_millis(50));
    let error = loop {
        tries.tick().await;
        match dial(&renewed).await {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < deadline, "the certificate never expires"),
        }
    };
    assert!(error.is_expired(), "{error}");
    let back = enrollment::rejoin(&renewed).await.unwrap();
    assert_eq!(back.host_id(), joined.host_id());
    assert_eq!(caller(dial(&back).await.unwrap(), None).await.unwrap(), me);
    let stored = Identity::load(&plane.path("web-1")).unwrap();
    assert_eq!(stored.chain(), back.chain());
    plane.stop().await;
}

#[tokio::test]
async fn a_join_token_is_used_once_and_a_lost_answer_can_be_asked_for_again() {
    let plane = Plane::start().await;
    let join = plane.join_string(host("web-1")).await;
    let first = enrollment::join(&plane.path("one"), &join, "")
        .await
        .unwrap();
    // As if the answer had been lost: the pending key is the one that joined.
    let directory = plane.path("again");
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(
        plane.path("one").join("key.pem"),
        directory.join("key.pending.pem"),
    )
    .unwrap();
    let again = enrollment::join(&directory, &join, "").await.unwrap();
    assert_eq!(again.host_id(), first.host_id());

    let other = enrollment::join(&plane.path("two"), &join, "").await;
    assert_eq!(other.unwrap_err().reason(), Some(Reason::JoinTokenUsed));
    let unknown: JoinString = format!(
        "mst_join_{}@{}#{}",
        "a".repeat(32),
        join.address(),
        data_encoding::HEXLOWER.encode(&join.pin())
    )
    .parse()
    .unwrap();
    let unknown = enrollment::join(&plane.path("three"), &unknown, "").await;
    assert_eq!(
        unknown.unwrap_err().reason(),
        Some(Reason::JoinTokenInvalid)
    );

    let deadline = Instant::now() + Duration::from_secs(20);
    let mut number = 0;
    let expired = loop {
        let mut short = host("");
        short.ttl = Some(prost_types::Duration {
            seconds: 0,
            nanos: 1_000_000,
        });
        let short = plane.join_string(short).await;
        number += 1;
        let (path, name) = (plane.path(&format!("short-{number}")), format!("h{number}"));
        match enrollment::join(&path, &short, &name).await {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < deadline),
        }
    };
    assert_eq!(expired.reason(), Some(Reason::JoinTokenExpired));
    plane.stop().await;
}

#[tokio::test]
async fn a_wrong_pin_or_another_authority_is_noticed_before_anything_is_told() {
    let plane = Plane::start().await;
    let join = plane.join_string(host("web-1")).await;
    let wrong: JoinString = format!("{}@{}#{}", join.token(), join.address(), "00".repeat(32))
        .parse()
        .unwrap();
    let error = enrollment::join(&plane.path("web-1"), &wrong, "").await;
    assert!(matches!(
        error.unwrap_err(),
        enrollment::EnrollmentError::Connect(ConnectError::Untrusted { .. })
    ));
    let stranger = Plane::start().await;
    let mine = plane.host("web-2").await;
    let tls = mine.client_tls().unwrap();
    assert!(matches!(
        connect(stranger.identity.address(), &tls).await,
        Err(ConnectError::Untrusted { .. })
    ));
    // Trusting the stranger does not make it trust us.
    let tls = ClientTls::new(stranger.identity.authorities()).unwrap();
    mine.present_in(&tls).unwrap();
    let refused = connect(stranger.identity.address(), &tls).await;
    assert!(refused.unwrap_err().is_refused());
    stranger.stop().await;
    plane.stop().await;
}

#[tokio::test]
async fn a_locked_host_is_cut_off_within_a_second_and_stays_out() {
    let plane = Plane::start().await;
    let identity = plane.host("web-1").await;
    let id = identity.host_id().unwrap().parse().unwrap();
    // The quickest of a few: a lock has to be durable, and the disk may stall.
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let channel = dial(&identity).await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let mut stream = health
            .watch(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        stream.message().await.unwrap().unwrap();

        let begin = Instant::now();
        let lock = plane.inventory.lock(id, "operator/ada", "stolen");
        lock.await.unwrap();
        assert!(!matches!(stream.message().await, Ok(Some(_))));
        quickest = quickest.min(begin.elapsed());
        let refused = dial(&identity).await.unwrap_err();
        assert!(refused.is_refused() && !refused.is_expired(), "{refused}");
        let rejoin = enrollment::rejoin(&identity).await.unwrap_err();
        assert_eq!(rejoin.reason(), Some(Reason::Locked));
        plane.inventory.unlock(id).await.unwrap();
        dial(&identity).await.unwrap();
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    plane.inventory.remove(id).await.unwrap();
    assert!(dial(&identity).await.unwrap_err().is_refused());
    let rejoin = enrollment::rejoin(&identity).await.unwrap_err();
    assert_eq!(rejoin.reason(), Some(Reason::HostRemoved));
    plane.stop().await;
}
