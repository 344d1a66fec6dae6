//! Policies and modes over a whole fleet: what is written down holds for whoever asks, down to the kernel.

use std::{fs, path::Path};

use muster_proto::v1::{Mode, OutputStream, PrincipalKind, Reason, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    mcp::{Era, McpClient},
    operator::{Credential, Operator, reason, request, script},
    process::Ended,
};
use serde_json::{Value, json};

use crate::locks::login;

/// Runs `muster` as whoever holds this token.
async fn cli_of(fleet: &Fleet, token: &str, args: &[&str]) -> Ended {
    let command = fleet.muster(args).env("MUSTER_TOKEN", token);
    command.run(&fleet.logs()).await
}

async fn done(fleet: &Fleet, args: &[&str]) -> String {
    let ended = fleet.cli(args).await;
    assert_eq!(ended.code(), 0, "{args:?}: {}", ended.stderr);
    ended.stdout
}

/// The reason of a refused command, which it prints for people and for programs.
fn is_refused(ended: &Ended, reason: &str) {
    assert_ne!(ended.code(), 0, "{}", ended.stdout);
    assert!(ended.stderr.contains(reason), "{reason}: {}", ended.stderr);
}

/// Writes a file of this fleet, and returns its path.
fn written(fleet: &Fleet, name: &str, text: &str) -> String {
    let path = fleet.directory().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// An automation with these roles, and a token for it.
async fn automation(fleet: &Fleet, name: &str, role: &str) -> String {
    let principal = format!("automation/{name}");
    done(fleet, &["access", "create", &principal, "--role", role]).await;
    let operator = fleet.operator();
    operator.bearer_token(PrincipalKind::Automation, name).await
}

const WEB_TEAM: &str = r#"@id("web-team")
@text("The web team sees its own hosts, and runs what it likes there.")
permit (
  principal in Muster::Role::"web-team",
  action in [Muster::Action::"host.read", Muster::Action::"job.read", Muster::Action::"job.create"],
  resource
)
when { resource.hasTag("team") && resource.getTag("team") == "web" };
"#;

#[tokio::test]
async fn policies_are_shown_checked_tried_explained_and_set() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let shown = done(&fleet, &["policy", "show"]).await;
    assert!(
        shown.contains("ai-edits") && shown.contains("ai.cedar:"),
        "{shown}"
    );
    assert!(
        done(&fleet, &["policy", "show", "schema"])
            .await
            .contains("entity")
    );

    let good = written(&fleet, "web-team.cedar", WEB_TEAM);
    let text = WEB_TEAM.replace("host.read", "host.reed");
    let bad = written(&fleet, "bad.cedar", &text);
    let torn = written(&fleet, "torn.cedar", "permit (principal, action, resource)");
    assert!(
        done(&fleet, &["policy", "check", &good])
            .await
            .contains("1 polic")
    );
    for (file, place) in [(&bad, "bad.cedar:"), (&torn, "torn.cedar:")] {
        let checked = fleet.cli(&["policy", "check", file]).await;
        is_refused(&checked, place);
        let set = fleet.cli(&["policy", "set", "--add", file]).await;
        is_refused(&set, place);
        is_refused(&set, "POLICY_INVALID");
    }
    assert!(
        !done(&fleet, &["policy", "versions"])
            .await
            .contains("operator/"),
        "nothing was set"
    );

    let case = |expect: &str| {
        format!(
            "[[case]]\nname = \"the web team stays on its hosts\"\nprincipal = \"automation/w\"\n\
             roles = [\"web-team\"]\naction = \"job.create\"\nlabels = {{ team = \"db\" }}\nexpect = \"{expect}\"\n"
        )
    };
    let holds = written(&fleet, "holds.toml", &case("deny"));
    let fails = written(&fleet, "fails.toml", &case("allow"));
    let tried = done(&fleet, &["policy", "test", &holds, "--files", &good]).await;
    assert!(tried.contains("1 of 1 cases hold"), "{tried}");
    let tried = fleet
        .cli(&["policy", "test", &fails, "--files", &good])
        .await;
    assert_eq!(tried.code(), 1, "{}", tried.stderr);
    assert!(
        tried.stdout.contains("expected allow, found deny"),
        "{}",
        tried.stdout
    );

    let set = [
        "policy",
        "set",
        "--add",
        &good,
        "--note",
        "hosts of the web team",
    ];
    assert!(done(&fleet, &set).await.contains("version 1 stands"));
    let versions = done(&fleet, &["policy", "versions"]).await;
    assert!(versions.contains("hosts of the web team"), "{versions}");
    let token = automation(&fleet, "deploy", "web-team").await;
    let explain = [
        "policy",
        "explain",
        "automation/deploy",
        "job.create",
        "--host",
        "web-1",
    ];
    let explained = fleet.cli(&explain).await;
    assert_eq!(explained.code(), 1, "{}", explained.stdout);
    assert!(
        explained.stdout.contains("no policy permits it"),
        "{}",
        explained.stdout
    );
    assert!(
        explained.stdout.contains("could grant it"),
        "{}",
        explained.stdout
    );
    done(&fleet, &["host", "set", "web-1", "--label", "team=web"]).await;
    let explained = done(&fleet, &explain).await;
    assert!(explained.contains("web-team"), "{explained}");
    let ran = cli_of(&fleet, &token, &["run", "web-1", "--", "echo", "deployed"]).await;
    assert_eq!(
        (ran.code(), &*ran.stdout),
        (0, "deployed\n"),
        "{}",
        ran.stderr
    );
    // It stands over a restart, and an older version is still to be read.
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    assert!(done(&fleet, &["policy", "show"]).await.contains("web-team"));
    let shipped = done(&fleet, &["policy", "show", "--version", "0"]).await;
    assert!(!shipped.contains("web-team"), "{shipped}");
}

