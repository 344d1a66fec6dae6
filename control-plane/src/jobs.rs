//! One request becomes one task per host.
//!
//! Jobs that are not done are live: here, in memory, loaded at start. What agents report changes them
//! at once, wakes watchers, and is written behind. A job that is done is read from the ledger.

mod approval;
mod cancel;
mod create;
mod follow;
mod ids;
mod input;
mod job;
mod known;
mod recall;
mod receipts;
mod record;
mod recorder;
mod release;
pub(crate) mod replay;
mod report;
mod sweep;
mod watch;
mod writers;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use muster_proto::ids::{HostId, JobId, TaskId};
use parking_lot::Mutex;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
pub(crate) use self::ids::{job_id, task_id};
use self::{
    create::Creating, input::Roads, known::Known, receipts::Recent, recorder::Recorder,
    writers::Writers,
};
pub(crate) use self::{
    create::{CreateError, Created, NewJob, Target},
    follow::TaskWatch,
    ids::digest,
    input::{Answer, Input, Put, Road},
    job::Job,
    recall::{RecallError, Recalled},
    report::{AdoptError, TaskRef},
    watch::{Event as WatchEvent, Update, Watch, WatchError},
    writers::{Access, Attachment, Client, Writer},
};
use crate::{
    model::{Hold, State, Summary, Task},
    output::OutputStore,
    sessions::Dispatcher,
    store::{
        Durable, Store, StoreError,
        jobs::{self as rows, After, Heard, JobFilter, TaskFilter, TaskRow},
        receipts as receipts_rows,
    },
};

/// Jobs and tasks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Jobs(Arc<Shared>);

struct Shared {
    store: Store,
    output: OutputStore,
    dispatcher: Dispatcher,
    // Held for a look-up only; taken before a job's own lock, never after it.
    live: Mutex<Live>,
    creating: Creating,
    known: Known,
    /// Held while a job is read that is not in memory: nobody else may read it, change it and let it go.
    reading: tokio::sync::Mutex<()>,
    recorder: Recorder,
    recent: Recent,
    roads: Arc<Roads>,
    writers: Arc<Writers>,
}

/// Jobs that are not done, found by job, task and host.
#[derive(Default)]
struct Live {
    jobs: HashMap<JobId, Arc<Job>>,
    tasks: HashMap<TaskId, (Arc<Job>, u32)>,
    hosts: HashMap<HostId, HashSet<TaskId>>,
    principals: HashMap<Arc<str>, HashSet<JobId>>,
    /// Jobs that are done and that somebody still looks at or reports to: there is one of each in memory,
    /// so that no change is written over by another's older look.
    retired: HashMap<JobId, Weak<Job>>,
}

impl Live {
    fn get(&self, id: JobId) -> Option<Arc<Job>> {
        let live = self.jobs.get(&id).cloned();
        live.or_else(|| self.retired.get(&id)?.upgrade())
    }

    /// Adds a job, unless it is there already; returns the one that is there.
    fn add(&mut self, job: Job) -> Arc<Job> {
        let id = job.order.job_id;
        if let Some(job) = self.get(id) {
            return job;
        }
        let job = Arc::new(job);
        if job.is_done() {
            self.retired.insert(id, Arc::downgrade(&job));
        } else {
            self.enter(&job);
        }
        job
    }

    fn enter(&mut self, job: &Arc<Job>) {
        let id = job.order.job_id;
        for (ordinal, task) in job.tasks(|_| true) {
            self.add_task(job, ordinal, &task);
        }
        self.jobs.insert(id, Arc::clone(job));
        self.principals
            .entry(Arc::clone(&job.order.principal))
            .or_default()
            .insert(id);
        self.retired.remove(&id);
    }

    fn add_task(&mut self, job: &Arc<Job>, ordinal: u32, task: &Task) {
        self.tasks.insert(task.task_id, (Arc::clone(job), ordinal));
        self.hosts
            .entry(task.host_id)
            .or_default()
            .insert(task.task_id);
    }

    fn remove(&mut self, job: &Arc<Job>) {
        // Something may have come in between, as a late result.
        if !job.is_done() || self.jobs.remove(&job.order.job_id).is_none() {
            return;
        }
        self.retired.insert(job.order.job_id, Arc::downgrade(job));
        if let Some(own) = self.principals.get_mut(&job.order.principal) {
            own.remove(&job.order.job_id);
            if own.is_empty() {
                self.principals.remove(&job.order.principal);
            }
        }
        for (_, task) in job.tasks(|_| true) {
            self.tasks.remove(&task.task_id);
            if let Some(own) = self.hosts.get_mut(&task.host_id) {
                own.remove(&task.task_id);
                if own.is_empty() {
                    self.hosts.remove(&task.host_id);
                }
            }
        }
    }
}

