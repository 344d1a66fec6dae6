//! The audit log: who asked for what, on which hosts, how it was decided and what came of it.
//!
//! Entries are chained by the ledger's one writer (`store/audit.rs`), so what changes something and its entry are in
//! one transaction. An entry gets there on one of three roads:
//!
//! - A call that changes something carries its entry with it (`audit/call.rs`), and the first commit that it makes
//!   takes it along.
//! - The entry of a job rides in the job's record in the intake, and the end of a task with the task (`jobs/`).
//! - What changes nothing in the ledger, as a refusal, waits here and is written behind. Of these there may be many:
//!   `audit/flood.rs` says how many are written.

mod call;
mod cost;
mod flood;
mod heads;

use std::{mem, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use self::cost::AuditCost;
use self::flood::Flood;
pub(crate) use self::{
    call::{Call, about_job, decided, effect, hosts, principal},
    heads::{HeadError, Heads},
};
use crate::{
    clock::now,
    model::{Entry, EntryText},
    store::{Batch, StoreError, Writer},
};

/// How long an entry may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(50);

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// How often what was counted is looked at.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Entries that wait to be written; what comes beyond is counted, and its number written.
const WAITING_MAX: usize = 10_000;

/// Entries in one transaction.
const BATCH_MAX: usize = 500;

/// Takes entries. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Audit(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    entries: Vec<EntryText>,
    flood: Flood,
    /// Entries that found no room.
    dropped: u64,
}

impl Waiting {
    fn push(&mut self, entry: &Entry) {
        if self.entries.len() < WAITING_MAX {
            self.entries.push(entry.text());
        } else {
            self.dropped += 1;
        }
    }
}

impl Audit {
    /// Notes what changes nothing in the ledger, as a refusal. Never waits; what one principal or stranger causes too
    /// often is counted instead.
    pub(crate) fn record(&self, entry: Entry) {
        let mut waiting = self.0.waiting.lock();
        let now = now();
        if let Some(entry) = waiting.flood.admit(entry, now) {
            waiting.push(&entry);
            drop(waiting);
            self.0.wake.notify_one();
        }
    }

    /// Writes what waits until stopped. What comes after that waits for `flush`.
    pub(crate) async fn run(self, writer: Writer, stop: CancellationToken) {
        loop {
            let until = Instant::now() + COUNT_EVERY;
            tokio::select! {
                _ = timeout_at(until, self.0.wake.notified()) => {}
                () = stop.cancelled() => return,
            }
            // Others may come along; nobody waits for these.
            sleep(GATHER).await;
            if let Err(error) = self.write(&writer, false).await {
                tracing::error!(%error, "entries of the audit log were not written, trying again: {error}");
                sleep(RETRY).await;
            }
        }
    }

    /// Writes all that waits, and what was counted so far.
    pub(crate) async fn flush(&self, writer: &Writer) -> Result<(), StoreError> {
        self.write(writer, true).await
    }

    async fn write(&self, writer: &Writer, all: bool) -> Result<(), StoreError> {
        let mut taken = self.take(all);
        while !taken.is_empty() {
            let rest = taken.split_off(taken.len().min(BATCH_MAX));
            let mut batch = Batch::new();
            for entry in &taken {
                batch.record(entry.clone());
            }
            if let Err(error) = writer.commit(batch).await {
                taken.extend(rest);
                let mut waiting = self.0.waiting.lock();
                let newer = mem::replace(&mut waiting.entries, taken);
                waiting.entries.extend(newer);
                return Err(error);
            }
            taken = rest;
        }
        Ok(())
    }

    /// All that waits, with what was counted and is due.
    fn take(&self, all: bool) -> Vec<EntryText> {
        let mut waiting = self.0.waiting.lock();
        let now = now();
        let due = if all {
            waiting.flood.rest(now)
        } else {
            waiting.flood.due(now)
        };
        let mut taken = mem::take(&mut waiting.entries);
        taken.extend(due.iter().map(Entry::text));
        let dropped = mem::take(&mut waiting.dropped);
        if dropped > 0 {
            taken.push(Entry::unwritten(dropped, now).text());
        }
        taken
    }
}
