//! What time overtakes: silent hosts, expired tasks, old history.

use std::time::Duration;

use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    approvals::Approvals,
    clock::now,
    hosts::{Bar, Inventory},
    jobs::Jobs,
    sessions::{End, Sessions},
    store::Syncer,
};

/// How often deadlines are looked at; they are kept to this.
const TICK: Duration = Duration::from_secs(1);

/// How often old history is deleted, in ticks, as everything rare here.
const FORGET_EVERY: u64 = 600;

/// How often old output is dropped.
const OUTPUT_EVERY: u64 = 60;

/// Jobs that are deleted in one transaction.
const FORGET_MAX: i64 = 100;

/// A job, and with it the memory of its request id, is kept at least this long.
const KEEP_MIN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Runs until stopped. `keep`: how long a job stays after its end, 7 d at least.
pub(crate) async fn run(
    jobs: Jobs,
    approvals: Approvals,
    connections: Sessions,
    syncer: Syncer,
    inventory: Inventory,
    keep: Duration,
    stop: CancellationToken,
) {
    let mut bars = inventory.bars();
    let start = now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count: u64 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            bar = bars.recv() => match bar {
                Ok(Bar::Removed(host)) => {
                    connections.end(host, End::Removed);
                    jobs.sweep_host(host);
                }
                Ok(Bar::Locked(host)) => connections.end(host, End::Locked),
                Err(RecvError::Lagged(_)) => connections.end_barred(&inventory),
                Err(RecvError::Closed) => return,
            },
            _ = ticks.tick() => {
                jobs.sweep(start);
                approvals.sweep().await;
                if count.is_multiple_of(FORGET_EVERY) && syncer.healthy() {
                    forget(&jobs, &approvals, keep.max(KEEP_MIN)).await;
                }
                if count.is_multiple_of(OUTPUT_EVERY) {
                    jobs.sweep_output().await;
                }
                count += 1;
            }
        }
    }
}

async fn forget(jobs: &Jobs, approvals: &Approvals, keep: Duration) {
    let before = now() - i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    if let Err(error) = approvals.forget_before(before).await {
        tracing::warn!(%error, "old approvals were not deleted: {error}");
    }
    loop {
        match jobs.forget_before(before, FORGET_MAX).await {
            Ok(0) => break,
            Ok(deleted) => tracing::info!(deleted, "deleted {deleted} old jobs"),
            Err(error) => {
                tracing::warn!(%error, "old jobs were not deleted: {error}");
                return;
            }
        }
    }
    if let Err(error) = jobs.forget_receipts(before).await {
        tracing::warn!(%error, "old receipts were not deleted: {error}");
    }
}
