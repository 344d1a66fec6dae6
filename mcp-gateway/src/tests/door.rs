//! Who is let in.

use http::{Method, StatusCode};
use serde_json::json;

use super::{client::World, eventually};

fn ping() -> serde_json::Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
}

#[tokio::test]
async fn nobody_comes_in_without_a_token() {
    let world = World::start().await;
    for token in [None, Some(""), Some("mst_ai_not-known")] {
        let client = world.modern().with_token(token);
        for method in [Method::POST, Method::GET, Method::DELETE] {
            let answer = client.send(method, &[], ping().to_string()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{token:?}");
            let challenge = answer.headers["www-authenticate"].to_str().unwrap();
            assert!(challenge.starts_with("Bearer"), "{challenge}");
            assert_eq!(
                challenge.contains("invalid_token"),
                token.is_some_and(|token| !token.is_empty())
            );
        }
    }
    let locked = world
        .modern()
        .with_token(Some("mst_ai_locked"))
        .post(&[], &ping())
        .await;
    assert_eq!(locked.status, StatusCode::FORBIDDEN);
    let open = hyper_healthz(&world).await;
    assert_eq!(open, StatusCode::OK);
}

async fn hyper_healthz(world: &World) -> StatusCode {
    use http_body_util::Empty;
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let uri = format!("http://{}/healthz", world.address).parse().unwrap();
    client.get(uri).await.unwrap().status()
}

#[tokio::test]
async fn the_token_goes_no_further_than_the_exchange_which_is_remembered() {
    let world = World::start().await;
    let client = world.modern();
    for _ in 0..3 {
        client.tool("host_list", json!({})).await;
    }
    let state = world.fake.state.lock();
    assert_eq!(state.exchanges, ["mst_ai_one"]);
    assert_eq!(state.calls.len(), 3, "one round trip for each call");
    assert!(
        state
            .calls
            .iter()
            .all(|(bearer, _)| bearer == "Bearer mst_x_one")
    );
}

#[tokio::test]
async fn host_and_origin_are_checked() {
    let world = World::start().await;
    let client = world.legacy().await;
    for (header, value, status) in [
        ("host", "evil.example", StatusCode::FORBIDDEN),
        ("origin", "http://evil.example", StatusCode::FORBIDDEN),
        ("origin", "null", StatusCode::FORBIDDEN),
        ("origin", "http://localhost:6274", StatusCode::OK),
        ("origin", "http://127.0.0.1:3000", StatusCode::OK),
        ("host", "localhost:1", StatusCode::OK),
    ] {
        let answer = client.post(&[(header, value)], &ping()).await;
        assert_eq!(answer.status, status, "{header}: {value}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_session_is_of_no_use_to_somebody_else() {
    let world = World::start().await;
    let mine = world.legacy().await;
    let other = mine.with_token(Some("mst_ai_two"));
    for method in [Method::POST, Method::GET, Method::DELETE] {
        let answer = other.send(method, &[], ping().to_string()).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(mine.post(&[], &ping()).await.status, StatusCode::OK);
    let end = mine.send(Method::DELETE, &[], String::new()).await;
    assert_eq!(end.status, StatusCode::ACCEPTED);
    assert_eq!(mine.post(&[], &ping()).await.status, StatusCode::NOT_FOUND);
    assert!(!mine.session().is_empty());
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let world = World::start().await;
    let mut body = ping();
    body["params"] = json!({"filler": "x".repeat(5 << 20)});
    let answer = world.modern().post(&[], &body).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_said_to_be() {
    let world = World::start().await;
    world.fake.state.lock().down = true;
    let answer = world.modern().post(&[], &ping()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    world.fake.state.lock().down = false;
    let client = world.modern();
    client.tool("host_list", json!({})).await;
    world.fake.state.lock().down = true;
    let (text, is_error) = client
        .text(
            "run",
            json!({"target": "web-1", "command": "true", "wait_s": 1, "key": "k1"}),
        )
        .await;
    assert!(is_error);
    assert!(
        text.starts_with("the control plane cannot be reached; the job may have started\nnext: "),
        "{text}"
    );
    assert!(text.contains("key=k1"), "{text}");
}

#[tokio::test]
async fn stopping_ends_streams_and_lets_go() {
    let world = World::start().await;
    let client = world.legacy().await;
    let call = tokio::spawn(async move {
        client
            .ask(
                "tools/call",
                json!({"name": "run", "arguments": {"target": "web-1", "command": "hang"}}),
                json!({}),
            )
            .await
    });
    let fake = world.fake.clone();
    eventually("the job is watched", || fake.state.lock().watchers == 1).await;
    world.stop.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(8), world.served)
        .await
        .expect("it stops")
        .unwrap();
    call.await.unwrap();
    assert!(fake.state.lock().cancelled.is_empty(), "the job goes on");
}
