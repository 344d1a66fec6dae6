//! Writes behind: what agents report is first live, then in the ledger, in batches.
//!
//! Nothing is lost by that: an accepted job is in the intake until the batch that holds it is synced,
//! and an agent keeps a report until it is told that it is settled, which is after that sync too.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem, slice,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_proto::ids::{HostId, JobId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout_at},
};

use super::Job;
use crate::{
    model::{EntryText, SignedReceipts},
    store::{
        Batch, Durable, Intake, StoreError, Writer,
        jobs::{self as rows, Heard, Placed},
        receipts as receipt_rows,
    },
};

/// How long a change may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(20);

/// How long a job that is not over may wait for its end, to be written once: most are short. Whoever looks it up in the
/// ledger has it written first.
const SETTLE_IN: Duration = Duration::from_millis(250);

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// Tasks in one batch.
const TASKS_MAX: usize = 2000;

/// A job that is not in the ledger as it stands.
struct Marked {
    job: Arc<Job>,
    since: Instant,
    ordinals: BTreeSet<u32>,
    /// The ledger does not have the job at all.
    new: bool,
    /// Names the job's record in the intake, if it has one.
    position: Option<i64>,
    /// What the audit log says of it: written with it.
    entries: Vec<EntryText>,
}

#[derive(Default)]
struct Dirty {
    jobs: HashMap<JobId, Marked>,
    fences: HashMap<HostId, Heard>,
    /// Named by tasks, and so written before them.
    receipts: Vec<Arc<SignedReceipts>>,
    /// Told once everything marked before is committed.
    waiters: Vec<Waiter>,
    stop: bool,
}

struct Waiter {
    /// Waits for this job only.
    job: Option<JobId>,
    /// A caller waits: it rather hears of a failure than waits for the next try.
    urgent: bool,
    answer: oneshot::Sender<Result<Durable, StoreError>>,
}

impl Dirty {
    fn mark(&mut self, marked: Marked) {
        let Marked {
            job,
            since,
            ordinals,
            new,
            position,
            entries,
        } = marked;
        let entry = self.jobs.entry(job.order.job_id).or_insert(Marked {
            job,
            since,
            ordinals: BTreeSet::new(),
            new: false,
            position: None,
            entries: Vec::new(),
        });
        entry.entries.extend(entries);
        entry.ordinals.extend(ordinals);
        entry.new |= new;
        entry.position = entry.position.or(position);
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.fences.is_empty()
            && self.receipts.is_empty()
            && self.waiters.is_empty()
    }

    /// The jobs to write now.
    fn due(&self, all: bool) -> Vec<JobId> {
        let all = all || self.stop || self.waiters.iter().any(|waiter| waiter.job.is_none());
        let awaited: HashSet<_> = self
            .waiters
            .iter()
            .filter_map(|waiter| waiter.job)
            .collect();
        let now = Instant::now();
        let is_due = |id: &JobId, marked: &Marked| {
            let whole = marked.job.is_done() && !marked.job.awaits_signatures();
            all || marked.since + SETTLE_IN <= now || awaited.contains(id) || whole
        };
        let due = self.jobs.iter().filter(|(id, marked)| is_due(id, marked));
        due.map(|(id, _)| *id).collect()
    }
}

/// Gathers changes. Bounded by what is live: a task is in it once, however often it changes.
#[derive(Default)]
pub(super) struct Recorder {
    dirty: Mutex<Dirty>,
    marked: Notify,
    urgent: Notify,
    /// The last try to write did not work.
    failing: AtomicBool,
}

impl Recorder {
    /// Tasks have changed, or, with none, only the job.
    pub(super) fn mark(&self, job: &Arc<Job>, ordinals: impl IntoIterator<Item = u32>) {
        self.mark_for(job, ordinals, None);
    }

