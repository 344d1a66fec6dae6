//! Nothing is done that cannot be recorded, and an export that was cut short is none.

use std::{fs, process::Command};

use muster_client::audit::Position;
use muster_proto::v1::{
    CreateJoinTokenRequest, CreateTokenRequest, ExportAuditRequest, GetAuthoritiesRequest,
    GetPolicyRequest, JoinKind, ListHostsRequest, ListJoinTokensRequest, ListTokensRequest,
    LockPrincipalRequest, PrincipalKind, Reason, RevokeJoinTokenRequest, RevokeTokenRequest,
    RotateAuthorityRequest, SetPolicyRequest, audit_service_client::AuditServiceClient,
    rotate_authority_request::Step,
};
use muster_tests::{PATIENCE, cut::Cut, eventually, fleet::Fleet, operator::reason};
use serde_json::Value;

/// The log as it is written down, in a new file; it is whole.
async fn whole(fleet: &Fleet, name: &str) -> String {
    let path = fleet.directory().join(name).display().to_string();
    let exported = fleet.cli(&["audit", "export", "--output", &path]).await;
    assert_eq!(exported.code(), 0, "{}", exported.stderr);
    let verified = fleet.cli(&["audit", "verify", &path]).await;
    assert_eq!(verified.code(), 0, "{}", verified.stdout);
    fs::read_to_string(path).unwrap()
}

/// Entries of this method.
fn entries<'a>(log: &'a str, method: &str) -> Vec<&'a str> {
    let method = format!("/{method}\"");
    let of_method = log.lines().filter(|line| line.contains(&method));
    of_method.collect()
}

fn token(name: &str) -> CreateTokenRequest {
    CreateTokenRequest {
        kind: PrincipalKind::Automation.into(),
        name: name.to_owned(),
        ..CreateTokenRequest::default()
    }
}

