//! Another authority takes the place of the one behind all certificates, while everything goes on.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use muster_client::identity::Identity;
use muster_proto::v1::{WatchHostsRequest, host::Presence, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Agent, Fleet},
    mcp::{Era, McpClient},
    operator::Operator,
};
use serde_json::Value;

async fn step(fleet: &Fleet, arguments: &[&str]) -> Value {
    let mut all = vec!["authority"];
    all.extend(arguments);
    all.push("--json");
    let ended = fleet.cli(&all).await;
    assert_eq!(ended.code(), 0, "{arguments:?}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Waits until every host has taken what the phase asks for.
async fn all_taken(fleet: &Fleet) {
    eventually(PATIENCE, "every host has taken it", || async {
        let status = step(fleet, &["status"]).await;
        let missing = status["missing_hosts"].as_array().unwrap();
        missing.is_empty().then_some(())
    })
    .await;
}

fn identity(agent: &Agent) -> Identity {
    Identity::load(&agent.directory().join("agent")).unwrap()
}

/// Runs `true` over and over, and counts.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    running: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(operator: Operator, host: &'static str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (until, count): (_, Arc<AtomicUsize>) = (Arc::clone(&stop), Arc::clone(&done));
        let running = tokio::spawn(async move {
            while !until.load(Ordering::Relaxed) {
                operator.run(host, "true").await.succeeds().await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            done,
            running,
        }
    }

    /// A panic of a failed call comes through here.
    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap();
        self.done.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn under_load_no_call_fails_and_no_stream_ends() {
    let fleet = Fleet::start().await;
    let first = fleet.host("web-1").await;
    let second = fleet.host("web-2").await;
    let before = identity(&first);
    let operator = fleet.operator();
    let long = operator.run("web-2", "sleep 600").await;
    long.reaches(State::Running).await;
    let mut watch = operator
        .hosts()
        .watch_hosts(WatchHostsRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    // From here on every message is looked at: a host that goes away would show.
    let watching = tokio::spawn(async move {
        loop {
            let change = watch.message().await.expect("the watch goes on").unwrap();
            for host in change.hosts {
                assert_eq!(host.presence(), Presence::Online, "{}", host.name);
            }
        }
    });
    let load = Load::start(fleet.operator(), "web-1");

    assert_eq!(step(&fleet, &["begin"]).await["phase"], "begun");
    all_taken(&fleet).await;
    assert_eq!(identity(&first).authorities().len(), 2);
    step(&fleet, &["issue"]).await;
    all_taken(&fleet).await;
    assert_ne!(identity(&first).chain()[1], before.chain()[1], "a new leaf");
    step(&fleet, &["serve"]).await;
    // Everybody dials anew in this phase: with old trust and with new.
    for _ in 0..3 {
        fleet.operator().all_hosts().await;
    }
    all_taken(&fleet).await;
    let finished = step(&fleet, &["finish"]).await;
    assert_eq!(finished["phase"], "standby");
    eventually(PATIENCE, "hosts trust the new one alone", || async {
        let alone = |agent: &Agent| identity(agent).authorities().len() == 1;
        (alone(&first) && alone(&second)).then_some(())
    })
    .await;
    // The command line comes back by its old key; whoever dials with what it got then is taken.
    step(&fleet, &["status"]).await;
    fleet.operator().all_hosts().await;

    assert!(!watching.is_finished(), "the watch broke off");
    watching.abort();
    assert!(load.finish().await > 0);
    assert_eq!(long.task().await.state(), State::Running);
    for agent in [&first, &second] {
        let attached = agent.log(&fleet).matches("attached to ").count();
        assert_eq!(attached, 1, "{} attached again", agent.name());
    }
    long.cancel(std::time::Duration::ZERO).await;

    // And hosts come back after a restart, with what they hold now.
    first.kill();
    first.start(&fleet);
    fleet.operator().online("web-1").await;
}

#[tokio::test]
async fn a_kill_at_any_step_leaves_the_rotation_where_it_stood() {
    let fleet = Fleet::start().await;
    let _host = fleet.host("web-1").await;
    for (name, phase) in [
        ("begin", "begun"),
        ("issue", "issuing"),
        ("serve", "serving"),
        ("rollback", "rolling-back"),
    ] {
        step(&fleet, &[name]).await;
        fleet.kill_control_plane();
        fleet.start_control_plane().await;
        fleet.operator().online("web-1").await;
        assert_eq!(step(&fleet, &["status"]).await["phase"], phase);
        all_taken(&fleet).await;
        fleet.operator().run("web-1", "true").await.succeeds().await;
    }
    // Back: what the next authority issued still counts until it is dropped.
    step(&fleet, &["finish"]).await;
    step(&fleet, &["status"]).await;
    fleet.kill_control_plane();
    fleet.start_control_plane().await;
    fleet.operator().online("web-1").await;
    assert_eq!(step(&fleet, &["status"]).await["phase"], "standby");
}

#[tokio::test]
async fn who_sleeps_through_a_rotation_is_waited_for_or_comes_back_by_its_old_key() {
    let fleet = Fleet::start().await;
    let awake = fleet.host("web-1").await;
    let sleeper = fleet.host("web-2").await;
    let locked = fleet.host("web-3").await;
    let old = identity(&sleeper);
    sleeper.stop().await;
    let lock = fleet.cli(&["host", "lock", "web-3"]).await;
    assert_eq!(lock.code(), 0, "{}", lock.stderr);
    for name in ["begin", "issue", "serve"] {
        step(&fleet, &[name]).await;
    }
    eventually(PATIENCE, "only the sleeper is missing", || async {
        let status = step(&fleet, &["status"]).await;
        (status["missing_hosts"] == serde_json::json!(["web-2"])).then_some(())
    })
    .await;
    let refused = fleet.cli(&["authority", "finish"]).await;
    assert_ne!(refused.code(), 0);
    assert!(refused.stderr.contains("web-2"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("AUTHORITY_PHASE"),
        "{}",
        refused.stderr
    );
    step(&fleet, &["finish", "--force"]).await;
    step(&fleet, &["status"]).await;

    // It knows the old authority alone, and has a certificate of it.
    assert_eq!(identity(&sleeper).authorities(), old.authorities());
    sleeper.start(&fleet);
    fleet.operator().online("web-2").await;
    let back = identity(&sleeper);
    assert_eq!(back.host_id(), old.host_id());
    assert_ne!(back.authorities(), old.authorities());
    eventually(PATIENCE, "the other one has the new list too", || async {
        (back.authorities() == identity(&awake).authorities()).then_some(())
    })
    .await;

    // A locked one does not.
    eventually(PATIENCE, "the locked host is refused", || async {
        locked.log(&fleet).contains("locked").then_some(())
    })
    .await;
    assert_ne!(
        identity(&locked).authorities(),
        identity(&awake).authorities()
    );
    assert_ne!(
        fleet.operator().host("web-3").await.presence(),
        Presence::Online
    );
}

#[tokio::test]
async fn nobody_comes_back_by_a_key_that_others_may_know() {
    let fleet = Fleet::start().await;
    let _host = fleet.host("web-1").await;
    let sleeper = fleet.host("web-2").await;
    sleeper.stop().await;
    for name in ["begin", "issue", "serve"] {
        step(&fleet, &[name]).await;
    }
    step(&fleet, &["finish", "--force", "--distrust"]).await;
    sleeper.start(&fleet);
    eventually(PATIENCE, "it is refused", || async {
        let log = sleeper.log(&fleet);
        log.contains("join anew with a join token").then_some(())
    })
    .await;
    // The dropped key is gone from the disk.
    let kept = fleet.data_dir().join("control-plane/authorities.json");
    let kept = fs::read_to_string(kept).unwrap();
    assert_eq!(kept.matches("BEGIN PRIVATE KEY").count(), 1);
}

#[tokio::test]
async fn a_backup_of_before_a_rotation_says_whom_it_shuts_out() {
    let fleet = Fleet::start().await;
    let host = fleet.host("web-1").await;
    let backup = fleet.directory().join("backup.tar").display().to_string();
    let make = ["control-plane", "backup", "--to", &backup];
    let made = fleet.cli(&make).await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    for name in ["begin", "issue", "serve"] {
        step(&fleet, &[name]).await;
        all_taken(&fleet).await;
    }
    step(&fleet, &["finish"]).await;
    step(&fleet, &["status"]).await;
    eventually(PATIENCE, "the host trusts the new one alone", || async {
        (identity(&host).authorities().len() == 1).then_some(())
    })
    .await;

    fleet.stop_control_plane().await;
    let restore = ["control-plane", "restore", &backup, "--force"];
    let restored = fleet.cli(&restore).await;
    assert_eq!(restored.code(), 0, "{}", restored.stderr);
    let said = format!("{}{}", restored.stdout, restored.stderr);
    assert!(said.contains("have to join again"), "{said}");
    // Whoever is on the control plane's own machine gets in.
    fleet.start_control_plane().await;
    assert_eq!(step(&fleet, &["status"]).await["phase"], "standby");
    // The host does not let itself be taken in, and says why it is away.
    eventually(PATIENCE, "the host says why", || async {
        let log = host.log(&fleet);
        log.contains("certificate").then_some(())
    })
    .await;
    let away = fleet.operator().host("web-1").await;
    assert_ne!(away.presence(), Presence::Online);

    // It joins again, in a directory of its own, and takes its place.
    let removed = fleet.cli(&["host", "remove", "web-1", "--yes"]).await;
    assert_eq!(removed.code(), 0, "{}", removed.stderr);
    host.stop().await;
    fs::remove_dir_all(host.directory().join("agent")).unwrap();
    let join = fleet.operator().join_string("web-1", &[]).await;
    let joined = host.join(&fleet, &join).await;
    assert_eq!(joined.code(), 0, "{}", joined.stderr);
    host.start(&fleet);
    fleet.operator().online("web-1").await;
    fleet.operator().run("web-1", "true").await.succeeds().await;
}

#[tokio::test]
async fn a_gateway_that_was_stopped_over_it_serves_again() {
    let fleet = Fleet::plan().start_up().await;
    for name in ["begin", "issue", "serve"] {
        step(&fleet, &[name]).await;
        all_taken(&fleet).await;
    }
    // Sooner than the gateway looks, and then all of it starts anew.
    step(&fleet, &["finish"]).await;
    assert_eq!(fleet.stop_control_plane().await.code(), 0);
    fleet.start_control_plane().await;
    fleet.up_is_whole().await;
    let client = McpClient::new(fleet.mcp_address(), Era::Modern, &fleet.mcp_token());
    eventually(PATIENCE, "MCP is served", || async {
        let listed = client.request("tools/list", serde_json::json!({})).await;
        (listed.status == 200).then_some(())
    })
    .await;
}
