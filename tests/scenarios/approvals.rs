//! What waits for somebody's word: approvals, confirmations and grants, over real processes.

use std::{fs, time::Duration};

use muster_proto::v1::{
    AnswerApprovalRequest, Approval, ApprovalAnswer, GetApprovalRequest, GetPolicyRequest, Mode,
    PrincipalKind, Reason, ReleaseJobsRequest, RequestGrantRequest, SetPolicyRequest,
    UpdateHostRequest, UpdatePrincipalRequest, approval, task::State,
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    mcp::{Era, McpClient},
    operator::{Operator, Watched, reason, request, script},
    process::Ended,
    tally::Tally,
    webhook::Webhook,
};
use serde_json::{Value, json};
use tonic::Status;

/// Production needs two admins.
const TWO: &str = "@id(\"two\") @needs(\"approval\") @count(\"2\") @approvers(\"admin\")\n\
    forbid(principal, action == Muster::Action::\"job.create\", resource);";

/// Everything needs one admin.
const ONE: &str = "@id(\"one\") @needs(\"approval\") @approvers(\"admin\")\n\
    forbid(principal, action == Muster::Action::\"job.create\", resource);";

/// What changes something is confirmed.
const CONFIRM: &str = "@id(\"ask\") @needs(\"confirmation\")\n\
    forbid(principal, action == Muster::Action::\"job.create\", resource)\n\
    when { context.mode != \"read-only\" };";

/// Adds a policy to those that stand.
async fn set(fleet: &Fleet, text: &str) {
    let mut policy = fleet.operator().policy();
    let standing = policy.get_policy(GetPolicyRequest::default()).await;
    let mut files = standing.unwrap().into_inner().policy.unwrap().files;
    files.insert("story.cedar".to_owned(), text.to_owned());
    let request = SetPolicyRequest {
        files,
        ..SetPolicyRequest::default()
    };
    policy.set_policy(request).await.unwrap();
}

/// Somebody with this role, by a token.
async fn person(fleet: &Fleet, name: &str, role: &str) -> (Operator, String) {
    let kind = PrincipalKind::Operator;
    let token = fleet.operator().bearer_token(kind, name).await;
    let request = UpdatePrincipalRequest {
        principal: format!("operator/{name}"),
        roles: vec![role.to_owned()],
    };
    let mut principals = fleet.operator().principals();
    principals.update_principal(request).await.unwrap();
    (fleet.bearer(&token), token)
}

/// The CLI as somebody with a token.
async fn cli_as(fleet: &Fleet, token: &str, args: &[&str]) -> Ended {
    let program = fleet.muster(args).env("MUSTER_TOKEN", token);
    program.run(&fleet.logs()).await
}

async fn approval(who: &Operator, id: &str) -> Result<Approval, Status> {
    let request = GetApprovalRequest {
        approval_id: id.to_owned(),
    };
    let found = who.approvals().get_approval(request).await?;
    Ok(found.into_inner().approval.unwrap())
}

async fn answer(who: &Operator, id: &str, answer: ApprovalAnswer) -> Result<Approval, Status> {
    let digest = approval(who, id).await?.digest;
    let request = AnswerApprovalRequest {
        approval_id: id.to_owned(),
        answer: answer.into(),
        note: "looked at".to_owned(),
        digest,
    };
    let answered = who.approvals().answer_approval(request).await?;
    Ok(answered.into_inner().approval.unwrap())
}

async fn approve(who: &Operator, id: &str) -> Result<Approval, Status> {
    answer(who, id, ApprovalAnswer::Approve).await
}

/// A job that appends to the tally; waits for its approval.
async fn awaiting(who: &Operator, tally: &Tally) -> (Watched, String) {
    let job = who.create(request("web-1", script(tally.mark()))).await;
    let job = job.unwrap();
    job.reaches(State::AwaitingApproval).await;
    let id = job.job().await.approval_id;
    (job, id)
}

