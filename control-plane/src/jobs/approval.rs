//! Jobs that await approval: letting them go, taking them back, saying what they wait for.

use std::sync::Arc;

use muster_proto::{
    ids::JobId,
    v1::{Action, Reason},
};

use super::{Job, Jobs};
use crate::{
    clock::now,
    model::{Order, State, Withdrawal},
    store::{Batch, StoreError},
};

impl Jobs {
    /// The job, if some of its tasks await approval.
    pub(crate) async fn awaiting(&self, id: JobId) -> Result<Option<Arc<Job>>, StoreError> {
        let job = self.job(id).await?;
        Ok(job.filter(|job| job.summary().counts.of(State::AwaitingApproval) > 0))
    }

    /// Whether some tasks of a job await approval; `None` of a job that is not in memory, as one that is over.
    pub(crate) fn awaits_now(&self, id: JobId) -> Option<bool> {
        let job = self.live_job(id)?;
        Some(job.summary().counts.of(State::AwaitingApproval) > 0)
    }

    /// The job.
    pub(crate) async fn find_job(&self, id: JobId) -> Result<Option<Arc<Job>>, StoreError> {
        self.job(id).await
    }

    /// What a job is to do, with its secrets; `None` if one of them is gone.
    pub(crate) fn action_of(&self, order: &Order) -> Option<Action> {
        self.0.dispatcher.secrets().open_action(order)
    }

    /// Every job of which some tasks await approval.
    pub(crate) fn all_awaiting(&self) -> Vec<Arc<Job>> {
        let awaits = |job: &Arc<Job>| {
            !job.order.approval_id.is_empty()
                && job.summary().counts.of(State::AwaitingApproval) > 0
        };
        self.live_jobs().into_iter().filter(awaits).collect()
    }

    /// Lets the tasks of a job go that await approval, with what else is in `batch`. Returns once that is durable;
    /// their hosts hear of them then.
    pub(crate) async fn approve(
        &self,
        job: &Arc<Job>,
        start_deadline_time: i64,
        mut batch: Batch,
        time: i64,
    ) -> Result<(), StoreError> {
        // The ledger has to have the job: what was just accepted may not be written yet.
        let _ = self.written_now().await?;
        batch.approve_job(job.order.job_id, start_deadline_time, time);
        self.0
            .store
            .writer
            .commit(batch)
            .await?
            .durable
            .wait()
            .await?;
        let approved = job.approve(start_deadline_time, time);
        // Written again, since a cancel may have come in between.
        self.mark(job, approved.iter().copied());
        for ordinal in approved {
            self.0
                .dispatcher
                .look(job.look(ordinal, |task| task.host_id));
        }
        Ok(())
    }

    /// Takes the tasks of a job back that await approval, which they will not get.
    pub(crate) async fn refuse(
        &self,
        job: &Arc<Job>,
        withdrawal: Withdrawal,
        reason: Reason,
        message: &str,
    ) -> Result<(), StoreError> {
        let awaits = job.tasks(|task| task.state == State::AwaitingApproval);
        let time = now();
        let mut taken_back = Vec::new();
        for (ordinal, _) in awaits {
            match job.withdraw(ordinal, withdrawal, reason, message.to_owned(), time) {
                Ok(_) => taken_back.push(ordinal),
                Err(error) => tracing::debug!(%error, "a task was not taken back: {error}"),
            }
        }
        self.mark(job, taken_back);
        let _ = self.written_now().await?;
        Ok(())
    }

    /// Says what the tasks of a job that await approval wait for.
    pub(crate) fn tell_awaiting(&self, job: &Arc<Job>, message: &str) {
        let told = job.await_approval(message);
        if !told.is_empty() {
            self.mark(job, told);
        }
    }
}
