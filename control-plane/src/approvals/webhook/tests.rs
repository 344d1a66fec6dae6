use std::os::unix::fs::PermissionsExt as _;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::model::approval::tests::approval;

const LIMIT: Duration = Duration::from_secs(20);

fn about() -> About {
    About {
        action: Some(Kind::Command),
        program: "systemctl".into(),
        mode: "edit",
        hosts: (0..30).map(|n| format!("web-{n}").into()).collect(),
    }
}

/// A webhook at this address, signed with "hush".
fn opened(address: std::net::SocketAddr) -> (Webhook, Sender) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "hush\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let config = WebhookConfig {
        approval_webhook: Some(format!("http://{address}/hook?x=1").parse().unwrap()),
        approval_webhook_secret_file: Some(path),
        approval_webhook_ca: None,
    };
    let (webhook, sender) = Webhook::open(&config).unwrap();
    (webhook, sender.unwrap())
}

/// Takes one request and answers it; returns its head and body.
async fn take(listener: &TcpListener, answer: &str) -> (String, Vec<u8>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.unwrap();
        bytes.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ").map(str::to_owned));
        if body.len() >= length.unwrap().parse::<usize>().unwrap() {
            let (head, body) = (head.to_owned(), body.as_bytes().to_vec());
            stream.write_all(answer.as_bytes()).await.unwrap();
            return (head, body);
        }
    }
}

#[tokio::test]
async fn a_notice_comes_signed_and_again_after_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (webhook, sender) = opened(listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let running = tokio::spawn(sender.run(stop.clone()));
    webhook.tell(Notice::awaited(&approval(2), about()));
    let story = async {
        let failed = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let (_, first) = take(&listener, failed).await;
        let (head, body) = take(&listener, "HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(first, body, "the same notice");
        (head, body)
    };
    let (head, body) = tokio::time::timeout(LIMIT, story).await.unwrap();
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1"), "{head}");
    let signed = head
        .lines()
        .find_map(|line| line.strip_prefix("muster-signature: "))
        .unwrap();
    let seconds = signed.split(['=', ',']).nth(1).unwrap().parse().unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"hush");
    assert_eq!(signed, signature(&key, seconds, &body));
    let other = hmac::Key::new(hmac::HMAC_SHA256, b"other");
    assert_ne!(signed, signature(&other, seconds, &body));

    let notice: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(notice["event"], "approval.awaited");
    assert_eq!(
        (&notice["action"], &notice["program"]),
        (&"command".into(), &"systemctl".into())
    );
    assert_eq!(notice["host_count"], 30);
    assert_eq!(notice["hosts"].as_array().unwrap().len(), NAMES_MAX);
    assert_eq!(
        (&notice["approved"], &notice["count"]),
        (&0.into(), &2.into())
    );
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_hook_that_answers_nothing_holds_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (webhook, sender) = opened(listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let running = tokio::spawn(sender.run(stop.clone()));
    let start = Instant::now();
    for _ in 0..QUEUE * 4 {
        webhook.tell(Notice::decided(&approval(1)));
    }
    assert!(start.elapsed() < TRY_LIMIT, "telling never waits");
    stop.cancel();
    tokio::time::timeout(LIMIT, running).await.unwrap().unwrap();
}

#[test]
fn a_hook_is_https_or_on_this_machine() {
    for good in [
        "https://chat.example/hooks/1",
        "http://127.0.0.1:9/x",
        "http://[::1]:9/",
        "http://localhost/",
    ] {
        address(good).unwrap();
    }
    for bad in [
        "http://chat.example/",
        "http://10.0.0.1/",
        "ftp://localhost/",
        "localhost",
        "https://ada:secret@chat.example/",
        "http://127.0.0.1.example/",
    ] {
        assert!(address(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_secret_that_others_can_read_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "hush").unwrap();
    let config = WebhookConfig {
        approval_webhook_secret_file: Some(path.clone()),
        ..WebhookConfig::default()
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = secret(&config).unwrap_err().to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(secret(&config).unwrap(), "hush");
    fs::write(&path, " \n").unwrap();
    assert!(secret(&config).is_err());
}
