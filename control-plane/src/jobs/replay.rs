//! At the start: what the last process accepted goes into the ledger, where it is not there yet.

use std::sync::Arc;

use super::{Job, record};
use crate::store::{
    Store, StoreError,
    jobs::{self as rows, Placed},
};

/// Jobs in one transaction.
const JOBS_EACH: usize = 500;

/// Puts into the ledger what the intake holds and the ledger does not, and begins the intake anew.
pub(super) async fn replay(store: &Store) -> Result<(), StoreError> {
    let broken = |why: &str| StoreError::Broken(format!("the intake {why}").into());
    let mut jobs = Vec::new();
    for bytes in store.intake.left() {
        let job = record::decode(&bytes);
        jobs.push(job.ok_or_else(|| broken("holds a record that this version cannot read"))?);
    }
    let mut replayed = 0;
    for jobs in jobs.chunks(JOBS_EACH) {
        replayed += put(store, jobs).await?;
    }
    if replayed > 0 {
        tracing::warn!(
            replayed,
            "{replayed} jobs were accepted just before the last process ended, and are in the ledger now"
        );
    }
    store.writer.flush().await?;
    store
        .intake
        .begin()
        .map_err(|error| broken(&format!("cannot be written: {error}")))
}

async fn put(store: &Store, jobs: &[Job]) -> Result<usize, StoreError> {
    let ids: Vec<_> = jobs.iter().map(|job| job.order.job_id).collect();
    // What is there may have gone on since it was accepted.
    let there = rows::existing(&store.readers, &ids).await?;
    let missing: Vec<_> = jobs
        .iter()
        .filter(|job| !there.contains(&job.order.job_id))
        .collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let tasks: Vec<_> = missing
        .iter()
        .flat_map(|job| {
            let placed = |(ordinal, task)| Placed {
                order: Arc::clone(&job.order),
                ordinal,
                task,
            };
            job.tasks(|_| true).into_iter().map(placed)
        })
        .collect();
    let summaries: Vec<_> = missing.iter().map(|job| job.summary()).collect();
    let batch = rows::put(&summaries, &tasks, &[]);
    let _ = store.writer.commit(batch).await?;
    Ok(missing.len())
}
