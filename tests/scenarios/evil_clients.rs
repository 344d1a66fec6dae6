//! MCP clients that want more than is theirs: refused, bounded, and nobody else is harmed.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use muster_proto::v1::PrincipalKind;
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    mcp::{Answer, Era, McpClient},
    process,
};
use serde_json::{Value, json};

const ISSUER: &str = "https://id.example.org";
const RESOURCE: &str = "https://muster.example.org/mcp";

/// An authorization server, as far as a resource server sees it.
struct Issuer {
    key: EcdsaKeyPair,
}

impl Issuer {
    fn new(jwks: &Path) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = key.public_key().as_ref();
        let keys = json!({"keys": [{
            "kid": "one", "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
            "x": encode(&point[1..33]), "y": encode(&point[33..]),
        }]});
        std::fs::write(jwks, keys.to_string()).unwrap();
        Self { key }
    }

    fn token(&self, change: &[(&str, Value)]) -> String {
        let message = message(
            &json!({"alg": "ES256", "typ": "at+jwt", "kid": "one"}),
            change,
        );
        let random = SystemRandom::new();
        let signature = self.key.sign(&random, message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature))
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + seconds
}

fn message(header: &Value, change: &[(&str, Value)]) -> String {
    let mut claims = json!({
        "iss": ISSUER,
        "aud": RESOURCE,
        "sub": "claude",
        "exp": in_seconds(300),
        "scope": "fleet:read jobs:read jobs:run",
    });
    for (name, value) in change {
        claims[*name] = value.clone();
    }
    format!(
        "{}.{}",
        encode(header.to_string()),
        encode(claims.to_string())
    )
}

async fn with_issuer() -> (Fleet, Issuer, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let jwks = directory.path().join("jwks.json");
    let issuer = Issuer::new(&jwks);
    let fleet = Fleet::plan()
        .set("MUSTER_OAUTH_ISSUER", ISSUER)
        .set("MUSTER_OAUTH_AUDIENCE", RESOURCE)
        .set("MUSTER_OAUTH_JWKS", jwks.display())
        .start_up()
        .await;
    let made = fleet.cli(&["access", "create", "ai/claude"]).await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    (fleet, issuer, directory)
}

