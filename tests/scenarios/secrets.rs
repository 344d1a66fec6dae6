//! What must stay private: files of a running fleet, and the secrets that it was given.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::v1::PrincipalKind;
use muster_tests::{
    collector::Collector,
    fleet::Fleet,
    mcp::{Era, McpClient},
    process,
};
use serde_json::{Value, json};

/// Everything below a directory.
fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            below(&path, found);
        }
        found.push(path);
    }
}

#[tokio::test]
async fn nobody_else_can_read_what_is_on_disk() {
    let fleet = Fleet::plan().start_up().await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    operator.run("web-1", "seq 1000").await.succeeds().await;
    let tmp = fleet.directory().join("home/scratch.token");
    let tmp = tmp.to_str().unwrap();
    for arguments in [
        &["token", "create", "ai", "claude", "--output", tmp][..],
        &["authority", "begin"],
        &["authority", "rollback"],
        &["control-plane", "backup"],
    ] {
        let ended = fleet.cli(arguments).await;
        assert_eq!(ended.code(), 0, "{arguments:?}: {}", ended.stderr);
    }
    let mut found = vec![tmp.into()];
    below(&fleet.data_dir(), &mut found);
    below(host.directory(), &mut found);
    let mut open = Vec::new();
    for path in &found {
        // What has ended meanwhile is no matter.
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        let kind = metadata.file_type();
        if kind.is_symlink() {
            continue;
        }
        let most = match kind.is_dir() {
            true => 0o700,
            false if kind.is_socket() => 0o700,
            false => 0o600,
        };
        let mode = metadata.mode() & 0o7777;
        if mode & !most != 0 {
            open.push(format!("{mode:o} {}", path.display()));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    assert!(open.is_empty(), "open to others:\n{}", open.join("\n"));
}

#[tokio::test]
async fn no_secret_is_in_an_argument_a_log_or_a_trace() {
    let collector = Collector::start().await;
    let fleet = Fleet::plan()
        .set("MUSTER_LOG", "debug")
        .set("MUSTER_OTLP_ENDPOINT", collector.endpoint())
        .set_agents("MUSTER_LOG", "debug")
        .start_up()
        .await;
    // Every command line that there ever is, as far as it can be caught.
    let mark = fleet.mark().to_owned();
    let watching = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            seen.extend(
                process::marked(&mark)
                    .into_iter()
                    .map(|(_, command)| command),
            );
            if seen.contains("") && seen.len() > 10_000 {
                return seen;
            }
            if STOP.load(std::sync::atomic::Ordering::Relaxed) {
                return seen;
            }
        }
    });
    let mut secrets = vec![fleet.mcp_token()];
    let operator = fleet.operator();

    let join = operator.join_string("web-1", &[]).await;
    secrets.push(token_of(&join));
    let host = fleet.agent("web-1").await;
    assert_eq!(host.join(&fleet, &join).await.code(), 0);
    host.start(&fleet);
    operator.online("web-1").await;

    let invited = fleet.cli(&["access", "invite", "ada", "--json"]).await;
    let invited: Value = serde_json::from_str(&invited.stdout).unwrap();
    let invitation = invited["join_string"].as_str().unwrap();
    secrets.push(token_of(invitation));
    let login = fleet
        .muster(&["login", "--json"])
        .env("MUSTER_DATA_DIR", fleet.directory().join("ada"))
        .env("MUSTER_LOG", "debug")
        .env("MUSTER_JOIN", invitation)
        .run(&fleet.logs())
        .await;
    assert_eq!(login.code(), 0, "{}", login.stderr);

    let bearer = operator
        .bearer_token(PrincipalKind::Automation, "nightly")
        .await;
    let listed = fleet
        .muster(&["host", "list"])
        .env("MUSTER_LOG", "debug")
        .env("MUSTER_TOKEN", &bearer)
        .run(&fleet.logs())
        .await;
    assert_eq!(listed.code(), 0, "{}", listed.stderr);
    secrets.push(bearer);

    for era in [Era::Legacy, Era::Modern] {
        let client = McpClient::new(fleet.mcp_address(), era, &fleet.mcp_token());
        let ran = client
            .connect()
            .await
            .call("run", json!({"target": "web-1", "command": "echo hello"}))
            .await;
        assert!(ran.text.contains("hello"), "{}", ran.text);
    }
    // A wrong token is one of somebody else, perhaps.
    let wrong = "mst_ai_abcdefghijklmnopqrstuvwxyz234567";
    let stranger = McpClient::new(fleet.mcp_address(), Era::Modern, wrong);
    assert_eq!(stranger.request("tools/list", json!({})).await.status, 401);
    secrets.push(wrong.to_owned());
    // The control plane's own, and what the certificates hang on.
    let mut keys = Vec::new();
    below(&fleet.data_dir(), &mut keys);
    for key in keys
        .iter()
        .filter(|path| path.ends_with("key.pem") || path.ends_with("ca.key"))
    {
        let text = fs::read_to_string(key).unwrap();
        secrets.push(text.lines().nth(1).unwrap().to_owned());
    }
    assert!(secrets.len() >= 8, "{}", secrets.len());

    host.stop().await;
    assert_eq!(fleet.stop_control_plane().await.code(), 0);
    STOP.store(true, std::sync::atomic::Ordering::Relaxed);
    let commands = watching.await.unwrap();
    // A process that lives long was seen: whoever looks does see. One that is as short as `login` may be missed.
    assert!(
        commands.iter().any(|command| command.contains("supervise")),
        "{commands:?}"
    );
    let spans = format!("{:?}", collector.spans());
    assert!(spans.contains("RunJob"));
    let mut logs = Vec::new();
    below(&fleet.logs(), &mut logs);
    for secret in &secrets {
        let told = |text: &str| text.contains(secret);
        assert!(
            !commands.iter().any(|command| told(command)),
            "in an argument"
        );
        assert!(!told(&spans), "in a trace");
        for log in logs
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
        {
            let text = fs::read_to_string(log).unwrap_or_default();
            assert!(!told(&text), "in {}", log.display());
        }
    }
    assert!(fleet.log().contains("DEBUG"), "debug was on");
}

static STOP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// The secret part of a join string.
fn token_of(join: &str) -> String {
    join.split_once('@').unwrap().0.to_owned()
}
