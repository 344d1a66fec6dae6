//! At the start: what the last process accepted goes into the ledger, where it is not there yet.

use std::{io, sync::Arc};

use super::record;
use crate::store::{
    Store, StoreError,
    jobs::{self as rows, Accepted, Placed},
};

/// Jobs in one transaction.
const JOBS_EACH: usize = 500;

/// Puts into the ledger what the intake holds and the ledger does not, and begins the intake anew.
pub(super) async fn replay(store: &Store) -> Result<(), StoreError> {
    let broken = |error: io::Error| StoreError::Broken(format!("the intake: {error}").into());
    let mut replayed = 0;
    let mut left = decode(&store.intake.left()).map_err(broken)?.into_iter();
    loop {
        let jobs: Vec<_> = left.by_ref().take(JOBS_EACH).collect();
        if jobs.is_empty() {
            break;
        }
        let ids: Vec<_> = jobs.iter().map(Accepted::job_id).collect();
        let there = rows::existing(&store.readers, &ids).await?;
        let (batch, missing) = rows::put_missing(jobs, &there);
        if missing > 0 {
            let _ = store.writer.commit(batch).await?;
        }
        replayed += missing;
    }
    if replayed > 0 {
        tracing::warn!(
            replayed,
            "{replayed} jobs were accepted just before the last process ended, and are in the ledger now"
        );
    }
    store.writer.flush().await?;
    store.intake.begin().map_err(broken)
}

/// The jobs of these records of the intake, in order. Fails if this version cannot read one.
pub(crate) fn decode(records: &[Vec<u8>]) -> io::Result<Vec<Accepted>> {
    let jobs = records.iter().map(|bytes| accepted(bytes));
    jobs.collect::<Option<_>>()
        .ok_or_else(|| io::Error::other("it holds a record that this version cannot read"))
}

fn accepted(bytes: &[u8]) -> Option<Accepted> {
    let (job, entry) = record::decode(bytes)?;
    let placed = |(ordinal, task)| Placed {
        order: Arc::clone(&job.order),
        ordinal,
        task,
    };
    Some(Accepted {
        tasks: job.tasks(|_| true).into_iter().map(placed).collect(),
        job: job.summary(),
        entry,
    })
}