fn join_token() -> CreateJoinTokenRequest {
    CreateJoinTokenRequest {
        kind: JoinKind::Host.into(),
        ..CreateJoinTokenRequest::default()
    }
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_done_that_cannot_be_recorded() {
    let fleet = Fleet::start().await;
    let operator = fleet.operator();
    operator
        .tokens()
        .create_token(token("before"))
        .await
        .unwrap();
    let mut policies = operator.policy();
    let policy = policies.get_policy(GetPolicyRequest::default()).await;
    let policy = policy.unwrap().into_inner();

    fleet.limit_files(Some(4096)).await;
    let mut enrollment = operator.enrollment();
    let files = policy.policy.clone().unwrap_or_default().files;
    let lock = LockPrincipalRequest {
        principal: "automation/before".to_owned(),
        ..LockPrincipalRequest::default()
    };
    let rotate = RotateAuthorityRequest {
        step: Step::Begin.into(),
        ..RotateAuthorityRequest::default()
    };
    let set = SetPolicyRequest {
        files,
        note: "never".to_owned(),
        ..SetPolicyRequest::default()
    };
    for (what, refused) in [
        (
            "a token",
            operator.tokens().create_token(token("after")).await.err(),
        ),
        (
            "a lock",
            operator.principals().lock_principal(lock).await.err(),
        ),
        (
            "a rotation",
            operator.authorities().rotate_authority(rotate).await.err(),
        ),
        ("a policy", policies.set_policy(set).await.err()),
        (
            "a join token",
            enrollment.create_join_token(join_token()).await.err(),
        ),
    ] {
        let refused = refused.unwrap_or_else(|| panic!("{what} was made unrecorded"));
        assert_eq!(reason(&refused), Reason::LedgerUnavailable, "{what}");
    }
    // A refusal changes nothing, and is told later.
    let nobody = fleet
        .nobody()
        .hosts()
        .list_hosts(ListHostsRequest::default())
        .await;
    assert_eq!(reason(&nobody.unwrap_err()), Reason::CredentialMissing);
    // There is no room for a head either, and an export without one is none.
    let path = fleet.directory().join("full").display().to_string();
    let exported = fleet.cli(&["audit", "export", "--output", &path]).await;
    assert_ne!(exported.code(), 0);
    assert!(!fleet.directory().join("full").exists());

    fleet.limit_files(None).await;
    let log = eventually(PATIENCE, "the refusal is told", || async {
        let path = fleet.directory().join("log");
        let _ = fs::remove_file(&path);
        let log = whole(&fleet, "log").await;
        let told = entries(&log, "ListHosts");
        told.iter()
            .any(|line| line.contains("CREDENTIAL_MISSING"))
            .then_some(log)
    })
    .await;
    for method in [
        "CreateToken",
        "LockPrincipal",
        "RotateAuthority",
        "SetPolicy",
    ] {
        let told = entries(&log, method);
        let failed: Vec<_> = told
            .iter()
            .filter(|line| line.contains("LEDGER_UNAVAILABLE"))
            .collect();
        assert_eq!(failed.len(), 1, "{method}: {told:?}");
    }

    // What was refused did not happen, now or after a restart.
    for round in 0..2 {
        let tokens = operator
            .tokens()
            .list_tokens(ListTokensRequest::default())
            .await;
        let tokens = tokens.unwrap().into_inner().tokens;
        let names: Vec<_> = tokens
            .iter()
            .filter_map(|token| Some(token.principal.as_ref()?.name.as_str()))
            .collect();
        assert_eq!(names, ["before"]);
        let lock = tokens[0].principal.as_ref().unwrap().lock.as_ref();
        assert!(lock.is_none(), "{lock:?}");
        let join = enrollment.list_join_tokens(ListJoinTokensRequest::default());
        assert!(join.await.unwrap().into_inner().join_tokens.is_empty());
        let now = policies.get_policy(GetPolicyRequest::default()).await;
        assert_eq!(now.unwrap().into_inner(), policy);
        let rotation = operator
            .authorities()
            .get_authorities(GetAuthoritiesRequest {})
            .await;
        let rotation = rotation.unwrap().into_inner();
        assert!(format!("{rotation:?}").contains("Standby"), "{rotation:?}");
        if round == 0 {
            fleet.kill_control_plane();
            fleet.start_control_plane().await;
        }
    }
    whole(&fleet, "at the end").await;
}

#[tokio::test]
async fn what_was_not_there_is_not_said_to_be_revoked() {
    let fleet = Fleet::start().await;
    let mut enrollment = fleet.operator().enrollment();
    let made = enrollment.create_join_token(join_token()).await.unwrap();
    let id = made.into_inner().join_token.unwrap().join_token_id;
    let revoke = |id: &str| RevokeJoinTokenRequest {
        join_token_id: id.to_owned(),
    };
    let unknown = enrollment.revoke_join_token(revoke("jt-nobody")).await;
    assert_eq!(reason(&unknown.unwrap_err()), Reason::TokenNotFound);
    enrollment.revoke_join_token(revoke(&id)).await.unwrap();
    let again = enrollment.revoke_join_token(revoke(&id)).await;
    assert_eq!(reason(&again.unwrap_err()), Reason::TokenNotFound);
    let mut tokens = fleet.operator().tokens();
    for token_id in ["t-nobody", ""] {
        let token_id = token_id.to_owned();
        let revoke = RevokeTokenRequest { token_id };
        assert!(tokens.revoke_token(revoke).await.is_err());
    }

    let log = eventually(PATIENCE, "all of it is told", || async {
        let _ = fs::remove_file(fleet.directory().join("log"));
        let log = whole(&fleet, "log").await;
        let told = entries(&log, "RevokeJoinToken").len() + entries(&log, "RevokeToken").len();
        (told >= 5).then_some(log)
    })
    .await;
    let told = entries(&log, "RevokeJoinToken");
    assert_eq!(told.len(), 3, "{told:?}");
    let done: Vec<_> = told.iter().filter(|line| line.contains("effect")).collect();
    assert_eq!(done.len(), 1, "{told:?}");
    assert!(
        done[0].contains(&id) && !done[0].contains("reason"),
        "{done:?}"
    );
    for line in told.iter().filter(|line| !line.contains("effect")) {
        assert!(line.contains("TOKEN_NOT_FOUND"), "{line}");
    }
    for line in entries(&log, "RevokeToken") {
        assert!(
            line.contains("reason") && !line.contains("effect"),
            "{line}"
        );
    }
}

/// Adds so many entries to the log of a control plane that does not run, as its writer would.
async fn lengthen(fleet: &Fleet, count: u64) {
    let ledger = fleet.data_dir().join("control-plane/ledger.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&ledger);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let last = "SELECT first + count - 1, hash FROM audit_blocks ORDER BY first DESC LIMIT 1";
    let (number, hash): (i64, Vec<u8>) = sqlx::query_as(last)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let mut position = Position {
        count: number as u64,
        hash: hash.try_into().unwrap(),
    };
    sqlx::query("BEGIN").execute(&mut connection).await.unwrap();
    for _ in 0..count {
        let number = position.count + 1;
        let words = "x".repeat(400);
        let entry = format!(
            "{{\"number\":{number},\"time\":1,\"method\":\"task.end\",\"trace\":\"{words}\"}}"
        );
        position = position.with(&entry);
        let text = format!("{entry}\n").into_bytes();
        sqlx::query("INSERT INTO audit_blocks VALUES (?, 1, 0, ?, ?, ?)")
            .bind(number as i64)
            .bind(text.len() as i64)
            .bind(text)
            .bind(position.hash.to_vec())
            .execute(&mut connection)
            .await
            .unwrap();
    }
    sqlx::query("COMMIT")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
}

#[tokio::test]
async fn an_export_that_was_cut_short_is_none() {
    let fleet = Fleet::start().await;
    fleet.stop_control_plane().await;
    lengthen(&fleet, 30_000).await;
    fleet.start_control_plane().await;

    // The wire breaks in the middle of it.
    let wire = Cut::to(fleet.address()).await;
    let path = fleet.directory().join("cut");
    let exporting = fleet
        .muster(&["audit", "export", "--output", path.to_str().unwrap()])
        .env("MUSTER_ADDRESS", wire.address().to_string())
        .spawn(&fleet.logs());
    wire.carried_down(2 << 20).await;
    wire.cut();
    let ended = exporting.ended(PATIENCE).await;
    assert_ne!(ended.code(), 0, "{ended:?}");
    let left: Vec<_> = fs::read_dir(fleet.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("cut"))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // The control plane dies in the middle of it. The little that fits on the road comes, and then no good end.
    let mut audit = AuditServiceClient::new(fleet.operator().door());
    let export = audit.export_audit(ExportAuditRequest { after: 0 }).await;
    let mut export = export.unwrap().into_inner();
    let mut taken = export.message().await.unwrap().unwrap().lines.to_vec();
    fleet.kill_control_plane();
    let error = loop {
        match export.message().await {
            Ok(Some(message)) => taken.extend_from_slice(&message.lines),
            Ok(None) => panic!("it ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert_ne!(error.code(), tonic::Code::Ok);
    let path = fleet.directory().join("part");
    for end in [taken.len(), taken.len() - 40] {
        fs::write(&path, &taken[..end]).unwrap();
        let verify = ["audit", "verify", path.to_str().unwrap(), "--json"];
        let verified = fleet.cli(&verify).await;
        assert_eq!(verified.code(), 11, "{}", verified.stdout);
        let report: Value = serde_json::from_str(&verified.stdout).unwrap();
        assert_eq!(report["findings"][0]["kind"], "cut");
    }
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/automation/verify_audit.py"
    );
    #[allow(clippy::disallowed_methods)] // A verifier of somebody else's.
    let python = Command::new("python3").arg(script).arg(&path).output();
    if let Ok(python) = python {
        assert!(!python.status.success(), "{python:?}");
    }

    fleet.start_control_plane().await;
    whole(&fleet, "log").await;
}
