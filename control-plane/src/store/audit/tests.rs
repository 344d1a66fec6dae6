use muster_client::audit::{BEFORE_THE_FIRST, link};

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
    let rows = store.audit_after(0, i64::MAX).await.unwrap();
    let mut before = BEFORE_THE_FIRST;
    let mut methods = Vec::new();
    for (row, number) in rows.iter().zip(1..) {
        assert_eq!(row.number, number);
        let text = &row.entry;
        before = link(&before, text);
        assert_eq!(row.hash, before, "{text}");
        let object: serde_json::Value = serde_json::from_str(text).unwrap();
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
    for sql in [
        "DELETE FROM audit_blocks",
        "UPDATE audit_blocks SET entries = x''",
    ] {
        let changed = store.writer.commit(Batch::new().with(sql, [])).await;
        assert!(changed.is_err(), "{sql}");
    }
}

/// What an earlier version left: the entries so far, each in a row of its own.
async fn make_old(store: &Store) {
    let mut batch = Batch::new()
        .with("DROP TRIGGER audit_blocks_are_not_cut", [])
        .with("DELETE FROM audit_blocks", []);
    for row in store.audit_after(0, i64::MAX).await.unwrap() {
        batch.push(
            "INSERT INTO audit (number, time, entry, hash) VALUES (?, ?, ?, ?)",
            [
                row.number.into(),
                row.time.into(),
                row.entry.into(),
                row.hash.into(),
            ],
        );
    }
    let _ = store.writer.commit(batch).await.unwrap();
}

#[tokio::test]
async fn a_log_goes_on_behind_the_rows_of_an_earlier_version() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    for (name, method) in [("web-1", "a"), ("web-2", "b"), ("web-3", "c")] {
        let _ = store.writer.commit(host(name, method)).await.unwrap();
    }
    make_old(&store).await;
    let mut batch = host("web-4", "d");
    batch.record(entry("e"));
    let _ = store.writer.commit(batch).await.unwrap();
    let _ = store.writer.commit(host("web-5", "f")).await.unwrap();
    let all = ["audit.begin", "a", "b", "c", "d", "e", "f"];
    assert_eq!(methods(&store).await, all);

    // Page by page, whatever a page begins and ends with.
    let method = |row: &AuditRow| {
        let object: serde_json::Value = serde_json::from_str(&row.entry).unwrap();
        object["method"].as_str().unwrap().to_owned()
    };
    for (limit, looked_at_max) in [(1, 100), (2, 3), (3, 2), (100, 100), (5, 1)] {
        let mut listed = Vec::new();
        let mut before = i64::MAX;
        loop {
            let all = AuditFilter::default();
            let page = store.audit_page(&all, before, limit, looked_at_max);
            let (rows, next) = page.await.unwrap();
            listed.extend(rows.iter().map(method));
            match next {
                Some(next) => before = next,
                None => break,
            }
        }
        listed.reverse();
        assert_eq!(listed, all, "{limit} of {looked_at_max}");
    }
    let filter = AuditFilter {
        method: "e".to_owned(),
        ..AuditFilter::default()
    };
    let (found, _) = store.audit_page(&filter, i64::MAX, 9, 100).await.unwrap();
    assert_eq!(found.iter().map(|row| row.number).collect::<Vec<_>>(), [6]);
    let mut position = Position::EMPTY;
    for row in store.audit_after(0, i64::MAX).await.unwrap() {
        position = position.with(&row.entry);
        assert_eq!(store.audit_position_at(row.number).await.unwrap(), position);
    }
    assert_eq!(store.audit_position().await.unwrap(), position);
    assert_eq!(store.audit_lines(4, 1).await.unwrap()[0].0, 5);
}
