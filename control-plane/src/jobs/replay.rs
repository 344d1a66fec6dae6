//! At the start: what the last process accepted goes into the ledger, where it is not there yet.

use std::{collections::HashSet, io, sync::Arc};

use muster_proto::ids::JobId;

use super::{Job, record};
use crate::{
    model::EntryText,
    store::{
        Batch, Store, StoreError,
        jobs::{self as rows, Placed},
    },
};

/// Jobs in one transaction.
const JOBS_EACH: usize = 500;

/// Puts into the ledger what the intake holds and the ledger does not, and begins the intake anew.
pub(super) async fn replay(store: &Store) -> Result<(), StoreError> {
    let broken = |error: io::Error| StoreError::Broken(format!("the intake: {error}").into());
    let mut replayed = 0;
    for jobs in decode(&store.intake.left())
        .map_err(broken)?
        .chunks(JOBS_EACH)
    {
        let there = rows::existing(&store.readers, &ids(jobs)).await?;
        let (batch, missing) = missing(jobs, &there);
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

/// Jobs that the intake held when a copy of the ledger was begun.
pub(crate) struct Accepted(Vec<Recorded>);

/// A job with what the audit log says of it.
type Recorded = (Job, Option<EntryText>);

impl Accepted {
    /// Reads their records.
    pub(crate) fn decode(records: &[Vec<u8>]) -> io::Result<Self> {
        decode(records).map(Self)
    }

    /// Their ids.
    pub(crate) fn ids(&self) -> Vec<JobId> {
        ids(&self.0)
    }

    /// Writes those that are not there.
    pub(crate) fn missing(&self, there: &HashSet<JobId>) -> Batch {
        missing(&self.0, there).0
    }
}

fn decode(records: &[Vec<u8>]) -> io::Result<Vec<Recorded>> {
    let jobs = records.iter().map(|bytes| record::decode(bytes));
    jobs.collect::<Option<_>>()
        .ok_or_else(|| io::Error::other("it holds a record that this version cannot read"))
}

fn ids(jobs: &[Recorded]) -> Vec<JobId> {
    jobs.iter().map(|(job, _)| job.order.job_id).collect()
}

/// Writes those jobs that are not there, and says how many. What is there may have gone on since it was accepted.
fn missing(jobs: &[Recorded], there: &HashSet<JobId>) -> (Batch, usize) {
    let missing: Vec<_> = jobs
        .iter()
        .filter(|(job, _)| !there.contains(&job.order.job_id))
        .collect();
    let tasks: Vec<_> = missing
        .iter()
        .flat_map(|(job, _)| {
            let placed = |(ordinal, task)| Placed {
                order: Arc::clone(&job.order),
                ordinal,
                task,
            };
            job.tasks(|_| true).into_iter().map(placed)
        })
        .collect();
    let summaries: Vec<_> = missing.iter().map(|(job, _)| job.summary()).collect();
    let mut batch = rows::put(&summaries, &tasks, &[]);
    for entry in missing.iter().filter_map(|(_, entry)| entry.as_ref()) {
        batch.record(entry.clone());
    }
    (batch, missing.len())
}
