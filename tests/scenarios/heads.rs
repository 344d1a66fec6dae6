//! Signed heads of the audit log: hosts keep them, through a rotation of the authority, restarts and restores, and what
//! they say against a log is told.

use std::{fs, path::PathBuf};

use muster_client::audit::Head;
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Agent, Fleet},
};
use serde_json::Value;

/// A fleet whose hosts hear soon what there is to hear.
async fn fleet() -> Fleet {
    Fleet::plan()
        .set("MUSTER_HEARTBEAT_INTERVAL", "200ms")
        .start()
        .await
}

async fn says(fleet: &Fleet, arguments: &[&str]) -> Value {
    let ended = fleet.cli(arguments).await;
    assert_eq!(ended.code(), 0, "{arguments:?}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// The log as it is written down, in a new file, and how many entries it has.
async fn export(fleet: &Fleet, name: &str) -> (String, u64) {
    let path = fleet.directory().join(name).display().to_string();
    let exported = fleet.cli(&["audit", "export", "--output", &path]).await;
    assert_eq!(exported.code(), 0, "{}", exported.stderr);
    let lines = fs::read_to_string(&path).unwrap().lines().count();
    (path, lines as u64 - 2)
}

fn file(agent: &Agent) -> PathBuf {
    agent.directory().join("agent/audit-heads.jsonl")
}

fn heads(agent: &Agent) -> Vec<Head> {
    let text = fs::read_to_string(file(agent)).unwrap_or_default();
    text.lines()
        .filter_map(|line| Head::from_line(line).ok())
        .collect()
}

/// Waits until the host keeps a head of so many entries.
async fn keeps(agent: &Agent, count: u64) {
    let what = format!("{} keeps a head of {count} entries", agent.name());
    eventually(PATIENCE, &what, || async {
        let kept = heads(agent);
        let last = kept.last().map_or(0, |head| head.position.count);
        (last == count).then_some(())
    })
    .await;
}

/// Waits until the host says that something contradicts its heads; returns what.
async fn conflict(fleet: &Fleet, host: &str) -> String {
    eventually(PATIENCE, "the host tells of a conflict", || async {
        let host = says(fleet, &["host", "get", host, "--json"]).await;
        let words = host["host"]["facts"]["audit_conflict"].as_str()?;
        Some(words.to_owned())
    })
    .await
}

/// The exit code and words of a verifier with these heads and authorities.
async fn verify(fleet: &Fleet, log: &str, heads: &str, authorities: &str) -> (i32, String) {
    let verify = ["audit", "verify", log, "--head", heads, "--ca", authorities];
    let ended = fleet.cli(&verify).await;
    (ended.code(), ended.stdout)
}

#[tokio::test]
async fn heads_follow_a_rotation_of_the_authority_at_once() {
    let fleet = fleet().await;
    let host = fleet.host("web-1").await;
    let (_, count) = export(&fleet, "before").await;
    keeps(&host, count).await;
    let authority = |head: &Head| head.signed.certificate_chain[1].clone();
    let old = authority(heads(&host).last().unwrap());
    let own = fleet.data_dir().join("operator/ca.pem");
    let pem = fs::read_to_string(&own).unwrap();

    for step in ["begin", "issue", "serve"] {
        says(&fleet, &["authority", step, "--json"]).await;
        eventually(PATIENCE, "the host has taken it", || async {
            let status = says(&fleet, &["authority", "status", "--json"]).await;
            let missing = status["missing_hosts"].as_array().unwrap();
            missing.is_empty().then_some(())
        })
        .await;
    }
    eventually(PATIENCE, "a head is signed by the next one", || async {
        let kept = heads(&host);
        let signed_by_another = authority(kept.last()?) != old;
        signed_by_another.then_some(())
    })
    .await;
    says(&fleet, &["authority", "finish", "--json"]).await;

    let (log, count) = export(&fleet, "after").await;
    keeps(&host, count).await;
    let kept = file(&host).display().to_string();
    let new = eventually(PATIENCE, "the operator trusts the next alone", || async {
        says(&fleet, &["host", "list", "--json"]).await;
        let new = fs::read_to_string(&own).unwrap();
        (new != pem && new.matches("BEGIN").count() == 1).then_some(new)
    })
    .await;
    let write = |name: &str, text: String| {
        let path = fleet.directory().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let both = write("both.pem", format!("{pem}{new}"));
    let (code, words) = verify(&fleet, &log, &kept, &both).await;
    assert_eq!(code, 0, "{words}");
    // A head of before the rotation needs the authority of before.
    let new = write("new.pem", new);
    let (code, words) = verify(&fleet, &log, &kept, &new).await;
    assert_eq!(code, 13, "{words}");
    assert!(words.contains("earlier authority"), "{words}");
}

#[tokio::test]
async fn a_restart_signs_by_another_key_and_contradicts_nothing() {
    let fleet = fleet().await;
    let host = fleet.host("web-1").await;
    let (_, count) = export(&fleet, "before").await;
    keeps(&host, count).await;
    fleet.kill_control_plane();
    fleet.start_control_plane().await;
    fleet.operator().run("web-1", "true").await.succeeds().await;
    let (log, count) = export(&fleet, "after").await;
    keeps(&host, count).await;
    let kept = heads(&host);
    let signers: std::collections::BTreeSet<_> = kept
        .iter()
        .map(|head| head.signed.certificate_chain[0].clone())
        .collect();
    assert!(signers.len() >= 2, "the key lives in memory only");
    let own = fleet.data_dir().join("operator/ca.pem");
    let heads = file(&host).display().to_string();
    let (code, words) = verify(&fleet, &log, &heads, &own.display().to_string()).await;
    assert_eq!(code, 0, "{words}");
    let host = says(&fleet, &["host", "get", "web-1", "--json"]).await;
    assert_eq!(host["host"]["name"], "web-1");
    assert_eq!(host["host"]["facts"]["audit_conflict"], Value::Null);
}

#[tokio::test]
async fn what_a_restore_cut_off_is_told_by_the_hosts() {
    let fleet = fleet().await;
    let host = fleet.host("web-1").await;
    let backup = fleet.directory().join("backup.tar").display().to_string();
    let made = fleet
        .cli(&["control-plane", "backup", "--to", &backup])
        .await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    for _ in 0..20 {
        fleet.operator().run("web-1", "true").await.succeeds().await;
    }
    let (_, before) = export(&fleet, "before").await;
    keeps(&host, before).await;

    fleet.kill_control_plane();
    fs::remove_dir_all(fleet.data_dir().join("control-plane")).unwrap();
    let restored = fleet.cli(&["control-plane", "restore", &backup]).await;
    assert_eq!(restored.code(), 0, "{}", restored.stderr);
    fleet.start_control_plane().await;
    let words = conflict(&fleet, "web-1").await;
    let lost = format!("by a restore from a backup: it had {before} entries and then ");
    assert!(words.contains(&lost), "{words}");
    let shown = fleet.cli(&["host", "get", "web-1"]).await;
    assert!(shown.stdout.contains("audit conflict"), "{}", shown.stdout);
    let entry = eventually(PATIENCE, "the log tells of it", || async {
        let list = ["audit", "list", "--method", "audit.conflict"];
        let listed = fleet.cli(&list).await.stdout;
        listed.contains("by a restore").then_some(listed)
    })
    .await;
    assert!(entry.contains("host/h-"), "{entry}");

    let (log, _) = export(&fleet, "after").await;
    let own = fleet.data_dir().join("operator/ca.pem");
    let kept = file(&host).display().to_string();
    let (code, words) = verify(&fleet, &log, &kept, &own.display().to_string()).await;
    assert_eq!(code, 14, "{words}");
    assert!(words.contains("lost by a restore"), "{words}");
}

#[tokio::test]
async fn entries_that_somebody_took_out_of_the_ledger_are_missed_by_the_hosts() {
    let fleet = fleet().await;
    let host = fleet.host("web-1").await;
    for _ in 0..20 {
        fleet.operator().run("web-1", "true").await.succeeds().await;
    }
    let (_, before) = export(&fleet, "before").await;
    keeps(&host, before).await;

    fleet.stop_control_plane().await;
    let ledger = fleet.data_dir().join("control-plane/ledger.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&ledger);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let refused = sqlx::query("DELETE FROM audit_blocks WHERE first > 10")
        .execute(&mut connection)
        .await;
    assert!(refused.is_err(), "the ledger keeps mistakes out");
    for cut in [
        "DROP TRIGGER audit_blocks_are_not_cut",
        "DELETE FROM audit_blocks WHERE first > 10",
    ] {
        sqlx::query(cut).execute(&mut connection).await.unwrap();
    }
    sqlx::Connection::close(connection).await.unwrap();
    fleet.start_control_plane().await;

    let words = conflict(&fleet, "web-1").await;
    let cut = format!("it had {before} entries and then ");
    assert!(
        words.contains(&cut) && words.contains("in one generation"),
        "{words}"
    );
    // The log by itself is in order; the hosts' heads say what is missing.
    let (log, _) = export(&fleet, "after").await;
    assert_eq!(fleet.cli(&["audit", "verify", &log]).await.code(), 0);
    let own = fleet.data_dir().join("operator/ca.pem");
    let kept = file(&host).display().to_string();
    let (code, words) = verify(&fleet, &log, &kept, &own.display().to_string()).await;
    assert!([11, 12].contains(&code), "{code}: {words}");

    // An agent that is started anew says it from the start.
    host.stop().await;
    host.start(&fleet);
    fleet.operator().online("web-1").await;
    assert!(conflict(&fleet, "web-1").await.contains(&cut));
}