impl Jobs {
    /// Loads every job that is not done, and starts to write behind.
    pub(crate) async fn load(
        store: Store,
        output: OutputStore,
        dispatcher: Dispatcher,
    ) -> Result<Self, StoreError> {
        replay::replay(&store).await?;
        let mut live = Live::default();
        for job in rows::load_open(&store.readers).await? {
            live.add(job.into());
        }
        let jobs_max = rows::count_all(&store.readers).await?;
        let newest = receipts_rows::newest(&store.readers).await?;
        let (writer, intake) = (store.writer.clone(), store.intake.clone());
        let jobs = Self(Arc::new(Shared {
            store,
            output,
            dispatcher,
            live: Mutex::new(live),
            creating: Creating::default(),
            known: Known::new(usize::try_from(jobs_max).unwrap_or(0)),
            reading: tokio::sync::Mutex::default(),
            recorder: Recorder::default(),
            recent: Recent::new(newest),
            roads: Arc::default(),
            writers: Arc::default(),
        }));
        let shared = Arc::clone(&jobs.0);
        tokio::spawn(async move {
            shared
                .recorder
                .run(writer, intake, |job| shared.live.lock().remove(job))
                .await;
        });
        let shared = Arc::downgrade(&jobs.0);
        tokio::spawn(async move { learn(shared).await });
        Ok(jobs)
    }

    /// Writes what is not written yet and stops writing.
    pub(crate) async fn close(&self) {
        // A ledger that cannot be written holds nobody up: the next start finds the rest in the intake.
        let emptied = async {
            self.written_now().await?.wait().await?;
            let begun = self.0.store.intake.begin();
            begun.map_err(|error| StoreError::Broken(error.to_string().into()))
        };
        if let Err(error) = emptied.await {
            tracing::error!(%error, "task states were not written: {error}");
        }
        self.0.recorder.stop();
    }