#[tokio::test]
async fn a_job_waits_for_two_others_and_runs_once() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let (bob, _) = person(&fleet, "bob", "admin").await;
    let (eve, _) = person(&fleet, "eve", "admin").await;
    let (vic, _) = person(&fleet, "vic", "operator").await;
    let ada = fleet.operator();
    set(&fleet, TWO).await;
    let (job, id) = awaiting(&bob, &tally).await;

    assert_eq!(
        reason(&approve(&bob, &id).await.unwrap_err()),
        Reason::SelfApproval
    );
    // Whoever may not answer does not even see it.
    assert_eq!(
        reason(&approve(&vic, &id).await.unwrap_err()),
        Reason::ApprovalNotFound
    );
    approve(&ada, &id).await.unwrap();
    approve(&ada, &id).await.unwrap();
    assert_eq!(job.task().await.state(), State::AwaitingApproval);
    assert_eq!(tally.runs(), 0);
    let last = approve(&eve, &id).await.unwrap();
    assert_eq!(last.state(), approval::State::Approved);
    job.succeeds().await;
    approve(&eve, &id).await.unwrap();
    assert_eq!(tally.runs(), 1);

    // One who declines ends it, and so does a cancel, by whoever asked.
    let (declined, id) = awaiting(&bob, &tally).await;
    answer(&eve, &id, ApprovalAnswer::Decline).await.unwrap();
    let task = declined.reaches(State::Rejected).await;
    assert_eq!(task.reason(), Reason::ApprovalDeclined);
    assert!(task.message.contains("operator/eve: looked at"), "{task:?}");
    let (cancelled, id) = awaiting(&bob, &tally).await;
    cancelled.cancel(Duration::from_secs(1)).await;
    cancelled.reaches(State::Cancelled).await;
    assert!(approve(&eve, &id).await.is_err());
    let over = approval(&ada, &id).await.unwrap();
    assert_eq!(over.state(), approval::State::Cancelled);
    assert_eq!(tally.runs(), 1);
}

#[tokio::test]
async fn killed_while_it_waits_and_killed_once_it_is_answered_it_runs_once() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let (_, bob) = person(&fleet, "bob", "admin").await;
    set(&fleet, TWO).await;
    let (eve, eve_token) = person(&fleet, "eve", "admin").await;
    let (job, id) = awaiting(&eve, &tally).await;
    fleet.kill_control_plane();
    fleet.start_control_plane().await;
    let ada = fleet.operator();
    let task = ada.job(&job.job_id).task().await;
    assert_eq!(task.state(), State::AwaitingApproval, "{task:?}");
    assert!(task.message.contains("0 of 2"), "{}", task.message);

    approve(&ada, &id).await.unwrap();
    fleet.kill_control_plane();
    fleet.start_control_plane().await;
    let ada = fleet.operator();
    let shown = approval(&ada, &id).await.unwrap();
    assert_eq!(shown.answers.len(), 1, "{shown:?}");
    let task = ada.job(&job.job_id).task().await;
    assert!(task.message.contains("1 of 2"), "{}", task.message);

    // The last answer, and nobody is there to start it; then the control plane dies.
    host.wire().cut();
    approve(&fleet.bearer(&bob), &id).await.unwrap();
    fleet.kill_control_plane();
    assert_eq!(tally.runs(), 0);
    fleet.start_control_plane().await;
    let eve = fleet.bearer(&eve_token);
    let job = eve.job(&job.job_id);
    assert_eq!(job.task().await.state(), State::Pending);
    host.wire().mend();
    job.succeeds().await;
    assert_eq!(tally.runs(), 1);
    let after = approval(&fleet.operator(), &id).await.unwrap();
    assert_eq!(after.state(), approval::State::Approved);
}

#[tokio::test]
async fn what_a_backup_saw_waiting_waits_again_and_what_ran_runs_no_more() {
    let fleet = Fleet::plan()
        .set("MUSTER_HEARTBEAT_INTERVAL", "200ms")
        .start()
        .await;
    let _host = fleet.host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let (_, bob) = person(&fleet, "bob", "admin").await;
    set(&fleet, ONE).await;
    let ada = fleet.operator();
    let (ran, ran_id) = awaiting(&ada, &tally).await;
    let (waits, waits_id) = awaiting(&ada, &tally).await;
    let backup = fleet.directory().join("backup");
    let backup = backup.to_str().unwrap();
    let ended = fleet
        .cli(&["control-plane", "backup", "--to", backup])
        .await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    approve(&fleet.bearer(&bob), &ran_id).await.unwrap();
    ran.succeeds().await;

    fleet.kill_control_plane();
    fs::remove_dir_all(fleet.data_dir().join("control-plane")).unwrap();
    let ended = fleet.cli(&["control-plane", "restore", backup]).await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    fleet.start_control_plane().await;
    // Its host proves what became of the one, and nobody has approved the other.
    let ada = fleet.operator();
    ada.job(&ran.job_id).reaches(State::Succeeded).await;
    let waits = ada.job(&waits.job_id);
    assert_eq!(waits.task().await.state(), State::AwaitingApproval);
    approve(&fleet.bearer(&bob), &waits_id).await.unwrap();
    waits.reaches(State::Pending).await;
    let release = ReleaseJobsRequest {
        all: true,
        ..ReleaseJobsRequest::default()
    };
    ada.jobs().release_jobs(release).await.unwrap();
    waits.succeeds().await;
    assert_eq!(tally.runs(), 2);
    // Nothing of the one that ran is there to approve.
    assert!(approve(&fleet.bearer(&bob), &ran_id).await.is_err());
    assert_eq!(tally.runs(), 2);
}