    /// The same, because of what the entry tells of.
    pub(super) fn mark_for(
        &self,
        job: &Arc<Job>,
        ordinals: impl IntoIterator<Item = u32>,
        entry: Option<EntryText>,
    ) {
        self.add(Marked {
            job: Arc::clone(job),
            since: Instant::now(),
            ordinals: ordinals.into_iter().collect(),
            new: false,
            position: None,
            entries: entry.into_iter().collect(),
        });
    }

    /// The host has signed for a task: both are written together.
    pub(super) fn mark_signed(&self, job: &Arc<Job>, ordinal: u32, signed: &Arc<SignedReceipts>) {
        let mut dirty = self.dirty.lock();
        if !signed.taken.swap(true, Ordering::Relaxed) {
            dirty.receipts.push(Arc::clone(signed));
        }
        drop(dirty);
        self.mark(job, [ordinal]);
    }

    /// The ledger does not have the job; `position` names its record in the intake, if it has one.
    pub(super) fn mark_new(&self, job: &Arc<Job>, position: Option<i64>, entry: Option<EntryText>) {
        self.add(Marked {
            job: Arc::clone(job),
            since: Instant::now(),
            ordinals: (0..job.len()).collect(),
            new: true,
            position,
            entries: entry.into_iter().collect(),
        });
    }

    fn add(&self, marked: Marked) {
        self.dirty.lock().mark(marked);
        self.marked.notify_one();
    }

    /// Whether the last try to write failed: then there is no use in accepting more.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// A host was heard with this boot and journal.
    pub(super) fn mark_fence(&self, host: HostId, heard: Heard) {
        self.dirty.lock().fences.insert(host, heard);
        self.marked.notify_one();
    }

