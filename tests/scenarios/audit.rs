//! The audit log: what is in it, and that nobody changes it unseen.

use std::{fs, process::Command};

use muster_proto::v1::PrincipalKind;
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Agent, Fleet},
    operator::{request, script},
};

/// The log as it is written down, in a new file.
async fn export(fleet: &Fleet, name: &str) -> String {
    let path = fleet.directory().join(name).display().to_string();
    let exported = fleet.cli(&["audit", "export", "--output", &path]).await;
    assert_eq!(exported.code(), 0, "{}", exported.stderr);
    path
}

/// Entries of this method that name all of these.
fn entries(path: &str, method: &str, words: &[&str]) -> usize {
    let method = format!("\"method\":\"{method}\"");
    let text = fs::read_to_string(path).unwrap();
    let of_method = text.lines().filter(|line| line.contains(&method));
    of_method
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .count()
}

async fn heads(agent: &Agent) -> String {
    let path = agent.directory().join("agent").join("audit-heads.jsonl");
    eventually(PATIENCE, "the host was given a head", async || {
        path.exists().then_some(())
    })
    .await;
    path.display().to_string()
}

#[tokio::test]
async fn a_job_that_only_the_intake_had_is_in_the_log_once() {
    let fleet = Fleet::start().await;
    let _host = fleet.host("web-1").await;
    fleet.kill_control_plane();
    fleet
        .start_control_plane_with(&[("MUSTER_FAILPOINT", "committed")])
        .await;
    fleet.operator().online("web-1").await;
    let wanted = request("web-1", script("true"));
    let operator = fleet.operator();
    let asking = tokio::spawn({
        let (operator, wanted) = (operator.clone(), wanted.clone());
        async move { operator.create(wanted).await }
    });
    fleet.held_at("committed").await;
    fleet.kill_control_plane();
    assert!(asking.await.unwrap().is_err());

    fleet.start_control_plane().await;
    let job = operator.create(wanted).await.unwrap();
    let task = job.succeeds().await;
    let path = export(&fleet, "log").await;
    let made = format!("\"job\":\"{}\"", task.job_id);
    let create = "muster.v1.JobService/CreateJob";
    let said = [&made, &task.host_id, "admin-does-all"];
    assert_eq!(entries(&path, create, &said), 1);
    let ended = format!("\"task\":\"{}\"", task.task_id);
    assert_eq!(entries(&path, "task.end", &[&ended, "succeeded"]), 1);
    assert_eq!(entries(&path, "audit.begin", &[]), 1);
    assert_eq!(fleet.cli(&["audit", "verify", &path]).await.code(), 0);
}

#[tokio::test]
async fn who_was_refused_is_told_and_what_looks_secret_is_not() {
    let fleet = Fleet::start().await;
    let _host = fleet.host("web-1").await;
    let token = fleet
        .operator()
        .bearer_token(PrincipalKind::Ai, "claude")
        .await;
    let mut hosts = fleet.bearer(&token).hosts();
    let lock = muster_proto::v1::LockHostRequest {
        host: "web-1".into(),
        note: "mine".into(),
    };
    assert!(hosts.lock_host(lock).await.is_err());
    assert!(
        fleet
            .nobody()
            .hosts()
            .list_hosts(muster_proto::v1::ListHostsRequest::default())
            .await
            .is_err()
    );
    let mut action = script("printf %s \"$API_TOKEN\"");
    if let Some(muster_proto::v1::action::Kind::Command(command)) = &mut action.kind {
        command.env.insert("API_TOKEN".into(), "hush-hush".into());
    }
    let job = fleet
        .operator()
        .create(request("web-1", action))
        .await
        .unwrap();
    let task = job.complete().await;
    let output = job.output(muster_proto::v1::OutputStream::Stdout).await;
    assert_eq!(output, b"hush-hush", "the process gets it");
    let shown = fleet.cli(&["job", "get", &task.job_id, "--json"]).await;
    assert!(!shown.stdout.contains("hush-hush"), "{}", shown.stdout);

    let path = export(&fleet, "log").await;
    let lock = "muster.v1.HostService/LockHost";
    assert_eq!(
        entries(&path, lock, &["ai/claude", "\"deny\"", "NOT_ALLOWED"]),
        1
    );
    let list = "muster.v1.HostService/ListHosts";
    assert_eq!(entries(&path, list, &["\"deny\"", "CREDENTIAL_MISSING"]), 1);
    assert!(!fs::read_to_string(&path).unwrap().contains("hush-hush"));
    let denied = fleet
        .cli(&[
            "audit",
            "list",
            "--verdict",
            "deny",
            "--principal",
            "ai/claude",
        ])
        .await;
    assert!(denied.stdout.contains("LockHost"), "{}", denied.stdout);
}

#[tokio::test]
async fn what_is_rewritten_contradicts_the_hosts_and_a_host_vouches_for_its_task() {
    let (fleet, agent) = Fleet::with_host("web-1").await;
    let task = fleet
        .operator()
        .run("web-1", "echo hi")
        .await
        .complete()
        .await;
    let receipt = fleet
        .cli(&["job", "receipt", &task.task_id, "--verify", "--json"])
        .await;
    assert_eq!(receipt.code(), 0, "{}", receipt.stderr);
    assert!(
        receipt.stdout.contains("\"succeeded\""),
        "{}",
        receipt.stdout
    );

    let heads = heads(&agent).await;
    let path = export(&fleet, "log").await;
    let verify = async |path: &str| {
        let verified = fleet
            .cli(&["audit", "verify", path, "--head", &heads])
            .await;
        (verified.code(), verified.stdout)
    };
    let (code, words) = verify(&path).await;
    assert_eq!(code, 0, "{words}");
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/automation/verify_audit.py"
    );
    #[allow(clippy::disallowed_methods)] // A verifier of somebody else's.
    let python = Command::new("python3")
        .args([script, &path, &heads])
        .output();
    if let Ok(python) = python {
        assert!(python.status.success(), "{python:?}");
    }

    let text = fs::read_to_string(&path).unwrap();
    let changed = fleet.directory().join("changed").display().to_string();
    fs::write(
        &changed,
        text.replacen("\"verdict\":\"allow\"", "\"verdict\":\"denied\"", 1),
    )
    .unwrap();
    let (code, words) = verify(&changed).await;
    assert_eq!(
        (code, words.contains("broken at entry 1 ")),
        (10, true),
        "{words}"
    );

    // The last entries, taken away with the head.
    let lines: Vec<_> = text.lines().collect();
    fs::write(&changed, lines[..2].join("\n") + "\n").unwrap();
    let (code, words) = verify(&changed).await;
    assert_eq!(code, 11, "{words}");
}