fn challenge(answer: &Answer) -> String {
    let challenge = &answer.headers["www-authenticate"];
    challenge.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_access_token_of_the_issuer_counts_as_far_as_its_scopes() {
    let (fleet, issuer, _directory) = with_issuer().await;
    let address = fleet.mcp_address();
    let client = |token: &str| McpClient::new(address, Era::Modern, token);
    let nobody = client("x").without("authorization");
    let refused = nobody.request("tools/list", json!({})).await;
    assert_eq!(refused.status, 401);
    assert!(
        challenge(&refused).contains(
            "resource_metadata=\"https://muster.example.org/.well-known/oauth-protected-resource/mcp\""
        ),
        "{}",
        challenge(&refused)
    );
    for path in ["", "/mcp"] {
        let metadata = get(
            address,
            &format!("/.well-known/oauth-protected-resource{path}"),
        );
        assert_eq!(metadata["resource"], RESOURCE);
        assert_eq!(metadata["authorization_servers"], json!([ISSUER]));
        assert!(
            metadata["scopes_supported"]
                .as_array()
                .unwrap()
                .contains(&json!("jobs:run"))
        );
    }

    let good = client(&issuer.token(&[]));
    let ran = good
        .call("run", json!({"target": "all", "command": "echo by jwt"}))
        .await;
    assert!(ran.text.contains("by jwt"), "{}", ran.text);
    let jobs = fleet.cli(&["job", "list", "--json"]).await;
    assert!(jobs.stdout.contains("ai/claude"), "{}", jobs.stdout);

    let reader = client(&issuer.token(&[("scope", "fleet:read".into())]));
    let listed = reader.call("host_list", json!({})).await;
    assert!(!listed.is_error, "{}", listed.text);
    let call = json!({"name": "run", "arguments": {"target": "all", "command": "true"}});
    let refused = reader.request("tools/call", call).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    let challenge = challenge(&refused);
    assert!(
        challenge.contains("error=\"insufficient_scope\""),
        "{challenge}"
    );
    assert!(
        challenge.contains("scope=\"jobs:read jobs:run\""),
        "{challenge}"
    );

    // A lock of the principal ends that, too.
    let locked = fleet.cli(&["access", "lock", "ai/claude"]).await;
    assert_eq!(locked.code(), 0, "{}", locked.stderr);
    let refused = good
        .request("tools/call", json!({"name": "host_list", "arguments": {}}))
        .await;
    assert!(
        refused.status == 403 || refused.tool().is_error,
        "{}",
        refused.body
    );
}

#[tokio::test]
async fn a_token_that_is_not_quite_right_is_wrong() {
    let (fleet, issuer, directory) = with_issuer().await;
    let stranger = Issuer::new(&directory.path().join("other.json"));
    let unsigned = message(&json!({"alg": "none", "kid": "one"}), &[]);
    let good = issuer.token(&[]);
    let mut forged = good.clone();
    let last = if forged.pop() == Some('A') { 'Q' } else { 'A' };
    forged.push(last);
    for (what, token) in [
        (
            "another audience",
            issuer.token(&[("aud", "https://other.example.org".into())]),
        ),
        (
            "another issuer",
            issuer.token(&[("iss", "https://evil.example.org".into())]),
        ),
        (
            "expired",
            issuer.token(&[("exp", in_seconds(-3_600).into())]),
        ),
        ("unsigned", format!("{unsigned}.")),
        ("another's key", stranger.token(&[])),
        ("forged", forged),
        (
            "a principal that nobody made",
            issuer.token(&[("sub", "mallory".into())]),
        ),
        (
            "a principal of another kind",
            issuer.token(&[("sub", "../operator/root".into())]),
        ),
        ("an exchanged token", "mst_x_AAAA".to_owned()),
        ("our token with dots", format!("{}.a.b", fleet.mcp_token())),
    ] {
        let client = McpClient::new(fleet.mcp_address(), Era::Modern, &token);
        let refused = client.request("tools/list", json!({})).await;
        assert_eq!(refused.status, 401, "{what}: {}", refused.body);
        assert!(challenge(&refused).contains("invalid_token"), "{what}");
    }
    // Nor does a token count in an address, where logs and histories would have it.
    let status = status_of(fleet.mcp_address(), &format!("/mcp?access_token={good}"));
    assert_eq!(status, 401);
}

#[tokio::test]
async fn what_is_another_s_stays_so_and_a_flood_harms_nobody() {
    let fleet = Fleet::plan().start_up().await;
    let address = fleet.mcp_address();
    let operator = fleet.operator();
    let mallory = operator.bearer_token(PrincipalKind::Ai, "mallory").await;
    let mine = McpClient::new(address, Era::Legacy, &fleet.mcp_token())
        .connect()
        .await;
    let ran = mine
        .call("run", json!({"target": "all", "command": "seq 3000"}))
        .await;
    assert!(!ran.is_error, "{}", ran.text);
    // Another's session, whoever it was that let it be known.
    let session = mine.session().unwrap();
    let thief = McpClient::new(address, Era::Legacy, &mallory).header("mcp-session-id", session);
    assert_eq!(thief.request("tools/list", json!({})).await.status, 404);

    // Slow ones, large ones, and thousands of sessions of one principal.
    let slow: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"POST /mcp HTTP/1.1\r\nHost: ").unwrap();
            stream
        })
        .collect();
    let huge = format!(
        "GET /mcp HTTP/1.1\r\nHost: localhost\r\nX-Filler: {}\r\n\r\n",
        "x".repeat(8 << 20)
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Whether it is read to its end or cut off, it is not served.
    let _ = stream.write_all(huge.as_bytes());
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(read == 0 || answer.contains(" 4"), "{answer}");
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"filler": "x".repeat(5 << 20)}});
    assert_eq!(mine.post(body, &[]).await.status, 413);
    let before = process::peak_memory(fleet.control_plane_pid()).unwrap();
    let flood = McpClient::new(address, Era::Legacy, &mallory);
    for _ in 0..20 {
        let many = (0..100).map(|_| {
            let flood = flood.clone();
            async move {
                let hello = json!({
                    "protocolVersion": "2025-11-25",
                    "capabilities": {},
                    "clientInfo": {"name": "mallory", "version": "1"},
                });
                flood.request("initialize", hello).await.status
            }
        });
        futures_util::future::join_all(many).await;
    }
    let after = process::peak_memory(fleet.control_plane_pid()).unwrap();
    let grown = after.saturating_sub(before);
    assert!(grown < 200 << 20, "{before} to {after} bytes");
    // Whoever came before goes on, and so does whoever comes now.
    eventually(PATIENCE, "the first one is served", || async {
        let listed = mine.call("host_list", json!({})).await;
        (!listed.is_error).then_some(())
    })
    .await;
    let fresh = McpClient::new(address, Era::Modern, &fleet.mcp_token());
    let served = tokio::time::timeout(Duration::from_secs(10), fresh.call("host_list", json!({})));
    assert!(!served.await.expect("in time").is_error);
    drop(slow);
}

fn get(address: SocketAddr, path: &str) -> Value {
    let text = plain(address, path);
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{text}"))
}

fn status_of(address: SocketAddr, path: &str) -> u16 {
    let text = plain(address, path);
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

fn plain(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
