//! Ending tasks on request.

use std::{collections::HashSet, sync::Arc};

use muster_proto::{
    ids::{HostId, JobId},
    v1::Reason,
};

use super::{Job, Jobs};
use crate::{
    audit,
    clock::now,
    model::{Summary, Withdrawal},
    store::{
        StoreError,
        slot::{self, Taken},
    },
};

impl Jobs {
    /// Wishes for the open tasks of a job, or those on some hosts, to be ended. Returns once the wish
    /// is durable; `None` if there is no such job.
    pub(crate) async fn cancel(
        &self,
        id: JobId,
        hosts: Option<HashSet<HostId>>,
        grace: Option<i64>,
        by: Arc<str>,
    ) -> Result<Option<Summary>, StoreError> {
        let Some(job) = self.job(id).await? else {
            return Ok(None);
        };
        let wished = job.wish_cancel(&by, grace, now(), |task| {
            hosts
                .as_ref()
                .is_none_or(|hosts| hosts.contains(&task.host_id))
        });
        for ordinal in &wished {
            self.end(&job, *ordinal, &by);
        }
        audit::effect("job", id);
        audit::hosts(wished.iter().map(|at| job.look(*at, |task| task.host_id)));
        if !wished.is_empty() {
            let mut taken = slot::take();
            let entry = taken.as_mut().map(|taken| taken.entry().text());
            self.0.recorder.mark_for(&job, wished, entry);
            taken.iter_mut().for_each(Taken::keep);
        }
        self.written_now().await?.wait().await?;
        Ok(Some(job.summary()))
    }

    /// Wishes for every open task of these principals to be ended, and returns once the wishes are durable: in how
    /// many jobs.
    pub(crate) async fn cancel_all_of(
        &self,
        principals: &[String],
        by: &Arc<str>,
    ) -> Result<usize, StoreError> {
        let mut jobs = 0;
        for job in self.live_jobs() {
            if !principals.iter().any(|name| **name == *job.order.principal) {
                continue;
            }
            let wished = job.wish_cancel(by, None, now(), |_| true);
            for ordinal in &wished {
                self.end(&job, *ordinal, by);
            }
            if !wished.is_empty() {
                jobs += 1;
                self.mark(&job, wished);
            }
        }
        self.written_now().await?.wait().await?;
        Ok(jobs)
    }

    fn end(&self, job: &Arc<Job>, ordinal: u32, by: &str) {
        let message = format!("cancelled by {by} before it was offered to its host");
        let withdrawn = job.withdraw(
            ordinal,
            Withdrawal::Cancelled,
            Reason::CancelRequested,
            message,
            now(),
        );
        if withdrawn.is_err() {
            // It may have left: its host decides, and says so. A host that is away hears it at attach.
            self.0.dispatcher.cancel(job, &job.task(ordinal));
        }
    }
}
