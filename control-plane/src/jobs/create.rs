//! Accepting a job: one record in the intake, then offers, then the caller's answer.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use muster_proto::{
    ids::{HostId, JobId},
    v1::Reason,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Job, Jobs, ids, record};
use crate::{
    clock::now,
    failpoint,
    model::{Entry, EntryText, Explain, Order, State, Task, Values},
    secrets::NotEncrypted,
    store::{
        Appended, Durable, StoreError,
        slot::{self, Taken},
    },
};

/// An order with what is settled at the moment that it is accepted.
#[derive(Debug, Clone)]
pub(crate) struct NewJob {
    /// What is asked for; its job's id is [`Jobs::id_of`] who asks.
    pub(crate) order: Order,
    /// The approval that the job's tasks wait for first, in words, if policy wants an approval.
    pub(crate) awaits: Option<String>,
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
    /// What looks secret cannot be written down.
    #[error(transparent)]
    NotEncrypted(#[from] NotEncrypted),
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
        let id = new.order.job_id;
        let _turn = self.turn(id).await;
        if let Some(earlier) = self.earlier_of(id, &new.order.request_digest).await? {
            return Ok(earlier);
        }
        if self.0.recorder.is_failing() || self.0.store.intake.is_full() {
            // Whoever asks hears that the ledger cannot be written, or waits until it is less behind.
            let _ = self.written_now().await?;
        }
        if !self.0.store.intake.syncer().healthy() {
            self.0
                .store
                .intake
                .syncer()
                .now()
                .wait()
                .await
                .map_err(StoreError::from)?;
        }
        self.accept(id, new).await
    }

    /// The id of the job that a principal asks for with this request id.
    pub(crate) fn id_of(&self, principal: &str, request_id: &str) -> JobId {
        ids::job_id(&self.0.store.control_plane_id, principal, request_id)
    }

    /// Encrypts the values that stand apart from an order.
    pub(crate) fn encrypted(&self, values: Values) -> Result<Values, CreateError> {
        Ok(self.0.dispatcher.secrets().close(values)?)
    }

    /// The job of an earlier request, if there was one.
    pub(crate) async fn earlier(
        &self,
        principal: &str,
        request_id: &str,
        request_digest: &[u8; 32],
    ) -> Result<Option<Created>, CreateError> {
        let id = ids::job_id(&self.0.store.control_plane_id, principal, request_id);
        self.earlier_of(id, request_digest).await
    }

    async fn earlier_of(
        &self,
        id: JobId,
        request_digest: &[u8; 32],
    ) -> Result<Option<Created>, CreateError> {
        if !self.0.known.may_hold(id) {
            return Ok(None);
        }
        let Some(job) = self.job(id).await? else {
            return Ok(None);
        };
        if job.order.request_digest != *request_digest {
            return Err(CreateError::RequestIdReused);
        }
        // It is in one of the two, and stays there.
        let ledger = self.0.store.writer.syncer().now();
        ledger.wait().await.map_err(StoreError::from)?;
        let durable = self.0.store.intake.syncer().now();
        Ok(Some(Created { job, durable }))
    }

    /// Waits until nobody else accepts or adopts this job.
    pub(super) async fn turn(&self, id: JobId) -> Turn<'_> {
        loop {
            let (first, turn) = watch::channel(());
            let mut other = match self.0.creating.0.lock().entry(id) {
                hash_map::Entry::Vacant(free) => {
                    free.insert(turn);
                    return Turn(self, id, first);
                }
                hash_map::Entry::Occupied(taken) => taken.get().clone(),
            };
            // Ends when the other drops its sender.
            let _ = other.changed().await;
        }
    }

    async fn accept(&self, id: JobId, new: NewJob) -> Result<Created, CreateError> {
        let order = Arc::new(new.order);
        let time = order.create_time;
        let tasks = new
            .targets
            .into_iter()
            .map(|target| {
                let task_id = ids::task_id(id, target.host_id);
                if let Some(message) = &new.awaits {
                    let mut task = Task::new(task_id, target.host_id, target.host_name, None, time);
                    task.state = State::AwaitingApproval;
                    message.clone_into(&mut task.message);
                    return task;
                }
                // What is attached now is offered right after the record: so that says it may be.
                let (offered, epoch) = self.0.dispatcher.fence(target.host_id).unzip();
                let mut task = Task::new(task_id, target.host_id, target.host_name, offered, time);
                task.offer_epoch = epoch.unwrap_or_default();
                task
            })
            .collect();
        let job = Job::new(order, tasks, None, "".into());
        failpoint::reached("asked").await;
        // The entry rides in the record: whatever happens from here on, the ledger gets both or neither.
        let mut taken = slot::take();
        let entry = taken.as_mut().map(|taken| entry(&job, taken.entry()));
        let record = record::encode(&job, entry.as_ref());
        let Appended { position, durable } = (self.0.store.intake)
            .append(record)
            .map_err(|error| StoreError::Broken(error.to_string().into()))?;
        taken.iter_mut().for_each(Taken::keep);
        failpoint::reached("committed").await;
        // From here to the offers nothing is waited for: a caller that goes away leaves nothing half done.
        self.0.known.add(id);
        let job = self.0.live.lock().add(job);
        self.0.recorder.mark_new(&job, Some(position), entry);
        for (ordinal, task) in job.tasks(|_| true) {
            self.0.output.begin(task.task_id);
            if task.state == State::AwaitingApproval {
                // No host hears of it before.
            } else if task.offered.is_none() {
                // It may have attached since.
                self.0.dispatcher.look(task.host_id);
            } else if !self
                .0
                .dispatcher
                .offer(&job.terms(), ordinal, &task, &new.trace)
            {
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

/// What the audit log says of a job that is accepted.
fn entry(job: &Job, entry: &mut Entry) -> EntryText {
    entry.request_digest = Some(job.order.request_digest);
    entry.hosts = job
        .tasks(|_| true)
        .iter()
        .map(|(_, task)| task.host_id)
        .collect();
    entry.effect.push(("job", job.order.job_id.to_string()));
    entry.text()
}

/// The turn of a job id; given back when dropped.
pub(super) struct Turn<'a>(&'a Jobs, JobId, #[allow(dead_code)] watch::Sender<()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.creating.0.lock().remove(&self.1);
    }
}

impl Explain for CreateError {
    fn reason(&self) -> Reason {
        match self {
            Self::RequestIdReused => Reason::RequestIdReused,
            Self::NotEncrypted(_) => Reason::Internal,
            Self::Ledger(StoreError::Closed) => Reason::ShuttingDown,
            Self::Ledger(_) => Reason::LedgerUnavailable,
        }
    }
}