    /// Returns once everything marked so far is committed, or all of one job, with what tells when it is durable. Hears
    /// of a write that failed only if it is urgent, and waits for the next otherwise.
    pub(super) async fn written(
        &self,
        job: Option<JobId>,
        urgent: bool,
    ) -> Result<Durable, StoreError> {
        let (answer, written) = oneshot::channel();
        let waiter = Waiter {
            job,
            urgent,
            answer,
        };
        self.dirty.lock().waiters.push(waiter);
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
    pub(super) async fn run(&self, writer: Writer, intake: Intake, retire: impl Fn(&Arc<Job>)) {
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
            let mut taken = self.take(intake.is_crowded());
            let written = match write(&writer, &taken.whole(), &retire).await {
                Err(StoreError::Conflict(_)) => write_apart(&writer, &mut taken, &retire).await,
                written => written,
            };
            self.failing.store(written.is_err(), Ordering::Relaxed);
            match written {
                Ok(durable) => {
                    let positions: Vec<_> = taken.jobs.iter().filter_map(|m| m.position).collect();
                    if !positions.is_empty() {
                        tokio::spawn(release(intake.clone(), durable.clone(), positions));
                    }
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

    /// What is due, or `all`.
    fn take(&self, all: bool) -> Taken {
        let dirty = &mut *self.dirty.lock();
        let mut jobs = Vec::new();
        let mut tasks = 0;
        for id in dirty.due(all) {
            if tasks >= TASKS_MAX {
                break;
            }
            if let Some(marked) = dirty.jobs.remove(&id) {
                tasks += marked.ordinals.len();
                jobs.push(marked);
            }
        }
        let left = &dirty.jobs;
        let is_served = |waiter: &Waiter| match waiter.job {
            Some(job) => !left.contains_key(&job),
            None => left.is_empty(),
        };
        let (waiters, waiting) = mem::take(&mut dirty.waiters)
            .into_iter()
            .partition(is_served);
        dirty.waiters = waiting;
        Taken {
            jobs,
            fences: mem::take(&mut dirty.fences).into_iter().collect(),
            receipts: mem::take(&mut dirty.receipts),
            waiters,
        }
    }

    fn put_back(&self, taken: Taken) {
        let mut dirty = self.dirty.lock();
        for marked in taken.jobs {
            let id = marked.job.order.job_id;
            let newer = dirty.jobs.get_mut(&id).map(|m| mem::take(&mut m.entries));
            dirty.mark(marked);
            if let (Some(newer), Some(marked)) = (newer, dirty.jobs.get_mut(&id)) {
                marked.entries.extend(newer);
            }
        }
        for (host, heard) in taken.fences {
            dirty.fences.entry(host).or_insert(heard);
        }
        dirty.receipts.extend(taken.receipts);
        dirty.waiters.extend(taken.waiters);
    }
}

/// What is written in one transaction.
#[derive(Clone, Copy, Default)]
struct Part<'a> {
    receipts: &'a [Arc<SignedReceipts>],
    jobs: &'a [Marked],
    fences: &'a [(HostId, Heard)],
}

impl Taken {
    fn whole(&self) -> Part<'_> {
        Part {
            receipts: &self.receipts,
            jobs: &self.jobs,
            fences: &self.fences,
        }
    }
}

struct Taken {
    jobs: Vec<Marked>,
    fences: Vec<(HostId, Heard)>,
    receipts: Vec<Arc<SignedReceipts>>,
    waiters: Vec<Waiter>,
}

/// Writes each job by itself: one that the ledger refuses holds up no other. It was deleted there when it was looked at
/// again, and has no history to be added to.
async fn write_apart(
    writer: &Writer,
    taken: &mut Taken,
    retire: &impl Fn(&Arc<Job>),
) -> Result<Durable, StoreError> {
    let receipts = Part {
        receipts: &taken.receipts,
        ..Part::default()
    };
    let _ = write(writer, &receipts, retire).await?;
    let mut written = Vec::new();
    while let Some(mut marked) = taken.jobs.pop() {
        let one = Part {
            jobs: slice::from_ref(&marked),
            ..Part::default()
        };
        match write(writer, &one, retire).await {
            Ok(_) => {
                // Should the next fail, this one comes again: its entries are in the log.
                marked.entries.clear();
                marked.new = false;
                written.push(marked);
            }
            Err(StoreError::Conflict(cause)) => {
                let id = marked.job.order.job_id;
                tracing::error!(job.id = %id, "the ledger refuses what became of job {id}: {cause}");
                if marked.job.is_done() {
                    retire(&marked.job);
                }
            }
            Err(error) => {
                taken.jobs.push(marked);
                taken.jobs.append(&mut written);
                return Err(error);
            }
        }
    }
    taken.jobs = written;
    let fences = Part {
        fences: &taken.fences,
        ..Part::default()
    };
    write(writer, &fences, retire).await
}

async fn write(
    writer: &Writer,
    part: &Part<'_>,
    retire: &impl Fn(&Arc<Job>),
) -> Result<Durable, StoreError> {
    let Part {
        receipts,
        jobs,
        fences,
    } = *part;
    // Before the snapshots: a job that is done now is written as done.
    let done: Vec<_> = jobs.iter().filter(|m| m.job.is_done()).collect();
    let summaries = |new: bool| {
        let of_kind = jobs.iter().filter(move |m| m.new == new);
        of_kind.map(|m| m.job.summary()).collect::<Vec<_>>()
    };
    let (new, changed) = (summaries(true), summaries(false));
    let placed = |marked: &Marked, ordinal: u32| Placed {
        order: Arc::clone(&marked.job.order),
        ordinal,
        task: marked.job.task(ordinal),
    };
    let tasks: Vec<_> = jobs
        .iter()
        .flat_map(|marked| marked.ordinals.iter().map(|at| placed(marked, *at)))
        .collect();
    let mut batch = Batch::new();
    receipt_rows::put(&mut batch, receipts);
    rows::put(&mut batch, &new, &tasks, &changed);
    for entry in jobs.iter().flat_map(|marked| &marked.entries) {
        batch.record(entry.clone());
    }
    let mut ended: HashMap<JobId, Vec<(u32, bool)>> = HashMap::new();
    for placed in &tasks {
        if placed.task.state.is_final() && !placed.task.end_recorded {
            let job = placed.order.job_id;
            batch.record(placed.task.end_entry(job));
            let late = !placed.task.late_result.is_empty();
            ended.entry(job).or_default().push((placed.ordinal, late));
        }
    }
    if !fences.is_empty() {
        rows::write_fences(&mut batch, fences);
    }
    let durable = if batch.is_empty() {
        writer.syncer().now()
    } else {
        writer.commit(batch).await?.durable
    };
    // Nobody else writes ends, so until here none was written twice.
    for marked in jobs {
        if let Some(ended) = ended.get(&marked.job.order.job_id) {
            marked.job.ends_recorded(ended);
        }
    }
    done.into_iter().for_each(|marked| retire(&marked.job));
    Ok(durable)
}

/// Lets go of records in the intake once the ledger has their jobs durably.
async fn release(intake: Intake, durable: Durable, positions: Vec<i64>) {
    if durable.wait_patiently().await.is_ok()
        && let Err(error) = intake.release(&positions)
    {
        tracing::warn!(%error, "the intake was not emptied: {error}");
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Reason;

    use super::*;
    use crate::{
        jobs::ids,
        model::{Action, Order, Task, Withdrawal},
    };

    fn job(number: u8) -> Arc<Job> {
        let job_id = JobId::from_bytes(&[number; 32]);
        let order = Order {
            job_id,
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: [2; 32],
            selector: "all".into(),
            action: Action::new(Default::default()).0,
            secrets: Default::default(),
            confinement: Default::default(),
            reason: "".into(),
            approval_id: "".into(),
            create_time: 5,
            start_deadline_time: 605,
            lost_after: 7,
        };
        let host_id = HostId::from_bytes(&[number; 32]);
        let task = Task::new(
            ids::task_id(job_id, host_id),
            host_id,
            "web".into(),
            None,
            5,
        );
        Arc::new(Job::new(Arc::new(order), vec![task], None, "".into()))
    }

    fn end(job: &Job) {
        let words = String::new();
        job.withdraw(0, Withdrawal::Cancelled, Reason::Unspecified, words, 6)
            .unwrap();
    }

    /// The ids that are written now, and how many of those who wait are answered then.
    fn written(recorder: &Recorder) -> (Vec<JobId>, usize) {
        let taken = recorder.take(false);
        let ids = taken.jobs.iter().map(|marked| marked.job.order.job_id);
        (ids.collect(), taken.waiters.len())
    }

    fn wait_for(recorder: &Recorder, job: Option<JobId>) {
        let (answer, _) = oneshot::channel();
        let urgent = false;
        let waiter = Waiter {
            job,
            urgent,
            answer,
        };
        recorder.dirty.lock().waiters.push(waiter);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_written_once_it_is_over_or_has_waited_long_enough() {
        let recorder = Recorder::default();
        let (short, long) = (job(1), job(2));
        recorder.mark_new(&short, None, None);
        recorder.mark_new(&long, None, None);
        assert_eq!(written(&recorder).0, []);
        end(&short);
        recorder.mark(&short, [0]);
        assert_eq!(written(&recorder).0, [short.order.job_id]);
        tokio::time::advance(SETTLE_IN).await;
        assert_eq!(written(&recorder).0, [long.order.job_id]);
        assert_eq!(written(&recorder).0, []);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_job_has_it_written_and_nothing_else() {
        let recorder = Recorder::default();
        let (one, other) = (job(1), job(2));
        recorder.mark_new(&one, None, None);
        recorder.mark_new(&other, None, None);
        wait_for(&recorder, Some(one.order.job_id));
        assert_eq!(written(&recorder), (vec![one.order.job_id], 1));
        wait_for(&recorder, None);
        assert_eq!(written(&recorder), (vec![other.order.job_id], 1));
        // What is written already is not waited for.
        wait_for(&recorder, Some(one.order.job_id));
        assert_eq!(written(&recorder), (vec![], 1));
    }
}
