//! Values of an environment that look secret: the process gets them, and no file holds them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use muster_proto::v1::{
    Action, CreateJobRequest, ListTasksRequest, OutputStream, Reason, action, task::State,
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Agent, Fleet},
    operator::{request, script},
    process,
};

const SECRET: &str = "correct-horse-battery-staple-4711";

/// Puts the secret where others put theirs, and tells by its length and end that it is there.
fn guarded(selector: &str, more: &str) -> CreateJobRequest {
    let mut action = script(format!(
        "test ${{#API_TOKEN}} = {} && test \"${{API_TOKEN##*-}}\" = 4711 && {more}",
        SECRET.len()
    ));
    if let Some(action::Kind::Command(command)) = &mut action.kind {
        command.env = BTreeMap::from([
            ("API_TOKEN".to_owned(), SECRET.to_owned()),
            ("DATABASE_URL".to_owned(), format!("pg://ada:{SECRET}@db/x")),
        ])
        .into_iter()
        .collect();
    }
    request(selector, action)
}

fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() && !path.is_symlink() {
            true => below(&path, found),
            false => found.push(path),
        }
    }
}

/// The files of the fleet that hold a text: of the control plane, its backups and logs, and of hosts.
fn holding(fleet: &Fleet, text: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    below(fleet.directory(), &mut files);
    assert!(files.len() > 20, "{files:?}");
    files
        .into_iter()
        .filter(|path| {
            // What went away meanwhile, or is a socket, holds nothing.
            fs::read(path).is_ok_and(|bytes| {
                let mut windows = bytes.windows(text.len());
                windows.any(|window| window == text.as_bytes())
            })
        })
        .collect()
}

#[track_caller]
fn nowhere(fleet: &Fleet) {
    let found = holding(fleet, SECRET);
    assert!(found.is_empty(), "the secret is in {found:?}");
}

/// What is looked for where it must not be, is found where it is.
fn sees(fleet: &Fleet) {
    let file = fleet.directory().join("home/known");
    fs::write(&file, format!("a {SECRET} b")).unwrap();
    assert_eq!(holding(fleet, SECRET), std::slice::from_ref(&file));
    fs::remove_file(file).unwrap();
}

async fn backup(fleet: &Fleet, name: &str) -> String {
    let path = fleet.directory().join(name).display().to_string();
    let made = fleet.cli(&["control-plane", "backup", "--to", &path]).await;
    assert_eq!(made.code(), 0, "{}", made.stderr);
    path
}

#[tokio::test]
async fn a_secret_reaches_its_process_and_no_file() {
    let fleet = Fleet::start().await;
    let host = fleet.host("web-1").await;
    sees(&fleet);
    let operator = fleet.operator();
    let go = fleet.directory().join("go");
    let until = format!("until [ -e '{}' ]; do sleep 0.02; done", go.display());
    let running = operator.create(guarded("web-1", &until)).await.unwrap();
    running.reaches(State::Running).await;
    nowhere(&fleet);
    // It is in the process, so it did leave.
    let there = process::marked(fleet.mark()).into_iter().any(|(pid, _)| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variable = format!("API_TOKEN={SECRET}");
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == variable.as_bytes())
    });
    assert!(there, "the process has it");
    backup(&fleet, "while-it-runs.tar").await;

    // The agent that goes on with the task does not need it.
    host.kill();
    host.start(&fleet);
    operator.online("web-1").await;
    fs::write(&go, "").unwrap();
    running.succeeds().await;
    let wrong = operator
        .create(guarded("web-1", "echo done; exit 3"))
        .await
        .unwrap();
    wrong.reaches(State::Failed).await;
    assert_eq!(wrong.output(OutputStream::Stdout).await, b"done\n");
    backup(&fleet, "after-it.tar").await;
    nowhere(&fleet);

    let shown = fleet.cli(&["job", "get", &running.job_id, "--json"]).await;
    assert!(shown.stdout.contains("[redacted]"), "{}", shown.stdout);
    fleet.kill_control_plane();
    host.stop().await;
    nowhere(&fleet);
    fleet.start_control_plane().await;
    host.start(&fleet);
    operator.online("web-1").await;
    nowhere(&fleet);
}

/// Waits for the end of the only task of a job.
async fn ended(fleet: &Fleet, job_id: &str) -> (State, Reason, String) {
    eventually(PATIENCE, "the task is over", || async {
        let request = ListTasksRequest {
            job_id: job_id.to_owned(),
            ..ListTasksRequest::default()
        };
        let answer = fleet.operator().jobs().list_tasks(request).await.ok()?;
        let task = answer.into_inner().tasks.pop()?;
        let open = [State::Pending, State::Running].contains(&task.state());
        (!open).then(|| (task.state(), task.reason(), task.message.clone()))
    })
    .await
}

#[tokio::test]
async fn a_secret_waits_for_its_host_through_a_kill_and_a_restore() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    let waiting = fleet.operator().create(guarded("web-1", "true")).await;
    let waiting = waiting.unwrap();
    nowhere(&fleet);
    fleet.kill_control_plane();
    nowhere(&fleet);
    fleet.start_control_plane().await;
    let backup = backup(&fleet, "backup.tar").await;

    fleet.kill_control_plane();
    fs::remove_dir_all(fleet.data_dir().join("control-plane")).unwrap();
    let restored = fleet.cli(&["control-plane", "restore", &backup]).await;
    assert_eq!(restored.code(), 0, "{}", restored.stderr);
    fleet.start_control_plane().await;
    host.start(&fleet);
    fleet.operator().online("web-1").await;
    let released = fleet.cli(&["job", "release", "--all"]).await;
    assert_eq!(released.code(), 0, "{}", released.stderr);
    let (state, _, message) = ended(&fleet, &waiting.job_id).await;
    assert_eq!(state, State::Succeeded, "{message}");
    nowhere(&fleet);
}

#[tokio::test]
async fn a_secret_whose_key_is_gone_is_said_to_be() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    let waiting = fleet.operator().create(guarded("web-1", "true")).await;
    let waiting = waiting.unwrap();
    fleet.stop_control_plane().await;
    fs::remove_file(fleet.data_dir().join("control-plane/secrets.json")).unwrap();
    fleet.start_control_plane().await;
    host.start(&fleet);
    let (state, reason, message) = ended(&fleet, &waiting.job_id).await;
    assert_eq!((state, reason), (State::Rejected, Reason::StartFailed));
    assert!(message.contains("API_TOKEN"), "{message}");
}

#[tokio::test]
async fn an_agent_that_dies_before_the_start_does_not_start_without_the_secret() {
    let fleet = Fleet::start().await;
    let host = fleet.joined("web-1", &[]).await;
    hold(&fleet, &host).await;
    let job = fleet.operator().create(guarded("web-1", "true")).await;
    let job = job.unwrap();
    host.held_at(&fleet, "accepted").await;
    nowhere(&fleet);
    host.kill();
    host.start(&fleet);
    let (state, _, message) = ended(&fleet, &job.job_id).await;
    assert_eq!(state, State::Rejected, "{message}");
    assert!(message.contains("run it again"), "{message}");
    let again: Action = guarded("web-1", "true").action.unwrap();
    let again = fleet.operator().create(request("web-1", again)).await;
    again.unwrap().succeeds().await;
}

async fn hold(fleet: &Fleet, host: &Agent) {
    host.start_with(fleet, &[("MUSTER_FAILPOINT", "accepted")]);
    fleet.operator().online(host.name()).await;
}
