//! What an entry costs, measured on a ledger that has nothing else to do.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_client::audit::Position;
use muster_proto::ids::HostId;

use crate::{
    model::Entry,
    store::{Batch, Store, StoreError},
};

/// Entries in one transaction where there are many.
const MANY: usize = 100;

/// What an entry costs.
#[derive(Debug, Clone, Copy)]
pub struct AuditCost {
    /// To make one and to write it as text, as a call does on its way.
    pub made: Duration,
    /// To number it and to chain it to the one before, as the writer does.
    pub chained: Duration,
    /// A transaction that changes one row and records nothing.
    pub alone: Duration,
    /// The same with an entry.
    pub with_entry: Duration,
    /// The share of one in a transaction of a hundred.
    pub among_many: Duration,
    /// Bytes of an entry's text.
    pub text_bytes: f64,
    /// Bytes that the ledger grew by for each.
    pub ledger_bytes: f64,
}

impl AuditCost {
    /// Measures with so many entries as a command makes them, in a new ledger in `directory`. What goes wrong is said
    /// in words.
    pub async fn measure(directory: &Path, entries: usize) -> Result<Self, String> {
        let store = Store::open(directory)
            .await
            .map_err(|error| error.to_string())?;
        measure(&store, entries.max(MANY))
            .await
            .map_err(|error| error.to_string())
    }
}

async fn measure(store: &Store, entries: usize) -> Result<AuditCost, StoreError> {
    let count = u32::try_from(entries).unwrap_or(u32::MAX);
    let started = Instant::now();
    let texts: Vec<_> = (0..entries)
        .map(|number| of_a_command(number).text())
        .collect();
    let made = started.elapsed() / count;

    let started = Instant::now();
    let mut position = Position::EMPTY;
    for text in &texts {
        position = position.with(&format!("{{\"number\":1,{}}}", text.members()));
    }
    let chained = started.elapsed() / count;

    // In turn, so that both see the same disk.
    let (mut alone, mut with_entry) = (Duration::ZERO, Duration::ZERO);
    let change = || {
        let mut batch = Batch::new();
        batch.change_nothing();
        batch
    };
    for text in &texts {
        let started = Instant::now();
        store.writer.commit(change()).await?;
        alone += started.elapsed();
        let mut batch = change();
        batch.record(text.clone());
        let started = Instant::now();
        store.writer.commit(batch).await?;
        with_entry += started.elapsed();
    }
    let before = store.ledger_bytes().await?;
    let started = Instant::now();
    for texts in texts.chunks(MANY) {
        let mut batch = change();
        for text in texts {
            batch.record(text.clone());
        }
        store.writer.commit(batch).await?;
    }
    let among_many = started.elapsed() / count;
    let after = store.ledger_bytes().await?;
    #[allow(clippy::cast_precision_loss)]
    let each = |bytes: u64| bytes as f64 / entries as f64;
    let text_bytes: usize = texts.iter().map(|text| text.len()).sum();
    Ok(AuditCost {
        made,
        chained,
        alone: alone / count,
        with_entry: with_entry / count,
        among_many,
        text_bytes: each(text_bytes as u64),
        ledger_bytes: each(after.saturating_sub(before)),
    })
}

/// What the log says of a command that an AI client runs on one host.
fn of_a_command(number: usize) -> Entry {
    let mut digest = [7; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    let mut entry = Entry::new("muster.v1.JobService/RunJob".to_owned())
        .by("ai/claude")
        .on(HostId::from_bytes(&digest))
        .with("job", format!("j-{number:026}"));
    entry.via = "gateway/local".into();
    entry.address = "127.0.0.1:51812".into();
    entry.rules = vec![Arc::from("kinds"), Arc::from("ai-up-to-edit")];
    entry.request_digest = Some(digest);
    entry.trace_id = format!("{number:032x}").into();
    entry
}
