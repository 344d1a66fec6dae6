//! People log in, tokens reach only so far, and whoever is locked is out within a second.

use std::time::{Duration, Instant};

use muster_proto::v1::{
    CreatePrincipalRequest, CreateTokenRequest, GetCallerRequest, ListHostsRequest,
    ListPrincipalsRequest, LockPrincipalRequest, LockTokenRequest, PrincipalKind, Reason,
    UnlockPrincipalRequest, UnlockTokenRequest, UpdatePrincipalRequest, WatchHostsRequest,
    lock_principal_request::Tasks, task::State,
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    operator::{Credential, Operator, reason, request, script},
};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::Status;

/// What a lock may take, from the call to the last stream's end. The bench measures it; a loaded machine may take
/// longer here.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

async fn who(caller: &Operator) -> Result<String, Status> {
    let answer = caller.principals().get_caller(GetCallerRequest {}).await?;
    Ok(answer.into_inner().principal.unwrap().name)
}

fn lock(principal: &str, tasks: Tasks) -> LockPrincipalRequest {
    LockPrincipalRequest {
        principal: principal.to_owned(),
        note: "lost laptop".to_owned(),
        tasks: tasks.into(),
    }
}

fn unlock(principal: &str) -> UnlockPrincipalRequest {
    UnlockPrincipalRequest {
        principal: principal.to_owned(),
    }
}

/// Logs somebody in on a machine of its own, and returns its directory and the join string.
pub(crate) async fn login(fleet: &Fleet, name: &str, role: &str) -> (std::path::PathBuf, String) {
    let invited = fleet
        .cli(&["access", "invite", name, "--role", role, "--json"])
        .await;
    assert_eq!(invited.code(), 0, "{}", invited.stderr);
    let invited: Value = serde_json::from_str(&invited.stdout).unwrap();
    let join = invited["join_string"].as_str().unwrap().to_owned();
    let home = fleet.directory().join(name);
    let logged_in = fleet
        .muster(&["login"])
        .env("MUSTER_DATA_DIR", &home)
        .env("MUSTER_JOIN", &join)
        .run(&fleet.logs())
        .await;
    assert_eq!(logged_in.code(), 0, "{}", logged_in.stderr);
    assert!(logged_in.stdout.contains(&format!("operator/{name}")));
    (home, join)
}

#[tokio::test]
async fn a_person_logs_in_once_by_a_join_string_and_out_again() {
    let fleet = Fleet::start().await;
    let (home, join) = login(&fleet, "ada", "viewer").await;
    let ada = Operator::new(
        fleet.address(),
        Credential::Directory(home.join("operator")),
    );
    assert_eq!(who(&ada).await.unwrap(), "ada");
    let listed = fleet.cli(&["access", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let principals = listed["principals"].as_array().unwrap();
    let of = |name: &str| principals.iter().find(|one| one["principal"] == name);
    assert_eq!(
        of("operator/ada").unwrap()["roles"],
        serde_json::json!(["viewer"])
    );
    assert!(of("operator/ada").unwrap()["last_used_time"].is_string());
    let me = format!("operator/{}", who(&fleet.operator()).await.unwrap());
    assert_eq!(of(&me).unwrap()["roles"], serde_json::json!(["admin"]));

    // Once: another key on another machine is not let in.
    let other = fleet.directory().join("other");
    let refused = fleet
        .muster(&["login"])
        .env("MUSTER_DATA_DIR", &other)
        .stdin(join)
        .run(&fleet.logs())
        .await;
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("JOIN_TOKEN_USED"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("access invite"),
        "{}",
        refused.stderr
    );

    let out = fleet
        .muster(&["logout"])
        .env("MUSTER_DATA_DIR", &home)
        .run(&fleet.logs())
        .await;
    assert_eq!(out.code(), 0, "{}", out.stderr);
    assert!(!home.join("operator").exists());
}

#[tokio::test]
async fn a_token_reaches_only_as_far_as_its_scopes() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let token = |scopes: &[&str]| CreateTokenRequest {
        kind: PrincipalKind::Operator.into(),
        name: "ada".to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..CreateTokenRequest::default()
    };
    let made = operator.tokens().create_token(token(&["fleet:read"])).await;
    let made = made.unwrap().into_inner();
    assert_eq!(made.token.unwrap().scopes, ["fleet:read"]);
    let reader = fleet.bearer(&made.bearer_token);
    reader
        .hosts()
        .list_hosts(ListHostsRequest::default())
        .await
        .unwrap();
    let job = request("web-1", script("true"));
    let refused = reader.create(job).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::ScopeInsufficient);
    assert!(refused.message().contains("jobs:run"), "{refused:?}");
    // What a token cannot reach it cannot get by making another.
    let refused = reader.tokens().create_token(token(&[])).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::ScopeInsufficient);
    let refused = reader
        .principals()
        .lock_principal(lock("operator/ada", Tasks::Leave))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::ScopeInsufficient);
    let wrong = operator.tokens().create_token(token(&["all"])).await;
    assert_eq!(reason(&wrong.unwrap_err()), Reason::ArgumentInvalid);
}

