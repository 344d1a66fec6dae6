use muster_client::audit::{BEFORE_THE_FIRST, link};
use sqlx::Row as _;

use super::*;
use crate::{
    model::EntryText,
    store::{Batch, Store, StoreError},
};

fn entry(method: &'static str) -> EntryText {
    Entry::new(method).text()
}

fn host(name: &str, method: &'static str) -> Batch {
    let mut batch = Batch::new().with(
        "INSERT INTO hosts (host_id, name, create_time) VALUES (?, ?, ?)",
        [
            Value::from(format!("h-{name}")),
            name.into(),
            Value::from(0),
        ],
    );
    batch.record(entry(method));
    batch
}

/// The methods in the log, whose chain must hold.
async fn methods(store: &Store) -> Vec<String> {
    let rows = sqlx::query("SELECT number, entry, hash FROM audit ORDER BY number")
        .fetch_all(&store.readers)
        .await
        .unwrap();
    let mut before = BEFORE_THE_FIRST;
    let mut methods = Vec::new();
    for (row, number) in rows.iter().zip(1..) {
        assert_eq!(row.get::<i64, _>(0), number);
        let text: String = row.get(1);
        let hash: Vec<u8> = row.get(2);
        before = link(&before, &text);
        assert_eq!(hash, before, "{text}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["number"], number);
        methods.push(object["method"].as_str().unwrap().to_owned());
    }
    methods
}

#[tokio::test]
async fn what_is_committed_is_in_the_log_and_what_fails_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let _ = store.writer.commit(host("web-1", "a")).await.unwrap();
    let (b, clash, c) = tokio::join!(
        store.writer.commit(host("web-2", "b")),
        store.writer.commit(host("web-1", "clash")),
        store.writer.commit(host("web-3", "c")),
    );
    assert!(b.is_ok() && c.is_ok());
    assert!(matches!(clash, Err(StoreError::Conflict(_))));
    assert_eq!(methods(&store).await, ["audit.begin", "a", "b", "c"]);

    // The next process goes on with the chain.
    store.writer.flush().await.unwrap();
    drop(store);
    let store = Store::open(directory.path()).await.unwrap();
    let _ = store.writer.commit(host("web-4", "d")).await.unwrap();
    assert_eq!(methods(&store).await, ["audit.begin", "a", "b", "c", "d"]);
}

#[tokio::test]
async fn what_is_in_the_log_stays_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    for sql in ["DELETE FROM audit", "UPDATE audit SET entry = '{}'"] {
        let changed = store.writer.commit(Batch::new().with(sql, [])).await;
        assert!(changed.is_err(), "{sql}");
    }
}
