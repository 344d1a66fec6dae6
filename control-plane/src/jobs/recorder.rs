//! Writes behind: what agents report is first live, then in the ledger, in batches.
//!
//! Nothing is lost by that: an agent keeps a report until it is told that it is settled, which is
//! after the sync of the batch that holds it.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};

use muster_proto::ids::{HostId, JobId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout_at},
};

use super::Job;
use crate::store::{self, Durable, StoreError, Writer, jobs::Heard};

/// How long a change may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(20);

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// Tasks in one batch.
const TASKS_MAX: usize = 2000;

#[derive(Default)]
struct Dirty {
    jobs: HashMap<JobId, (Arc<Job>, BTreeSet<u32>)>,
    fences: HashMap<HostId, Heard>,
    /// Told once everything marked before is committed.
    waiters: Vec<Waiter>,
    stop: bool,
}

struct Waiter {
    /// A caller waits: it rather hears of a failure than waits for the next try.
    urgent: bool,
    answer: oneshot::Sender<Result<Durable, StoreError>>,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.fences.is_empty() && self.waiters.is_empty()
    }
}

/// Gathers changes. Bounded by what is live: a task is in it once, however often it changes.
#[derive(Default)]
pub(super) struct Recorder {
    dirty: Mutex<Dirty>,
    marked: Notify,
    urgent: Notify,
}

impl Recorder {
    /// The task has changed, or, with `None`, only the job.
    pub(super) fn mark(&self, job: &Arc<Job>, ordinal: impl IntoIterator<Item = u32>) {
        let mut dirty = self.dirty.lock();
        dirty
            .jobs
            .entry(job.order.job_id)
            .or_insert_with(|| (Arc::clone(job), BTreeSet::new()))
            .1
            .extend(ordinal);
        drop(dirty);
        self.marked.notify_one();
    }

    /// A host was heard with this boot and journal.
    pub(super) fn mark_fence(&self, host: HostId, heard: Heard) {
        self.dirty.lock().fences.insert(host, heard);
        self.marked.notify_one();
    }

    /// Returns once everything marked so far is committed, with what tells when it is durable. Hears of a
    /// write that failed only if it is urgent, and waits for the next otherwise.
    pub(super) async fn written(&self, urgent: bool) -> Result<Durable, StoreError> {
        let (answer, written) = oneshot::channel();
        self.dirty.lock().waiters.push(Waiter { urgent, answer });
        self.marked.notify_one();
        if urgent {
            self.urgent.notify_one();
        }
        written.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes what is marked and ends.
    pub(super) fn stop(&self) {
        self.dirty.lock().stop = true;
        self.marked.notify_one();
        self.urgent.notify_one();
    }

    /// Writes until stopped. `retire` is told of jobs that are done and written.
    pub(super) async fn run(&self, writer: Writer, retire: impl Fn(&Arc<Job>)) {
        loop {
            let (stop, empty) = {
                let dirty = self.dirty.lock();
                (dirty.stop, dirty.is_empty())
            };
            if empty {
                if stop {
                    return;
                }
                self.marked.notified().await;
                continue;
            }
            if !stop {
                let _ = timeout_at(Instant::now() + GATHER, self.urgent.notified()).await;
            }
            let mut taken = self.take();
            match write(&writer, &taken, &retire).await {
                Ok(durable) => {
                    for waiter in taken.waiters {
                        let _ = waiter.answer.send(Ok(durable.clone()));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "writing task states failed, trying again: {error}");
                    for waiter in taken.waiters.extract_if(.., |waiter| waiter.urgent) {
                        let _ = waiter.answer.send(Err(error.clone()));
                    }
                    self.put_back(taken);
                    if stop {
                        return;
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    fn take(&self) -> Taken {
        let mut dirty = self.dirty.lock();
        let mut jobs = Vec::new();
        let mut tasks = 0;
        while tasks < TASKS_MAX {
            let Some(id) = dirty.jobs.keys().next().copied() else {
                break;
            };
            if let Some((job, ordinals)) = dirty.jobs.remove(&id) {
                tasks += ordinals.len();
                jobs.push((job, ordinals));
            }
        }
        // Waiters wait for all of it.
        let waiters = if dirty.jobs.is_empty() {
            mem::take(&mut dirty.waiters)
        } else {
            self.marked.notify_one();
            Vec::new()
        };
        Taken {
            jobs,
            fences: mem::take(&mut dirty.fences).into_iter().collect(),
            waiters,
        }
    }

    fn put_back(&self, taken: Taken) {
        let mut dirty = self.dirty.lock();
        for (job, ordinals) in taken.jobs {
            dirty
                .jobs
                .entry(job.order.job_id)
                .or_insert_with(|| (job, BTreeSet::new()))
                .1
                .extend(ordinals);
        }
        for (host, heard) in taken.fences {
            dirty.fences.entry(host).or_insert(heard);
        }
        dirty.waiters.extend(taken.waiters);
    }
}

async fn write(
    writer: &Writer,
    taken: &Taken,
    retire: &impl Fn(&Arc<Job>),
) -> Result<Durable, StoreError> {
    // Before the snapshots: a job that is done now is written as done.
    let done: Vec<_> = taken.jobs.iter().filter(|(job, _)| job.is_done()).collect();
    let summaries: Vec<_> = taken.jobs.iter().map(|(job, _)| job.summary()).collect();
    let tasks: Vec<_> = taken
        .jobs
        .iter()
        .flat_map(|(job, ordinals)| ordinals.iter().map(|ordinal| job.task(*ordinal)))
        .collect();
    let mut batch = store::jobs::update(&summaries, &tasks);
    if !taken.fences.is_empty() {
        store::jobs::write_fences(&mut batch, &taken.fences);
    }
    let durable = if batch.is_empty() {
        writer.syncer().now()
    } else {
        writer.commit(batch).await?.durable
    };
    done.into_iter().for_each(|(job, _)| retire(job));
    Ok(durable)
}

struct Taken {
    jobs: Vec<(Arc<Job>, BTreeSet<u32>)>,
    fences: Vec<(HostId, Heard)>,
    waiters: Vec<Waiter>,
}