#[tokio::test]
async fn whoever_is_locked_is_out_with_all_its_ais_and_their_tasks_end_as_told() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let (home, _) = login(&fleet, "ada", "operator").await;
    let directory = home.join("operator");
    let ada = Operator::new(fleet.address(), Credential::Directory(directory.clone()));
    let stays = ada.run("web-1", "sleep 600").await;
    stays.reaches(State::Running).await;
    let same = operator.job(&stays.job().await.job_id);
    let mut watch = ada
        .hosts()
        .watch_hosts(WatchHostsRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    // Her ai, by an exchanged token on her connection.
    let exchange = muster_proto::v1::ExchangeTokenRequest {
        subject: Some(muster_proto::v1::exchange_token_request::Subject::AiName(
            "ada-mcp".to_owned(),
        )),
    };
    let exchanged = ada.tokens().exchange_token(exchange).await.unwrap();
    assert_eq!(exchanged.into_inner().principal.unwrap().roles, ["ai"]);

    operator
        .principals()
        .lock_principal(lock("operator/ada", Tasks::Leave))
        .await
        .unwrap();
    let begun = Instant::now();
    let last = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ends without a word"),
            Err(status) => break status,
        }
    };
    assert!(begun.elapsed() < LOCK_LIMIT, "{:?}", begun.elapsed());
    assert_eq!(reason(&last), Reason::Locked);
    // Neither her connection nor a new one is of use.
    assert!(who(&ada).await.is_err());
    let again = Operator::new(fleet.address(), Credential::Directory(directory));
    let refused = who(&again).await.unwrap_err();
    let behind = muster_runtime::tls::ConnectError::behind(&refused);
    assert!(
        behind.is_some_and(|error| error.is_refused()),
        "{refused:?}"
    );
    same.reaches(State::Running).await;

    // A second lock says what becomes of tasks; the first one's author and time stay.
    let locked = operator
        .principals()
        .lock_principal(lock("operator/ada", Tasks::Cancel))
        .await;
    let locked = locked.unwrap().into_inner();
    assert_eq!(locked.cancelled_jobs, 1);
    let why = locked.principal.unwrap().lock.unwrap();
    let me = format!("operator/{}", who(&operator).await.unwrap());
    assert_eq!((why.author, &*why.note), (me, "lost laptop"));
    same.reaches(State::Cancelled).await;

    // It holds across a restart, and until it is lifted.
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    assert!(who(&again).await.is_err());
    let operator = fleet.operator();
    operator
        .principals()
        .unlock_principal(unlock("operator/ada"))
        .await
        .unwrap();
    eventually(PATIENCE, "she is back", || async { who(&again).await.ok() }).await;
}

