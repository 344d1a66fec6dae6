//! Accepting a job: one transaction, then offers, then the caller's answer.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;
use muster_proto::ids::{HostId, JobId};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Job, Jobs, Order, Task, ids};
use crate::{
    failpoint,
    store::{Durable, StoreError, jobs as rows, now},
};

/// What a caller asks for. Times are milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct NewJob {
    /// Who asks: `operator/ada`.
    pub(crate) principal: Arc<str>,
    /// Chosen by the caller.
    pub(crate) request_id: Arc<str>,
    /// SHA-256 of the request, whatever the order of its maps.
    pub(crate) request_digest: [u8; 32],
    /// As the caller gave it.
    pub(crate) selector: Arc<str>,
    /// A serialized `muster.v1.Action`.
    pub(crate) action: Bytes,
    /// How long hosts may take to start.
    pub(crate) start_deadline: i64,
    /// How long a silent host keeps its task from being lost.
    pub(crate) lost_after: i64,
    /// The hosts that match now, by name.
    pub(crate) targets: Vec<Target>,
    /// W3C trace context of the call.
    pub(crate) trace: HashMap<String, String>,
}

/// A host of a selection.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its id.
    pub(crate) host_id: HostId,
    /// Its name now.
    pub(crate) host_name: Arc<str>,
}

/// A job that survives the end of this process; `durable` tells when it survives a power cut.
pub(crate) struct Created {
    /// The job, new or as it stands after an earlier request with the same id.
    pub(crate) job: Arc<Job>,
    /// The caller is told after this.
    pub(crate) durable: Durable,
}

/// Why a job was not created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The same id stands for another request.
    #[error("request_id: it was used before for another request; choose a new one")]
    RequestIdReused,
    /// The ledger does not work.
    #[error(
        "the ledger could not be written ({0}): the job may have started; ask again with the same request_id"
    )]
    Ledger(#[from] StoreError),
}

/// Jobs that are being accepted: a second request with the same id waits for the first.
#[derive(Default)]
pub(super) struct Creating(Mutex<HashMap<JobId, watch::Receiver<()>>>);

impl Jobs {
    /// Accepts a job and offers its tasks to the hosts that are attached. The same request id and
    /// digest give the same job.
    pub(crate) async fn create(&self, new: NewJob) -> Result<Created, CreateError> {
        let jobs = self.clone();
        // A task of its own: a caller that goes away must not leave a job committed and not live.
        tokio::spawn(async move { jobs.accept(new).await })
            .await
            .map_err(|_| StoreError::Closed)?
    }

    /// The job of an earlier request, if there was one.
    pub(crate) async fn earlier(
        &self,
        principal: &str,
        request_id: &str,
        request_digest: &[u8; 32],
    ) -> Result<Option<Created>, CreateError> {
        let id = ids::job_id(&self.0.store.control_plane_id, principal, request_id);
        let Some(job) = self.job(id).await? else {
            return Ok(None);
        };
        if job.order.request_digest != *request_digest {
            return Err(CreateError::RequestIdReused);
        }
        let durable = self.0.store.writer.syncer().now();
        Ok(Some(Created { job, durable }))
    }

    async fn accept(&self, new: NewJob) -> Result<Created, CreateError> {
        let id = ids::job_id(
            &self.0.store.control_plane_id,
            &new.principal,
            &new.request_id,
        );
        let _turn = loop {
            let (first, turn) = watch::channel(());
            let mut other = match self.0.creating.0.lock().entry(id) {
                Entry::Vacant(free) => {
                    free.insert(turn);
                    break Turn(self, id, first);
                }
                Entry::Occupied(taken) => taken.get().clone(),
            };
            // Ends when the other drops its sender.
            let _ = other.changed().await;
        };
        let again = |created: Option<Created>| created.ok_or(StoreError::Closed.into());
        if self.live_job(id).is_some() {
            let earlier = self
                .earlier(&new.principal, &new.request_id, &new.request_digest)
                .await?;
            return again(earlier);
        }

        let time = now();
        let order = Arc::new(Order {
            job_id: id,
            principal: new.principal,
            request_id: new.request_id,
            request_digest: new.request_digest,
            selector: new.selector,
            action: new.action,
            create_time: time,
            start_deadline_time: time.saturating_add(new.start_deadline),
            lost_after: new.lost_after,
        });
        let tasks = new
            .targets
            .into_iter()
            .map(|target| {
                // What is attached now is offered right after the commit: so the row says it may be.
                let (offered, epoch) = self.0.dispatcher.fence(target.host_id).unzip();
                let task_id = ids::task_id(id, target.host_id);
                let mut task = Task::new(task_id, target.host_id, target.host_name, offered, time);
                task.offer_epoch = epoch.unwrap_or_default();
                task
            })
            .collect();
        let job = Job::new(Arc::clone(&order), tasks, None, "".into());
        let durable = match self.0.store.writer.commit(rows::insert(&job)).await {
            Ok(committed) => committed.durable,
            Err(StoreError::Conflict(_)) => {
                let earlier = self
                    .earlier(&order.principal, &order.request_id, &order.request_digest)
                    .await?;
                return again(earlier);
            }
            Err(error) => return Err(error.into()),
        };
        failpoint::reached("committed").await;
        let job = self.0.live.lock().add(job);
        for (ordinal, task) in job.tasks(|_| true) {
            self.0.output.begin(task.task_id);
            if task.offered.is_none() {
                // It may have attached since.
                self.0.dispatcher.look(task.host_id);
            } else if !self.0.dispatcher.offer(&job, ordinal, &task, &new.trace) {
                if job.offer_failed(ordinal, task.offer_epoch, now()) {
                    self.mark(&job, [ordinal]);
                }
                self.0.dispatcher.look(task.host_id);
            }
        }
        failpoint::reached("offered").await;
        Ok(Created { job, durable })
    }
}

struct Turn<'a>(&'a Jobs, JobId, #[allow(dead_code)] watch::Sender<()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.creating.0.lock().remove(&self.1);
    }
}
