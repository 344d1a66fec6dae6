use sqlx::Row as _;

use super::*;

fn host(name: &str) -> Batch {
    Batch::new().with(
        "INSERT INTO hosts (host_id, name, create_time) VALUES (?, ?, ?)",
        [Value::from(format!("h-{name}")), name.into(), now().into()],
    )
}

#[tokio::test]
async fn the_ledger_remembers_itself_and_is_held_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path()).await.unwrap();
    assert!(matches!(
        Store::open(directory.path()).await,
        Err(OpenError::Held(_))
    ));
    first.writer.commit(host("web-1")).await.unwrap();
    let (id, starts) = (Arc::clone(&first.control_plane_id), first.starts);
    let position = first.writer.syncer().now().position();
    drop(first);

    let second = Store::open(directory.path()).await.unwrap();
    assert_eq!(second.control_plane_id, id);
    assert_eq!(second.starts, starts + 1);
    assert!(second.writer.syncer().now().position() > position);
    let hosts: i64 = sqlx::query_scalar("SELECT count(*) FROM hosts")
        .fetch_one(&second.readers)
        .await
        .unwrap();
    assert_eq!(hosts, 1);
}

#[tokio::test]
async fn a_bad_batch_fails_alone_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    store.writer.commit(host("web-1")).await.unwrap();

    let clash = host("web-2").with(
        "INSERT INTO hosts (host_id, name, create_time) VALUES (?, ?, ?)",
        ["h-other".into(), "web-1".into(), Value::from(0)],
    );
    let (a, b, c) = tokio::join!(
        store.writer.commit(host("web-3")),
        store.writer.commit(clash),
        store.writer.commit(host("web-4")),
    );
    a.unwrap().durable.wait().await.unwrap();
    assert!(matches!(b, Err(StoreError::Conflict(_))));
    c.unwrap();
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM hosts ORDER BY name")
        .fetch_all(&store.readers)
        .await
        .unwrap();
    assert_eq!(names, ["web-1", "web-3", "web-4"]);
}

#[tokio::test]
async fn each_statement_has_its_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let batch = host("web-1")
        .with(
            "INSERT INTO hosts (host_id, name, create_time)
             SELECT value, value, 0 FROM json_each(?)",
            [r#"["a","b"]"#.into()],
        )
        .with(
            "SELECT name FROM hosts WHERE name <> ? ORDER BY name",
            ["b".into()],
        )
        .with("DELETE FROM hosts WHERE name = ?", ["none".into()]);
    let committed = store.writer.commit(batch).await.unwrap();
    let affected: Vec<u64> = committed.outcomes.iter().map(|o| o.affected).collect();
    assert_eq!((affected[0], affected[1], affected[3]), (1, 2, 0));
    let names: Vec<String> = committed.outcomes[2]
        .rows
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(names, ["a", "web-1"]);
}

#[tokio::test]
async fn a_newer_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    store
        .writer
        .commit(Batch::new().with(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'from the future', 1, x'00', 0)",
            [],
        ))
        .await
        .unwrap();
    drop(store);
    let error = Store::open(directory.path()).await.err().unwrap();
    assert!(
        matches!(error, OpenError::Newer { found: 9999, .. }),
        "{error}"
    );
}