#[tokio::test]
async fn what_is_another_host_by_now_is_refused_and_what_nobody_answers_expires() {
    let fleet = Fleet::plan()
        .set("MUSTER_APPROVAL_EXPIRES_AFTER", "20s")
        .start()
        .await;
    let host = fleet.joined("web-1", &[("env", "prod")]).await;
    host.start(&fleet);
    let ada = fleet.operator();
    ada.online("web-1").await;
    let tally = Tally::new(fleet.directory());
    let (bob, _) = person(&fleet, "bob", "admin").await;
    set(&fleet, ONE).await;
    let job = bob.create(request("env=prod", script(tally.mark()))).await;
    let job = job.unwrap();
    job.reaches(State::AwaitingApproval).await;
    let id = job.job().await.approval_id;
    let relabel = UpdateHostRequest {
        host: "web-1".to_owned(),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["labels".to_owned()],
        }),
        labels: [("env".to_owned(), "dev".to_owned())].into(),
        ..UpdateHostRequest::default()
    };
    ada.hosts().update_host(relabel).await.unwrap();
    let refused = approve(&ada, &id).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::ApprovalDrift);
    let task = job.reaches(State::Rejected).await;
    assert_eq!(task.reason(), Reason::ApprovalDrift);

    let (expires, id) = awaiting(&bob, &tally).await;
    let task = eventually(PATIENCE * 2, "it expires", || async {
        let task = expires.task().await;
        (task.state() == State::Expired).then_some(task)
    });
    assert_eq!(task.await.reason(), Reason::ApprovalExpired);
    let late = approve(&ada, &id).await.unwrap_err();
    assert_eq!(reason(&late), Reason::ApprovalExpired);
    assert_eq!(tally.runs(), 0);
}

#[tokio::test]
async fn people_are_told_by_a_signed_webhook_that_tries_again() {
    let hook = Webhook::start(1).await;
    let fleet = Fleet::plan()
        .set("MUSTER_APPROVAL_WEBHOOK", hook.url())
        .set("MUSTER_APPROVAL_WEBHOOK_SECRET", "between-us")
        .start()
        .await;
    let _host = fleet.host("web-1").await;
    let tally = Tally::new(fleet.directory());
    let (bob, _) = person(&fleet, "bob", "admin").await;
    set(&fleet, ONE).await;
    let (job, id) = awaiting(&bob, &tally).await;
    approve(&fleet.operator(), &id).await.unwrap();
    job.succeeds().await;
    let posts = eventually(PATIENCE, "both notices came", || async {
        let posts = hook.posts();
        (posts.len() >= 3).then_some(posts)
    });
    let posts = posts.await;
    // The first was refused for the moment, and came again as it was.
    assert_eq!(posts[0].json(), posts[1].json());
    for post in &posts {
        assert!(post.is_signed_with("between-us"), "{post:?}");
        assert!(!post.is_signed_with("not-between-us"));
        assert!(
            !post.body.contains("ran.txt"),
            "no arguments: {}",
            post.body
        );
    }
    let (awaited, decided) = (posts[1].json(), posts[2].json());
    assert_eq!(awaited["event"], "approval.awaited");
    assert_eq!(awaited["hosts"], json!(["web-1"]));
    assert_eq!(awaited["approval_id"], Value::from(id));
    assert_eq!(decided["event"], "approval.decided");
    assert_eq!(decided["state"], "approved");
    assert!(!fleet.log().contains("between-us") && !fleet.log().contains("/hooks/muster"));
}