#[tokio::test]
async fn who_only_looks_cannot_run_and_what_one_may_not_see_is_not_there() {
    let (fleet, _web) = Fleet::with_host("web-1").await;
    let _db = fleet.host("db-1").await;
    let operator = fleet.operator();
    let (home, _) = login(&fleet, "vera", "viewer").await;
    let vera = async |args: &[&str]| {
        let command = fleet.muster(args).env("MUSTER_DATA_DIR", &home);
        command.run(&fleet.logs()).await
    };
    let job = operator.run("web-1", "echo seen").await;
    job.succeeds().await;
    let seen = vera(&["host", "list"]).await;
    assert!(
        seen.stdout.contains("web-1") && seen.stdout.contains("db-1"),
        "{}",
        seen.stderr
    );
    let seen = vera(&["job", "output", &job.job_id]).await;
    assert_eq!(seen.stdout, "seen\n", "{}", seen.stderr);
    let marker = fleet.directory().join("ran");
    let touch = marker.display().to_string();
    for args in [
        &["run", "web-1", "--", "touch", &touch][..],
        &["host", "mode", "web-1", "read-only"],
        &["host", "set", "web-1", "--label", "x=y"],
        &["job", "cancel", &job.job_id],
        &["policy", "set", "--remove", "ai.cedar"],
    ] {
        let refused = vera(args).await;
        assert_ne!(refused.code(), 0, "{args:?}: {}", refused.stdout);
        assert!(
            refused.stderr.contains("POLICY_DENIED"),
            "{args:?}: {}",
            refused.stderr
        );
    }
    assert!(!marker.exists());

    // One who may run on hosts with a label: the others are not there.
    let file = written(&fleet, "web-team.cedar", WEB_TEAM);
    done(&fleet, &["policy", "set", "--add", &file]).await;
    done(&fleet, &["host", "set", "web-1", "--label", "team=web"]).await;
    let token = automation(&fleet, "deploy", "web-team").await;
    let theirs = operator.run("db-1", "true").await;
    theirs.succeeds().await;
    let listed = cli_of(&fleet, &token, &["host", "list"]).await;
    assert!(
        listed.stdout.contains("web-1") && !listed.stdout.contains("db-1"),
        "{}",
        listed.stdout
    );
    let deploy = fleet.bearer(&token);
    let refused = deploy
        .create(request("db-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::HostNotFound, "{refused:?}");
    let nowhere = deploy
        .create(request("nowhere-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(
        refused.message().replace("db-1", "X"),
        nowhere.message().replace("nowhere-1", "X"),
        "no word tells the two apart"
    );
    for args in [
        &["host", "get", "db-1"][..],
        &["job", "get", &theirs.job_id],
        &["run", "db-1", "--", "true"],
    ] {
        is_refused(&cli_of(&fleet, &token, args).await, "NOT_FOUND");
    }
    let all = deploy.run("all", "true").await;
    let tasks = all.tasks().await;
    assert_eq!(tasks.len(), 1, "all is all that one may see");
    assert_eq!(tasks[0].host_name, "web-1");
}

/// What a confined task says that may not write, or nothing where this kernel confines none.
async fn is_kept_from_writing(operator: &Operator, host: &str, path: &Path) -> bool {
    let text = format!("echo x > {}", path.display());
    let job = operator.run(host, text).await;
    let task = eventually(PATIENCE, "the task is over", || async {
        let task = job.task().await;
        let over = ![State::Pending, State::Running].contains(&task.state());
        (over && task.output_complete).then_some(task)
    })
    .await;
    if task.reason() == Reason::ModeUnenforceable {
        return false;
    }
    assert_eq!(task.state(), State::Failed, "{task:?}");
    let said = job.output(OutputStream::Stderr).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    let kernel_s = ["Read-only file system", "Permission denied"];
    assert!(kernel_s.iter().any(|words| said.contains(words)), "{said}");
    assert!(!path.exists());
    let mode = task.confinement.as_ref().map(|applied| applied.mode());
    assert_eq!(mode, Some(Mode::ReadOnly), "{task:?}");
    assert_eq!(task.doubt, "");
    true
}

#[tokio::test]
async fn a_host_that_is_lowered_stays_so_over_a_restart_and_the_kernel_holds_it() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("written");
    operator
        .run("web-1", format!("echo x > {}", path.display()))
        .await
        .succeeds()
        .await;
    fs::remove_file(&path).unwrap();

    let set = [
        "host",
        "mode",
        "web-1",
        "read-only",
        "--note",
        "release freeze",
    ];
    done(&fleet, &set).await;
    let kept = host.directory().join("agent/mode-limit");
    eventually(PATIENCE, "the agent keeps it", || async {
        let limit = fs::read_to_string(&kept).unwrap_or_default();
        (limit.trim() == "read-only").then_some(())
    })
    .await;
    let shown = done(&fleet, &["host", "get", "web-1"]).await;
    assert!(
        shown.contains("read-only") && shown.contains("release freeze"),
        "{shown}"
    );
    if !is_kept_from_writing(&operator, "web-1", &path).await {
        return;
    }
    // The agent, and then the control plane, forget nothing.
    host.stop().await;
    host.start(&fleet);
    operator.online("web-1").await;
    assert!(is_kept_from_writing(&operator, "web-1", &path).await);
    host.stop().await;
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    let operator = fleet.operator();
    host.start(&fleet);
    operator.online("web-1").await;
    assert!(is_kept_from_writing(&operator, "web-1", &path).await);
    // More than that is refused by the host, whatever the caller may.
    let mut wanted = request("web-1", script("true"));
    wanted.mode = Mode::Unrestricted.into();
    let more = operator.create(wanted).await.unwrap();
    let refused = more.reaches(State::Rejected).await;
    assert_eq!(refused.reason(), Reason::ModeTooHigh, "{refused:?}");

    done(&fleet, &["host", "mode", "web-1", "own"]).await;
    eventually(PATIENCE, "the agent lets go of it", || async {
        (!kept.exists()).then_some(())
    })
    .await;
    operator
        .run("web-1", format!("echo x > {}", path.display()))
        .await
        .succeeds()
        .await;
    assert!(path.exists());
}

#[tokio::test]
async fn an_ai_edits_below_its_roots_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let policy = directory.path().join("policy.toml");
    fs::write(&policy, format!("[edit]\nroots = [{:?}]\n", root)).unwrap();
    let fleet = Fleet::plan()
        .set_agents("MUSTER_POLICY", policy.display())
        .start_up()
        .await;
    let _web = fleet.host("web-1").await;
    let ai = McpClient::new(fleet.mcp_address(), Era::Modern, &fleet.mcp_token());
    let run = async |command: String, mode: Option<&str>| {
        let mut arguments = json!({"target": "web-1", "command": command});
        if let Some(mode) = mode {
            arguments["mode"] = mode.into();
        }
        ai.call("run", arguments).await
    };
    let inside = root.join("inside");
    let wrote = run(format!("echo x > {}", inside.display()), None).await;
    if wrote.text.contains("MODE_UNENFORCEABLE") {
        return;
    }
    assert!(
        wrote.text.contains(" succeeded ") && wrote.text.contains("mode=edit"),
        "{}",
        wrote.text
    );
    assert!(inside.exists());
    let outside = directory.path().join("outside");
    let wrote = run(format!("echo x > {}", outside.display()), None).await;
    assert!(wrote.text.contains(" failed exit="), "{}", wrote.text);
    let refusals = ["Read-only file system", "Permission denied"];
    assert!(
        refusals.iter().any(|words| wrote.text.contains(words)),
        "{}",
        wrote.text
    );
    assert!(!outside.exists());
    // Lower it may ask for, higher not, and neither does it get by asking somebody else.
    let lower = root.join("lower");
    let wrote = run(format!("echo x > {}", lower.display()), Some("read-only")).await;
    assert!(
        wrote.text.contains("mode=read-only") && !lower.exists(),
        "{}",
        wrote.text
    );
    let higher = run(
        format!("echo x > {}", outside.display()),
        Some("unrestricted"),
    )
    .await;
    assert!(
        higher.is_error && higher.text.contains("MODE_TOO_HIGH"),
        "{}",
        higher.text
    );
    let nested = format!("muster host mode web-1 own; echo x > {}", outside.display());
    run(nested, None).await;
    assert!(!outside.exists());
}

#[tokio::test]
async fn a_disabled_host_takes_a_cancel_and_another_mode_and_nothing_else() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let runs = operator.run("web-1", "exec sleep 600").await;
    runs.reaches(State::Running).await;
    done(&fleet, &["host", "mode", "web-1", "disabled"]).await;
    let refused = operator
        .create(request("web-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::ModeDisabled, "{refused:?}");
    assert_eq!(
        runs.task().await.state(),
        State::Running,
        "what runs goes on"
    );
    let cancelled = done(&fleet, &["job", "cancel", &runs.job_id]).await;
    assert!(cancelled.contains("cancelled"), "{cancelled}");
    runs.reaches(State::Cancelled).await;
    done(&fleet, &["host", "mode", "web-1", "own"]).await;
    operator.run("web-1", "true").await.succeeds().await;
}

#[tokio::test]
async fn a_limit_that_trips_suspends_over_a_restart_until_it_is_lifted() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let limits = written(
        &fleet,
        "limits.toml",
        "[principal.\"automation/nightly\"]\njobs_per_minute = 3\n",
    );
    done(&fleet, &["policy", "set", "--add", &limits]).await;
    let token = automation(&fleet, "nightly", "operator").await;
    let nightly = fleet.bearer(&token);
    let first = nightly.run("web-1", "exec sleep 600").await;
    first.reaches(State::Running).await;
    for _ in 0..2 {
        nightly.run("web-1", "true").await.succeeds().await;
    }
    let over = nightly
        .create(request("web-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(reason(&over), Reason::PrincipalSuspended, "{over:?}");
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    let nightly = fleet.bearer(&token);
    let operator = fleet.operator();
    operator.online("web-1").await;
    let still = nightly
        .create(request("web-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(reason(&still), Reason::PrincipalSuspended, "{still:?}");
    let said = cli_of(&fleet, &token, &["run", "web-1", "--", "true"]).await;
    is_refused(&said, "muster policy resume automation/nightly");
    // It looks, and ends what it began.
    let looked = cli_of(&fleet, &token, &["job", "get", &first.job_id]).await;
    assert!(looked.stdout.contains("running"), "{}", looked.stderr);
    let cancelled = cli_of(&fleet, &token, &["job", "cancel", &first.job_id]).await;
    assert_eq!(cancelled.code(), 0, "{}", cancelled.stderr);
    operator.job(&first.job_id).reaches(State::Cancelled).await;
    // Nobody lifts its own.
    let own = cli_of(&fleet, &token, &["policy", "resume", "automation/nightly"]).await;
    assert_ne!(own.code(), 0, "{}", own.stdout);
    done(&fleet, &["policy", "resume", "automation/nightly"]).await;
    nightly.run("web-1", "true").await.succeeds().await;
}

#[tokio::test]
async fn files_of_the_data_directory_are_taken_in_and_one_that_is_broken_is_named() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let (home, _) = login(&fleet, "ada", "operator").await;
    let ada = || {
        Operator::new(
            fleet.address(),
            Credential::Directory(home.join("operator")),
        )
    };
    ada().run("web-1", "true").await.succeeds().await;
    let directory = fleet.data_dir().join("control-plane/policies");
    fs::create_dir(&directory).unwrap();
    let freeze = "@id(\"freeze\")\nforbid (principal in Muster::Role::\"operator\", \
                  action == Muster::Action::\"job.create\", resource);\n";
    fs::write(directory.join("freeze.cedar"), freeze).unwrap();
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    let refused = ada()
        .create(request("web-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::PolicyDenied, "{refused:?}");
    assert!(refused.message().contains("freeze"), "{refused:?}");

    // One that does not fit is not taken, says where, and leaves standing what stood.
    fs::write(
        directory.join("freeze.cedar"),
        "forbid (principal, action, resource)\n;;\n",
    )
    .unwrap();
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    let log = fleet.log();
    assert!(
        log.contains("were not taken") && log.contains("freeze.cedar:"),
        "{log}"
    );
    let refused = ada()
        .create(request("web-1", script("true")))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::PolicyDenied, "{refused:?}");
    let versions: Value =
        serde_json::from_str(&done(&fleet, &["policy", "versions", "--json"]).await).unwrap();
    assert_eq!(
        versions["policies"].as_array().unwrap().len(),
        1,
        "{versions}"
    );
}