#[tokio::test]
async fn a_locked_token_ends_a_thousand_streams_and_can_be_unlocked() {
    const STREAMS: usize = 1_000;
    let fleet = Fleet::start().await;
    let operator = fleet.operator();
    let create = CreateTokenRequest {
        kind: PrincipalKind::Automation.into(),
        name: "graphs".to_owned(),
        ..CreateTokenRequest::default()
    };
    let made = operator.tokens().create_token(create).await.unwrap();
    let made = made.into_inner();
    let token_id = made.token.unwrap().token_id;
    let mut streams = JoinSet::new();
    let mut caller = fleet.bearer(&made.bearer_token);
    for number in 0..STREAMS {
        // So many fit on a connection.
        if number % 150 == 0 {
            caller = fleet.bearer(&made.bearer_token);
        }
        let watch = caller
            .hosts()
            .watch_hosts(WatchHostsRequest::default())
            .await;
        let mut watch = watch.unwrap().into_inner();
        streams.spawn(async move {
            loop {
                match watch.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ends without a word"),
                    Err(status) => return reason(&status),
                }
            }
        });
    }
    let begun = Instant::now();
    let note = String::new();
    let request = LockTokenRequest {
        token_id: token_id.clone(),
        note,
    };
    operator.tokens().lock_token(request).await.unwrap();
    let ended = tokio::time::timeout(LOCK_LIMIT, streams.join_all()).await;
    let reasons = ended.expect("all end");
    eprintln!("{STREAMS} streams ended within {:?}", begun.elapsed());
    assert!(reasons.iter().all(|reason| *reason == Reason::Locked));
    let refused = who(&caller).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::Locked);
    operator
        .tokens()
        .unlock_token(UnlockTokenRequest { token_id })
        .await
        .unwrap();
    assert_eq!(who(&caller).await.unwrap(), "graphs");
}

#[tokio::test]
async fn the_last_admin_can_be_neither_locked_nor_demoted() {
    let fleet = Fleet::start().await;
    let operator = fleet.operator();
    let me = format!("operator/{}", who(&operator).await.unwrap());
    let mut principals = operator.principals();
    let demote = |principal: &str| UpdatePrincipalRequest {
        principal: principal.to_owned(),
        roles: vec!["viewer".to_owned()],
    };
    let refused = principals.lock_principal(lock(&me, Tasks::Leave)).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::LastAdmin);
    let refused = principals.update_principal(demote(&me)).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::LastAdmin);
    let create = |name: &str, roles: &[&str]| CreatePrincipalRequest {
        kind: PrincipalKind::Operator.into(),
        name: name.to_owned(),
        roles: roles.iter().map(ToString::to_string).collect(),
    };
    principals
        .create_principal(create("eve", &["admin"]))
        .await
        .unwrap();
    let twice = principals.create_principal(create("eve", &[])).await;
    assert_eq!(reason(&twice.unwrap_err()), Reason::PrincipalExists);
    // A locked admin is none that could act.
    principals
        .lock_principal(lock("operator/eve", Tasks::Leave))
        .await
        .unwrap();
    let refused = principals.update_principal(demote(&me)).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::LastAdmin);
    principals
        .unlock_principal(unlock("operator/eve"))
        .await
        .unwrap();
    let page = ListPrincipalsRequest {
        page_size: 1,
        ..ListPrincipalsRequest::default()
    };
    let first = principals.list_principals(page).await.unwrap().into_inner();
    let rest = ListPrincipalsRequest {
        page_token: first.next_page_token,
        ..ListPrincipalsRequest::default()
    };
    let rest = principals.list_principals(rest).await.unwrap().into_inner();
    assert_eq!((first.principals.len(), rest.principals.len()), (1, 1));
    let missing = principals.unlock_principal(unlock("operator/nobody")).await;
    assert_eq!(reason(&missing.unwrap_err()), Reason::PrincipalNotFound);
    // With another admin there, it can step down.
    principals.update_principal(demote(&me)).await.unwrap();
}