#[tokio::test]
async fn the_person_at_an_mcp_client_confirms_and_never_approves() {
    let fleet = Fleet::plan().start_up().await;
    set(&fleet, CONFIRM).await;
    let arguments = json!({"target": "all", "command": "echo it-ran", "mode": "edit"});
    let yes = json!({"action": "accept", "content": {"confirm": true}});
    let jobs = || async {
        let listed = fleet.cli(&["job", "list", "--json"]).await.stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["jobs"].as_array().unwrap().len()
    };
    let mut runs = 0;
    for era in [Era::Legacy, Era::Modern] {
        let client = McpClient::new(fleet.mcp_address(), era, &fleet.mcp_token());
        let plain = client.clone().connect().await;
        let refused = plain.call("run", arguments.clone()).await;
        assert!(refused.is_error, "{}", refused.text);
        assert!(
            refused.text.contains("CONFIRMATION_REQUIRED") && refused.text.contains("muster run"),
            "{}",
            refused.text
        );

        let client = client.with_a_person().connect().await;
        for no in [
            json!({"action": "decline"}),
            json!({"action": "cancel"}),
            json!({"action": "accept", "content": {"confirm": false}}),
        ] {
            let (refused, questions) = client
                .call_answering("run", arguments.clone(), no.clone())
                .await;
            assert_eq!(questions.len(), 1, "{era:?}");
            assert!(
                refused.is_error && refused.text.contains("nothing ran"),
                "{era:?} {no}: {}",
                refused.text
            );
        }
        assert_eq!(jobs().await, runs);
        let (done, questions) = client
            .call_answering("run", arguments.clone(), yes.clone())
            .await;
        let question = questions[0]["message"].as_str().unwrap();
        assert!(
            question.contains("it-ran") && question.contains("mode: edit"),
            "{question}"
        );
        runs += 1;
        assert!(
            !done.is_error
                && done.text.contains("succeeded exit=0")
                && done.text.contains("it-ran"),
            "{era:?}: {}",
            done.text
        );
        assert_eq!(jobs().await, runs, "{era:?}");
    }

    // Where policy wants somebody else's word, the person's own is none.
    set(&fleet, &format!("{CONFIRM}\n{ONE}")).await;
    let client = McpClient::new(fleet.mcp_address(), Era::Modern, &fleet.mcp_token())
        .with_a_person()
        .connect()
        .await;
    let (waits, _) = client.call_answering("run", arguments, yes).await;
    assert!(!waits.is_error, "{}", waits.text);
    assert!(
        waits.text.contains("awaiting_approval")
            && waits.text.contains("do not run it again")
            && waits.text.contains("muster approval show p-"),
        "{}",
        waits.text
    );
}

