//! Roles as services, as far as that needs no service manager; `.ci/service` does the rest with a real one.

use std::fs;

use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    process::{Start, muster_agent},
};
use serde_json::{Value, json};

#[tokio::test]
async fn a_dry_run_shows_the_whole_unit_and_does_nothing() {
    let fleet = Fleet::start().await;
    let home = fleet.directory().join("bare");
    fs::create_dir(&home).unwrap();
    for (args, lines) in [
        (
            ["agent", "install"],
            [
                "would write /etc/systemd/system/muster-agent.service",
                "Type=notify",
                "KillMode=process",
                "Environment=\"MUSTER_DATA_DIR=/var/lib/muster\"",
            ],
        ),
        (
            ["control-plane", "install"],
            [
                "would make the system user muster",
                "would write /etc/systemd/system/muster-control-plane.service",
                "User=muster",
                "NoNewPrivileges=yes",
            ],
        ),
        (
            ["gateway", "install"],
            [
                "would make the system user muster-gateway",
                "would write /etc/systemd/system/muster-gateway.service",
                "User=muster-gateway",
                "WatchdogSec=60",
            ],
        ),
    ] {
        let args = [args[0], args[1], "--dry-run"];
        let ended = fleet
            .muster(&args)
            .env("MUSTER_DATA_DIR", &home)
            .run(&fleet.logs())
            .await;
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        for line in lines {
            let there = ended.stdout.lines().any(|each| each.trim() == line);
            assert!(there, "no {line} in:\n{}", ended.stdout);
        }
    }
    let left: Vec<_> = fs::read_dir(&home).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_lean_agent_plans_a_service_of_its_own() {
    let fleet = Fleet::start().await;
    let home = fleet.directory().join("hers");
    fs::create_dir(&home).unwrap();
    let ended = Start::new("lean-dry-run".to_owned(), &muster_agent(), &home)
        .args(["install", "--user", "--dry-run"])
        .run(&fleet.logs())
        .await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let unit = home.join(".config/systemd/user/muster-agent.service");
    for line in [
        format!("would write {}", unit.display()),
        format!("ExecStart=\"{}\" run", muster_agent().display()),
        "WantedBy=default.target".to_owned(),
    ] {
        let there = ended.stderr.lines().any(|each| each.trim() == line);
        assert!(there, "no {line} in:\n{}", ended.stderr);
    }
    assert!(!home.join(".config").exists());
}

#[tokio::test]
async fn an_agent_says_how_it_is_while_it_runs() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let status = async || {
        let ended = fleet
            .muster(&["agent", "status", "--json"])
            .env("MUSTER_DATA_DIR", host.directory())
            .run(&fleet.logs())
            .await;
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
        answer["agent"].clone()
    };
    let attached = status().await;
    assert_eq!(attached["name"], "web-1");
    assert_eq!(attached["connection"]["attached"], true, "{attached}");
    assert_eq!(
        attached["tasks"],
        json!({"waiting": 0, "running": 0, "unreported": 0})
    );

    let job = fleet
        .cli(&["run", "web-1", "--detach", "--", "sleep", "600"])
        .await;
    assert_eq!(job.code(), 0, "{}", job.stderr);
    eventually(PATIENCE, "the agent says that it is busy", || async {
        let busy = status().await;
        (busy["tasks"]["running"] == 1).then_some(())
    })
    .await;

    fleet.kill_control_plane();
    eventually(PATIENCE, "the agent says that it is cut off", || async {
        let cut = status().await;
        let why = cut["connection"]["message"].as_str()?.to_owned();
        (cut["connection"]["attached"] == false && !why.is_empty()).then_some(())
    })
    .await;

    host.stop().await;
    let stopped = status().await;
    assert_eq!(stopped["running"], false);
    assert_eq!(stopped["connection"], Value::Null);
    assert!(!host.directory().join("agent/status.sock").exists());
}