    /// Cancelled once the control plane stops: whoever follows a job goes on elsewhere.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.dispatcher.stopping()
    }

    /// Returns once everything reported so far survives a power cut.
    pub(crate) async fn durable(&self) -> Result<(), StoreError> {
        let written = self.0.recorder.written(None, false).await?;
        Ok(written.wait().await?)
    }

    /// The same for all that is known of one job.
    pub(crate) async fn job_durable(&self, id: JobId) -> Result<(), StoreError> {
        let written = self.0.recorder.written(Some(id), false).await?;
        Ok(written.wait().await?)
    }

    /// Returns once the ledger has everything reported so far, with what tells when it is durable; at once if it cannot.
    pub(crate) async fn written_now(&self) -> Result<Durable, StoreError> {
        self.0.recorder.written(None, true).await
    }

    /// A host was heard with this boot and journal.
    pub(crate) fn heard(&self, host: HostId, heard: Heard) {
        self.0.recorder.mark_fence(host, heard);
    }

    fn mark(&self, job: &Arc<Job>, ordinals: impl IntoIterator<Item = u32>) {
        self.0.recorder.mark(job, ordinals);
    }

    fn live_job(&self, id: JobId) -> Option<Arc<Job>> {
        self.0.live.lock().get(id)
    }

    /// The job in memory, or the stored one, which stays in memory while it is open or held.
    async fn job(&self, id: JobId) -> Result<Option<Arc<Job>>, StoreError> {
        if let Some(job) = self.live_job(id) {
            return Ok(Some(job));
        }
        let _reading = self.0.reading.lock().await;
        if let Some(job) = self.live_job(id) {
            return Ok(Some(job));
        }
        let stored = rows::load_one(&self.0.store.readers, id).await?;
        Ok(stored.map(|job| self.0.live.lock().add(job.into())))
    }

    /// A job as it stands now.
    pub(crate) async fn get(&self, id: JobId) -> Result<Option<Summary>, StoreError> {
        if let Some(job) = self.live_job(id) {
            return Ok(Some(job.summary()));
        }
        let filter = JobFilter {
            job: Some(id),
            ..JobFilter::default()
        };
        Ok(self.list(&filter, None, 1).await?.pop())
    }

    /// A page of jobs, newest first.
    pub(crate) async fn list(
        &self,
        filter: &JobFilter,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<Summary>, StoreError> {
        // What was reported a moment ago may not be written yet, and filters are the ledger's.
        let _ = self.written_now().await?;
        rows::list(&self.0.store.readers, filter, after, limit).await
    }

    /// A page of tasks: of one job by ordinal, or newest first.
    pub(crate) async fn list_tasks(
        &self,
        filter: &TaskFilter,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<TaskRow>, StoreError> {
        let _ = self.written_now().await?;
        rows::list_tasks(&self.0.store.readers, filter, after, limit).await
    }

    /// A task as it stands now, with its job's id.
    pub(crate) async fn task(&self, id: TaskId) -> Result<Option<(JobId, Task)>, StoreError> {
        let live = self.0.live.lock().tasks.get(&id).cloned();
        if let Some((job, ordinal)) = live {
            return Ok(Some((job.order.job_id, job.task(ordinal))));
        }
        let filter = TaskFilter {
            task: Some(id),
            ..TaskFilter::default()
        };
        let row = rows::list_tasks(&self.0.store.readers, &filter, None, 1)
            .await?
            .pop();
        Ok(row.map(|row| (row.job_id, row.task)))
    }

    /// Wakes whenever a live task, or another of its job, may stand elsewhere or have more output.
    pub(crate) fn changed(&self, id: TaskId) -> Option<channel::Receiver<()>> {
        let live = self.0.live.lock();
        live.tasks.get(&id).map(|(job, _)| job.changed())
    }

    /// Follows a job from the beginning, or after a token.
    pub(crate) async fn watch(
        &self,
        id: JobId,
        token: &str,
        states_only: bool,
    ) -> Result<Option<Watch>, WatchError> {
        let Some(job) = self.job(id).await? else {
            return Ok(None);
        };
        Watch::new(job, self.0.output.clone(), token, states_only).map(Some)
    }

    /// How many tasks run on a host, how many wait for it, and how many of these are held.
    pub(crate) fn load_of(&self, host: HostId) -> (u32, u32, u32) {
        let mut load = (0, 0, 0);
        for task in self.of_host(host) {
            match task.look(|task| (task.state, task.hold)) {
                (State::Running, _) => load.0 += 1,
                (State::Pending | State::AwaitingApproval, hold) => {
                    load.1 += 1;
                    load.2 += u32::from(hold == Hold::Held);
                }
                _ => {}
            }
        }
        load
    }

    /// How many tasks of a principal's jobs are not final.
    pub(crate) fn open_tasks(&self, principal: &str) -> usize {
        let jobs: Vec<Arc<Job>> = {
            let live = self.0.live.lock();
            let ids = live.principals.get(principal).into_iter().flatten();
            ids.filter_map(|id| live.jobs.get(id).cloned()).collect()
        };
        let open = |job: &Arc<Job>| -> usize {
            let counts = job.summary().counts;
            let open = counts.iter().filter(|(state, _)| !state.is_final());
            open.map(|(_, tasks)| tasks as usize).sum()
        };
        jobs.iter().map(open).sum()
    }

    /// Every live task of a host, oldest first.
    fn of_host(&self, host: HostId) -> Vec<TaskRef> {
        let mut tasks: Vec<TaskRef> = {
            let live = self.0.live.lock();
            let ids = live.hosts.get(&host).into_iter().flatten();
            ids.filter_map(|id| live.tasks.get(id))
                .map(|(job, ordinal)| TaskRef::new(Arc::clone(job), *ordinal))
                .collect()
        };
        tasks.sort_by_key(|task| (task.job.order.create_time, task.job.order.job_id));
        tasks
    }

    fn live_jobs(&self) -> Vec<Arc<Job>> {
        self.0.live.lock().jobs.values().cloned().collect()
    }
}

/// Learns which jobs the ledger has; until then each new job costs a query.
async fn learn(shared: Weak<Shared>) {
    let Some(readers) = shared.upgrade().map(|shared| shared.store.readers.clone()) else {
        return;
    };
    let learned = rows::each_id(&readers, |id| {
        if let Some(shared) = shared.upgrade() {
            shared.known.add(id);
        }
    })
    .await;
    match learned {
        Ok(()) => shared
            .upgrade()
            .iter()
            .for_each(|shared| shared.known.complete()),
        Err(error) => tracing::warn!(%error, "new jobs cost a query each: {error}"),
    }
}