#[tokio::test]
async fn a_model_asks_for_more_and_people_give_it_for_a_while() {
    let fleet = Fleet::plan().start_up().await;
    let token = fleet.mcp_token();
    let client = McpClient::new(fleet.mcp_address(), Era::Modern, &token)
        .connect()
        .await;
    let run = json!({"target": "all", "command": "echo ran", "mode": "unrestricted"});
    let denied = client.call("run", run.clone()).await;
    assert!(
        denied.is_error && denied.text.contains("grant_request"),
        "{}",
        denied.text
    );
    let ask = json!({
        "target": "all", "mode": "unrestricted", "reason": "a service has to be restarted", "key": "g-1"
    });
    let asked = client.call("grant_request", ask.clone()).await;
    assert!(
        !asked.is_error && asked.text.contains("awaiting"),
        "{}",
        asked.text
    );
    let id = asked.text.split(' ').next().unwrap().to_owned();
    // It cannot give it to itself.
    let ai = fleet.bearer(&token);
    let own = approve(&ai, &id).await.unwrap_err();
    assert_eq!(reason(&own), Reason::NotAllowed);
    assert!(client.call("run", run.clone()).await.is_error);

    let shown = fleet.cli(&["approval", "show", &id, "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let digest = shown["approval"]["digest"].as_str().unwrap();
    let given = fleet
        .cli(&["approval", "approve", &id, "--digest", digest])
        .await;
    assert_eq!(given.code(), 0, "{}", given.stderr);
    let told = client.call("grant_request", ask).await;
    assert!(told.text.contains("given"), "{}", told.text);
    let ran = client.call("run", run.clone()).await;
    assert!(ran.text.contains("succeeded"), "{}", ran.text);
    // What nobody asked for stays as low as it was.
    let silent = client
        .call("run", json!({"target": "all", "command": "true"}))
        .await;
    assert!(silent.text.contains("succeeded"), "{}", silent.text);
    let job_id = silent.text.split(' ').nth(1).unwrap().to_owned();
    let job = fleet.operator().job(&job_id).job().await;
    assert_eq!(job.mode(), Mode::Edit);

    let list = fleet.cli(&["grant", "list"]).await;
    assert!(list.stdout.contains(&id), "{}", list.stdout);
    let revoked = fleet.cli(&["grant", "revoke", &id]).await;
    assert_eq!(revoked.code(), 0, "{}", revoked.stderr);
    assert!(client.call("run", run.clone()).await.is_error);

    // Another one, which ends by itself.
    let short = RequestGrantRequest {
        reason: "once more".to_owned(),
        selector: "all".to_owned(),
        mode: Mode::Unrestricted.into(),
        ttl: Some(prost_types::Duration {
            seconds: 12,
            nanos: 0,
        }),
        request_id: "short".to_owned(),
        ..RequestGrantRequest::default()
    };
    let asked = ai.grants().request_grant(short).await.unwrap().into_inner();
    approve(&fleet.operator(), &asked.approval.unwrap().approval_id)
        .await
        .unwrap();
    let ran = client.call("run", run.clone()).await;
    assert!(ran.text.contains("succeeded"), "{}", ran.text);
    eventually(PATIENCE, "the grant ends", || async {
        client.call("run", run.clone()).await.is_error.then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_command_line_asks_says_who_can_answer_and_waits() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    set(&fleet, CONFIRM).await;
    let run = [
        "run",
        "web-1",
        "--mode",
        "unrestricted",
        "--",
        "echo",
        "ran",
    ];
    let nobody = fleet.cli(&run).await;
    assert_eq!(nobody.code(), 77, "{}", nobody.stderr);
    assert!(
        nobody.stderr.contains("CONFIRMATION_REQUIRED"),
        "{}",
        nobody.stderr
    );
    assert!(nobody.stderr.contains("--yes"), "{}", nobody.stderr);
    let yes = fleet
        .cli(&["run", "web-1", "--yes", "--", "echo", "ran"])
        .await;
    assert_eq!((yes.code(), &*yes.stdout), (0, "ran\n"), "{}", yes.stderr);
    let plan = [
        "run",
        "web-1",
        "--mode",
        "read-only",
        "--",
        "echo",
        "looked",
    ];
    let looked = fleet.cli(&plan).await;
    assert_eq!(looked.stdout, "looked\n", "{}", looked.stderr);
    for (keys, code) in [("n\n", 77), ("y\n", 0)] {
        let program = fleet.muster(&run);
        let (process, console) = program.spawn_in_terminal(&fleet.logs(), 24, 200);
        console.shows("Run it? [y/N]").await;
        let screen = console.screen();
        assert!(
            screen.contains("web-1")
                && screen.contains("\"echo\"")
                && screen.contains("unrestricted"),
            "{screen}"
        );
        console.type_in(keys);
        let ended = process.ended(PATIENCE).await;
        assert_eq!(ended.code(), code, "{}", console.screen());
    }

    // What needs an approval says whose, and waits.
    set(&fleet, ONE).await;
    let (_, bob) = person(&fleet, "bob", "operator").await;
    let waiting = fleet
        .muster(&[
            "run", "web-1", "--reason", "a test", "--", "echo", "approved",
        ])
        .env("MUSTER_TOKEN", &bob)
        .spawn(&fleet.logs());
    let said = eventually(PATIENCE, "it says what it waits for", || async {
        let log = waiting.log();
        log.contains("can answer").then_some(log)
    })
    .await;
    assert!(said.contains("the role admin, 0 of 1"), "{said}");
    assert!(said.contains(" can answer"), "{said}");
    let own = cli_as(&fleet, &bob, &["approval", "list", "--json"]).await;
    let list: Value = serde_json::from_str(&own.stdout).unwrap();
    let id = list["approvals"][0]["approval_id"].as_str().unwrap();
    let unseen = fleet.cli(&["approval", "approve", id]).await;
    assert_eq!(
        unseen.code(),
        64,
        "nobody approves unseen: {}",
        unseen.stderr
    );
    let shown = fleet.cli(&["approval", "show", id]).await;
    assert!(
        shown.stdout.contains("[\"echo\",\"approved\"]") && shown.stdout.contains("a test"),
        "{}",
        shown.stdout
    );
    let digest = shown
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("digest"));
    let digest = digest.unwrap().trim_start_matches([':', ' ']).trim();
    let approved = fleet
        .cli(&["approval", "approve", id, "--digest", digest, "--json"])
        .await;
    assert_eq!(approved.code(), 0, "{}", approved.stderr);
    let ended = waiting.ended(PATIENCE).await;
    assert_eq!(
        (ended.code(), &*ended.stdout),
        (0, "approved\n"),
        "{}",
        ended.stderr
    );
}
