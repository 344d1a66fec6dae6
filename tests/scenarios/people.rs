//! What a person sees who types commands.

use std::time::Duration;

use muster_client::Client;
use muster_tests::{PATIENCE, fleet::Fleet};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn a_command_behaves_as_if_it_ran_here() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let script = "echo out; echo err >&2; exit 7";
    let ended = fleet.cli(&["run", "web-1", "--", "sh", "-c", script]).await;
    assert_eq!(ended.code(), 7, "{}", ended.stderr);
    assert_eq!(ended.stdout, "out\n", "one host needs no prefix");
    assert!(ended.stderr.contains("err\n"), "{}", ended.stderr);

    let ended = fleet.cli(&["run", "web-1", "--", "no-such-program"]).await;
    assert_ne!(ended.code(), 0);
    assert!(ended.stderr.contains("no-such-program"), "{}", ended.stderr);
}

#[tokio::test]
async fn several_hosts_are_told_apart() {
    let (fleet, _one) = Fleet::with_host("web-1").await;
    let _two = fleet.host("web-2").await;
    let ended = fleet.cli(&["run", "all", "--", "echo", "hello"]).await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 2, "{}", ended.stdout);
    for (line, name) in lines.iter().zip(["web-1", "web-2"]) {
        assert!(line.contains(name) && line.ends_with("hello"), "{line}");
    }
    let ended = fleet.cli(&["run", "all", "--", "sh", "-c", "exit 4"]).await;
    assert_eq!(ended.code(), 1, "some task failed: {}", ended.stderr);
}

#[tokio::test]
async fn every_command_speaks_json() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let hosts = json(&fleet.cli(&["host", "list", "--json"]).await.stdout);
    assert_eq!(hosts["hosts"][0]["name"], "web-1");
    assert_eq!(hosts["hosts"][0]["presence"], "online");
    fleet.cli(&["run", "web-1", "--", "echo", "hello"]).await;
    let jobs = json(&fleet.cli(&["job", "list", "--json"]).await.stdout);
    let job_id = jobs["jobs"][0]["job_id"].as_str().unwrap();
    let output = fleet.cli(&["job", "output", job_id]).await;
    assert_eq!(output.stdout, "hello\n", "{}", output.stderr);

    let refused = fleet.cli(&["host", "get", "no-such-host", "--json"]).await;
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("HOST_NOT_FOUND"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_mistake_gets_one_line_and_a_next_step() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    for (args, words) in [
        (
            &["run", "no-such-host", "--", "true"][..],
            &["no-such-host", "muster host list"][..],
        ),
        (&["run", "env in (prod", "--", "true"], &["env in (prod"]),
        (&["run", "env=nowhere", "--", "true"], &["NO_HOST_MATCHES"]),
        (
            &["job", "get", "j-00000000000000000000"],
            &["muster job list"],
        ),
    ] {
        let ended = fleet.cli(args).await;
        assert!(ended.code() > 0, "{args:?}");
        assert!(ended.stdout.is_empty(), "{}", ended.stdout);
        for word in words {
            assert!(
                ended.stderr.contains(word),
                "{args:?}: no {word:?} in {}",
                ended.stderr
            );
        }
        assert!(ended.stderr.lines().count() <= 4, "{}", ended.stderr);
    }
    let usage = fleet.cli(&["run"]).await;
    assert_eq!(usage.code(), 64, "{}", usage.stderr);
}

#[tokio::test]
async fn one_client_watches_more_than_a_connection_takes() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let job = fleet.operator().run("web-1", "exec sleep 600").await;
    let directory = fleet.data_dir().join("operator");
    let client = Client::from_directory(&directory).await.unwrap();
    // A connection takes 200 streams; what finds no room on it must not wait without a word.
    let mut watches = Vec::new();
    for number in 0..210 {
        let mut watch = client.watch(&job.job_id, "");
        let first = tokio::time::timeout(PATIENCE, watch.next()).await;
        first
            .unwrap_or_else(|_| panic!("watch {number} waits"))
            .unwrap()
            .unwrap();
        watches.push(watch);
    }
    job.cancel(Duration::from_secs(5)).await;
    for mut watch in watches {
        while let Some(update) = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap() {
            update.unwrap();
        }
    }
}
