//! Days on which a program cannot start, or cannot go on: one clear line each, and a next step.

use std::{fs, net::TcpListener, sync::Mutex};

use muster_proto::v1::{ListHostsRequest, Reason, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Fleet, free_address},
    operator::{reason, request, script},
    process::Ended,
    tally::Tally,
};

/// A refusal: a code that is no success, and few lines that say all of this.
#[track_caller]
fn refuses(ended: &Ended, words: &[&str]) {
    assert!(ended.code() > 0, "{ended:?}");
    let said = &ended.stderr;
    for word in words {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }
    assert!(
        said.lines().count() <= 4 && !said.contains("panicked"),
        "{said}"
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let fleet = Fleet::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let start = fleet
        .muster(&["control-plane"])
        .env("MUSTER_DATA_DIR", fleet.directory().join("other"));
    let ended = start
        .env("MUSTER_LISTEN", &address)
        .run(&fleet.logs())
        .await;
    refuses(&ended, &[&address, "--listen"]);
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let fleet = Fleet::start().await;
    let file = fleet.directory().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("data");
    let start = fleet
        .muster(&["control-plane"])
        .env("MUSTER_DATA_DIR", &below);
    let start = start.env("MUSTER_LISTEN", free_address().to_string());
    refuses(
        &start.run(&fleet.logs()).await,
        &[file.to_str().unwrap(), "--data-dir"],
    );
}

#[tokio::test]
async fn a_data_directory_that_is_in_use_is_not_used_twice() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let start = fleet
        .muster(&["control-plane"])
        .env("MUSTER_LISTEN", free_address().to_string());
    refuses(
        &start.run(&fleet.logs()).await,
        &[fleet.data_dir().to_str().unwrap()],
    );

    let start = fleet
        .agent_program("second")
        .env("MUSTER_DATA_DIR", host.directory());
    refuses(
        &start.args(["run"]).run(&fleet.logs()).await,
        &[host.directory().to_str().unwrap()],
    );
    fleet.operator().run("web-1", "true").await.succeeds().await;
}

#[tokio::test]
async fn a_ledger_from_a_newer_version_is_left_alone() {
    let fleet = Fleet::start().await;
    fleet.stop_control_plane().await;
    let ledger = fleet.data_dir().join("control-plane/ledger.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&ledger);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'of tomorrow', TRUE, x'00', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let before = fs::read(&ledger).unwrap();
    let start = fleet
        .muster(&["control-plane"])
        .env("MUSTER_LISTEN", fleet.address().to_string());
    refuses(&start.run(&fleet.logs()).await, &["ledger.db", "newer"]);
    assert!(fs::read(&ledger).unwrap() == before);
}

#[tokio::test]
async fn an_agent_waits_for_a_control_plane_that_is_down() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    fleet.stop_control_plane().await;
    host.start(&fleet);
    eventually(PATIENCE, "it says that it tries again", || async {
        host.log(&fleet).contains("again").then_some(())
    })
    .await;
    let asked = fleet.cli(&["host", "list"]).await;
    refuses(&asked, &[&fleet.address().to_string()]);
    assert_eq!(asked.code(), 69);
    fleet.start_control_plane().await;
    fleet.operator().online("web-1").await;
}

#[tokio::test]
async fn a_full_disk_soon_accepts_no_job_and_loses_none() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let tally = Tally::new(fleet.directory());
    operator.run("web-1", tally.mark()).await.succeeds().await;

    fleet.limit_files(Some(4096)).await;
    // The intake has its room from before: it takes jobs until the ledger turns out to be full.
    let accepted = Mutex::new(Vec::new());
    let (wanted, refused) = eventually(PATIENCE, "the ledger turns out to be full", || {
        let wanted = request("web-1", script(tally.mark()));
        let (operator, accepted) = (&operator, &accepted);
        async move {
            match operator.create(wanted.clone()).await {
                Ok(job) => {
                    accepted.lock().unwrap().push(job);
                    None
                }
                Err(refused) => Some((wanted, refused)),
            }
        }
    })
    .await;
    assert_eq!(reason(&refused), Reason::LedgerUnavailable);
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    // Reading goes on.
    operator
        .hosts()
        .list_hosts(ListHostsRequest::default())
        .await
        .unwrap();

    fleet.limit_files(None).await;
    let job = eventually(PATIENCE, "the ledger takes jobs again", || async {
        operator.create(wanted.clone()).await.ok()
    })
    .await;
    job.succeeds().await;
    let accepted = accepted.into_inner().unwrap();
    for job in &accepted {
        job.succeeds().await;
    }
    assert_eq!(tally.runs(), 2 + accepted.len());
}

#[tokio::test]
async fn a_full_disk_on_a_host_costs_output_and_says_so() {
    // Output must leave 99 percent of the disk free: a disk on which anything stands is full.
    let fleet = Fleet::plan()
        .set_agents("MUSTER_SPOOL_FREE", 99)
        .start()
        .await;
    let disk = nix::sys::statvfs::statvfs(fleet.directory()).unwrap();
    if disk.blocks_available() * 100 > disk.blocks() * 98 {
        eprintln!("not told: nearly nothing stands on this disk, which no setting makes full");
        return;
    }
    let host = fleet.host("web-1").await;
    let go = fleet.directory().join("go");
    let wait = format!("until [ -e '{}' ]; do sleep 0.02; done", go.display());
    let job = fleet
        .operator()
        .run("web-1", format!("{wait}; seq 1 2000000; echo end"))
        .await;
    job.reaches(State::Running).await;
    host.wire().cut();
    fs::write(&go, "").unwrap();
    eventually(PATIENCE, "the process ends", || async {
        fleet.processes("seq").is_empty().then_some(())
    })
    .await;
    host.wire().mend();
    job.reaches(State::Succeeded).await;
    let task = job.complete().await;
    let size = task.output_size.unwrap();
    assert!(size.dropped_bytes > 0, "{size:?}");
    let seen = job.watch().await;
    assert_eq!(seen.missing, size.dropped_bytes, "what is missing is said");
}
