//! Tasks that a restore holds back, and letting them go.

use std::collections::HashSet;

use muster_proto::ids::JobId;

use super::Jobs;
use crate::{
    clock::now,
    store::{StoreError, restores as rows},
};

/// What was released.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Released {
    /// Jobs that had held tasks.
    pub(crate) jobs: usize,
    /// Their tasks that were held.
    pub(crate) tasks: usize,
}

impl Jobs {
    /// Holds every pending task that was created before `before`, in memory: the ledger is told by who calls this.
    pub(crate) fn hold(&self, before: i64, time: i64) {
        for job in self.live_jobs() {
            if job.order.create_time < before {
                job.hold(time);
            }
        }
    }

    /// Releases held tasks: of these jobs, or of all. Returns once that is durable; `Err` with the id of a job that
    /// there is not.
    pub(crate) async fn release(
        &self,
        ids: Option<Vec<JobId>>,
        by: &str,
    ) -> Result<Result<Released, JobId>, StoreError> {
        let jobs = match ids {
            None => self.live_jobs(),
            Some(ids) => {
                let mut jobs = Vec::new();
                for id in ids.into_iter().collect::<HashSet<_>>() {
                    match self.job(id).await? {
                        Some(job) => jobs.push(job),
                        None => return Ok(Err(id)),
                    }
                }
                jobs
            }
        };
        let held: Vec<_> = jobs.into_iter().filter(|job| job.holds() > 0).collect();
        if held.is_empty() {
            return Ok(Ok(Released::default()));
        }
        let ids: Vec<_> = held.iter().map(|job| job.order.job_id).collect();
        let time = now();
        let committed = self
            .0
            .store
            .writer
            .commit(rows::release(&ids, time))
            .await?;
        committed.durable.wait().await?;
        let mut released = Released::default();
        for job in held {
            let hosts = job.release(time);
            released.jobs += usize::from(!hosts.is_empty());
            released.tasks += hosts.len();
            for host in hosts {
                self.0.dispatcher.look(host);
            }
        }
        tracing::info!(
            by,
            "{by} released {} held tasks of {} jobs",
            released.tasks,
            released.jobs
        );
        Ok(Ok(released))
    }
}
