use std::{borrow::Cow, path::Path};

use muster_proto::{
    ids::{HostId, JobId},
    v1::{Command, Confinement, Mode, action::Kind},
};
use sqlx::{Executor as _, sqlite::SqliteConnectOptions};

use crate::{
    model::{Action, JobState, redaction::REDACTED},
    store::{MIGRATIONS, Store, backup, jobs},
};

use super::*;

const CLOSED: &str = "muster-secret-1:0:AAAA";

fn action(value: &str) -> muster_proto::v1::Action {
    muster_proto::v1::Action {
        kind: Some(Kind::Command(Command {
            argv: vec!["true".into()],
            env: [("API_TOKEN".to_owned(), value.to_owned())].into(),
            ..Command::default()
        })),
    }
}

fn confinement() -> Confinement {
    Confinement {
        mode: Mode::Edit.into(),
        ..Confinement::default()
    }
}

fn id(number: u8) -> JobId {
    JobId::from_bytes(&[number; 32])
}

const STATES: [&str; 3] = ["pending", "running", "succeeded"];

/// A ledger as the version before wrote it: a job that waits, one that runs, one that is over.
async fn ledger_before(directory: &Path) {
    let options = SqliteConnectOptions::new()
        .filename(directory.join("ledger.db"))
        .create_if_missing(true)
        .foreign_keys(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let before = MIGRATIONS.iter().filter(|migration| migration.version < 12);
    let before = sqlx::migrate::Migrator {
        migrations: Cow::Owned(before.cloned().collect()),
        ..sqlx::migrate::Migrator::DEFAULT
    };
    before
        .run_direct(None, &mut connection, false)
        .await
        .unwrap();
    connection
        .execute("INSERT INTO ledger VALUES (1, 'c-1', 'g-1', 1, 1, NULL)")
        .await
        .unwrap();
    for (number, state) in (1..).zip(STATES) {
        let value = if number == 3 { REDACTED } else { CLOSED };
        sqlx::query(
            "INSERT INTO jobs (job_id, principal, request_id, request_digest, selector, action, create_time,
                 start_deadline_time, lost_after, note, state, confinement, reason, approval_id)
             VALUES (?, 'operator/ada', 'r-1', ?, 'all', ?, 5, 605, 7, '', ?, ?, 'to see', '')",
        )
        .bind(id(number).to_string())
        .bind(vec![2; 32])
        .bind(action(value).encode_to_vec())
        .bind(state)
        .bind(confinement().encode_to_vec())
        .execute(&mut connection)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO tasks (task_id, job_id, ordinal, host_id, host_name, create_time, state, state_time)
             VALUES (?, ?, 0, ?, 'web-1', 5, ?, 5)",
        )
        .bind(muster_proto::ids::TaskId::from_bytes(&[number; 32]).to_string())
        .bind(id(number).to_string())
        .bind(HostId::from_bytes(&[number; 32]).to_string())
        .bind(state)
        .execute(&mut connection)
        .await
        .unwrap();
    }
    connection.close().await.unwrap();
}

async fn check(store: &Store) {
    for (number, state) in (1..).zip(STATES) {
        let job = jobs::load_one(&store.readers, id(number)).await.unwrap();
        let job = job.unwrap();
        assert_eq!(job.tasks.len(), 1);
        assert_eq!(job.tasks[0].state.name(), state);
        let order = &job.order;
        assert_eq!(order.action, Action::new(action("hush")).0);
        let kept = order.secrets.get("API_TOKEN").map(String::as_str);
        assert_eq!(kept, (number < 3).then_some(CLOSED));
        assert_eq!((&*order.request_id, order.request_digest), ("r-1", [2; 32]));
        assert_eq!((&*order.selector, &*order.reason), ("all", "to see"));
        assert_eq!(order.confinement, confinement());
        let times = (
            order.create_time,
            order.start_deadline_time,
            order.lost_after,
        );
        assert_eq!(times, (5, 605, 7));
    }
    let listed = jobs::list(&store.readers, &Default::default(), None, 10).await;
    let mut states: Vec<_> = listed.unwrap().iter().map(|job| job.state).collect();
    states.sort_unstable_by_key(|state| state.name());
    let expected = [JobState::Pending, JobState::Running, JobState::Succeeded];
    assert_eq!(states, expected);
}

#[tokio::test]
async fn a_ledger_of_the_version_before_is_taken_up_and_so_is_its_backup() {
    let directory = tempfile::tempdir().unwrap();
    ledger_before(directory.path()).await;
    let store = Store::open(directory.path()).await.unwrap();
    check(&store).await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM orders_before")
        .fetch_one(&store.readers)
        .await
        .unwrap();
    assert_eq!(left, 0);

    let elsewhere = tempfile::tempdir().unwrap();
    let (from, to) = (
        directory.path().join("ledger.db"),
        elsewhere.path().join("ledger.db"),
    );
    backup::copy(&from, &to, Vec::new(), 1).await.unwrap();
    check(&Store::open(elsewhere.path()).await.unwrap()).await;
}

#[tokio::test]
async fn what_was_interrupted_goes_on_and_a_lost_record_is_named() {
    let directory = tempfile::tempdir().unwrap();
    ledger_before(directory.path()).await;
    let path = directory.path().join("ledger.db");
    let mut connection = crate::store::database::connect(&path, &MIGRATIONS)
        .await
        .unwrap();
    assert!(some(&mut connection, 1).await.unwrap());
    connection.close().await.unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    check(&store).await;

    let lose = crate::store::Batch::new().with("UPDATE jobs SET record = NULL", []);
    store.writer.commit(lose).await.unwrap();
    let error = jobs::load_one(&store.readers, id(1)).await.err().unwrap();
    assert!(error.to_string().contains(&id(1).to_string()), "{error}");
}
