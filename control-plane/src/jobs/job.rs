//! A job in memory: what was asked for, its tasks, and what watchers have not seen yet.

mod waiting;

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    model::{
        Counts, Ending, Fence, JobState, NotAllowed, Order, OutputSize, ReceiptRecord, Signing,
        State, Summary, Task, Withdrawal, state::Event,
    },
    store::jobs::StoredJob,
};
use bytes::Bytes;
use muster_proto::{ids::TaskId, v1::Reason};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

/// A job and its tasks.
pub(crate) struct Job {
    /// What was asked for.
    pub(crate) order: Arc<Order>,
    // Held for a look or a step only, never across an await.
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

struct Inner {
    /// The order as its approval left it; `None` before, and for a job that needs none.
    approved: Option<Arc<Order>>,
    tasks: Vec<Task>,
    counts: Counts,
    start_time: Option<i64>,
    end_time: Option<i64>,
    cancel: Option<(i64, Arc<str>)>,
    note: Arc<str>,
    /// Tasks whose receipts are not signed yet.
    unsigned: usize,
    /// Counts changes. Each task is in `changes` once, under its last one.
    version: u64,
    changes: BTreeMap<u64, u32>,
    changed_at: Vec<u64>,
}

impl Inner {
    fn set_receipt(&mut self, ordinal: u32, receipt: Bytes) {
        let task = &mut self.tasks[ordinal as usize];
        let before = usize::from(is_unsigned(task));
        task.receipt = receipt;
        self.unsigned = self.unsigned + usize::from(is_unsigned(task)) - before;
    }

    fn touch(&mut self, ordinal: u32) {
        self.version += 1;
        let at = &mut self.changed_at[ordinal as usize];
        self.changes.remove(at);
        *at = self.version;
        self.changes.insert(self.version, ordinal);
    }

    fn step(&mut self, ordinal: u32, event: Event, now: i64) -> Result<bool, NotAllowed> {
        let task = &mut self.tasks[ordinal as usize];
        let from = task.state;
        let to = from.after(task.offered.is_some(), event)?;
        if to == from {
            return Ok(false);
        }
        task.state = to;
        task.state_time = now;
        if to.is_final() {
            task.end_time = Some(now);
        }
        self.counts.moved(from, to);
        if self.counts.iter().all(|(state, _)| state.is_final()) {
            self.end_time = Some(now);
        }
        Ok(true)
    }
}

impl From<StoredJob> for Job {
    fn from(stored: StoredJob) -> Self {
        Self::new(stored.order, stored.tasks, stored.cancel, stored.note)
    }
}

impl Job {
    /// A job with its tasks in the order of their ordinals.
    pub(crate) fn new(
        order: Arc<Order>,
        tasks: Vec<Task>,
        cancel: Option<(i64, Arc<str>)>,
        note: Arc<str>,
    ) -> Self {
        let mut counts = Counts::default();
        for task in &tasks {
            counts.add(task.state, 1);
        }
        let start_time = tasks.iter().filter_map(|task| task.start_time).min();
        let all_final = tasks.iter().all(|task| task.state.is_final());
        let end_time = tasks
            .iter()
            .filter_map(|task| task.end_time)
            .max()
            .filter(|_| all_final);
        let versions = tasks.len() as u64;
        Self {
            order,
            changed: watch::Sender::new(()),
            inner: Mutex::new(Inner {
                approved: None,
                counts,
                start_time,
                end_time,
                cancel,
                note,
                version: versions,
                changes: (1..=versions).zip(0..).collect(),
                changed_at: (1..=versions).collect(),
                unsigned: tasks.iter().filter(|task| is_unsigned(task)).count(),
                tasks,
            }),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut MutexGuard<'_, Inner>) -> T) -> T {
        let result = change(&mut self.inner.lock());
        self.changed.send_replace(());
        result
    }

    /// Adds a task at the end, as one that was adopted.
    pub(crate) fn push(&self, task: Task) {
        self.change(|inner| {
            let ordinal = u32::try_from(inner.tasks.len()).unwrap_or(u32::MAX);
            inner.counts.add(task.state, 1);
            inner.end_time = None;
            inner.tasks.push(task);
            inner.changed_at.push(0);
            inner.touch(ordinal);
        });
    }

    /// The job without its tasks.
    pub(crate) fn summary(&self) -> Summary {
        let inner = self.inner.lock();
        Summary {
            order: Arc::clone(inner.approved.as_ref().unwrap_or(&self.order)),
            state: JobState::of(&inner.counts, inner.start_time.is_some()),
            counts: inner.counts,
            start_time: inner.start_time,
            end_time: inner.end_time,
            cancel: inner.cancel.clone(),
            note: Arc::clone(&inner.note),
        }
    }

    /// What was asked for, with the start deadline that stands: an approval sets it anew.
    pub(crate) fn terms(&self) -> Arc<Order> {
        if self.order.approval_id.is_empty() {
            return Arc::clone(&self.order);
        }
        let inner = self.inner.lock();
        Arc::clone(inner.approved.as_ref().unwrap_or(&self.order))
    }

    /// How many tasks it has.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.inner.lock().tasks.len()).unwrap_or(u32::MAX)
    }

    /// A task's place in the job.
    pub(crate) fn ordinal(&self, id: TaskId) -> Option<u32> {
        let inner = self.inner.lock();
        let mut tasks = (0..).zip(&inner.tasks);
        tasks
            .find(|(_, task)| task.task_id == id)
            .map(|(ordinal, _)| ordinal)
    }

    /// A task as it stands now.
    pub(crate) fn task(&self, ordinal: u32) -> Task {
        self.inner.lock().tasks[ordinal as usize].clone()
    }

    /// Looks at a task without copying it.
    pub(crate) fn look<T>(&self, ordinal: u32, look: impl FnOnce(&Task) -> T) -> T {
        look(&self.inner.lock().tasks[ordinal as usize])
    }

    /// Every task that `keep` keeps.
    pub(crate) fn tasks(&self, mut keep: impl FnMut(&Task) -> bool) -> Vec<(u32, Task)> {
        let inner = self.inner.lock();
        (0..)
            .zip(&inner.tasks)
            .filter(|(_, task)| keep(task))
            .map(|(ordinal, task)| (ordinal, task.clone()))
            .collect()
    }

    /// Every task is final and its output complete.
    pub(crate) fn is_done(&self) -> bool {
        let inner = self.inner.lock();
        inner.end_time.is_some() && inner.tasks.iter().all(Task::is_done)
    }

    /// Wakes at each change; never says what changed.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Tasks that changed after `version`, and the version that this look is of.
    pub(crate) fn changes(&self, version: u64) -> (Vec<u32>, u64) {
        let inner = self.inner.lock();
        let ordinals = inner
            .changes
            .range(version + 1..)
            .map(|(_, o)| *o)
            .collect();
        (ordinals, inner.version)
    }

    /// Output of a task was taken.
    pub(crate) fn output_taken(&self, ordinal: u32) {
        self.change(|inner| inner.touch(ordinal));
    }

    /// The task may have been offered from now on, in the session with this epoch. Says whether that is
    /// news: a task is offered in one session at a time.
    pub(crate) fn set_offered(&self, ordinal: u32, fence: Fence, epoch: i64, now: i64) -> bool {
        self.change_offer(ordinal, now, |task| {
            let free = task.state == State::Pending && task.offered.is_none();
            free.then_some((Some(fence), epoch))
        })
    }

    /// The offer did not leave in the session with this epoch. Says whether the task waits again: another
    /// session may have taken it up meanwhile.
    pub(crate) fn offer_failed(&self, ordinal: u32, epoch: i64, now: i64) -> bool {
        self.change_offer(ordinal, now, |task| {
            let own = task.state == State::Pending && task.offer_epoch == epoch;
            own.then_some((None, epoch))
        })
    }

    /// The host has proved, in the session with this epoch, that no offer from before it arrived. Says
    /// whether the task waits again: it may have been offered in this session since.
    pub(crate) fn never_arrived(&self, ordinal: u32, epoch: i64, now: i64) -> bool {
        self.change_offer(ordinal, now, |task| {
            let earlier = task.state == State::Pending && task.offer_epoch != epoch;
            earlier.then_some((None, task.offer_epoch))
        })
    }

    fn change_offer(
        &self,
        ordinal: u32,
        now: i64,
        change: impl FnOnce(&Task) -> Option<(Option<Fence>, i64)>,
    ) -> bool {
        self.change(|inner| {
            let task = &mut inner.tasks[ordinal as usize];
            let Some((offered, epoch)) = change(task) else {
                return false;
            };
            task.offered = offered;
            task.offer_epoch = epoch;
            task.state_time = now;
            inner.touch(ordinal);
            true
        })
    }

    /// The process runs, and is confined so far as the host says. Says whether that is new.
    pub(crate) fn started(
        &self,
        ordinal: u32,
        time: i64,
        confinement: Bytes,
    ) -> Result<bool, NotAllowed> {
        self.change(|inner| {
            let mut new = inner.step(ordinal, Event::Started, time)?;
            if new {
                inner.tasks[ordinal as usize].start_time = Some(time);
                inner.start_time = Some(inner.start_time.map_or(time, |first| first.min(time)));
            }
            // What was said first stands.
            let task = &mut inner.tasks[ordinal as usize];
            if task.confinement.is_empty() && !confinement.is_empty() {
                task.confinement = confinement;
                new = true;
            }
            if new {
                inner.touch(ordinal);
            }
            Ok(new)
        })
    }

    /// Something speaks against what the host says of the task. Says whether that is new.
    pub(crate) fn doubt(&self, ordinal: u32, words: &str) -> bool {
        self.change(|inner| {
            let task = &mut inner.tasks[ordinal as usize];
            if task.doubt.split("; ").any(|known| known == words) {
                return false;
            }
            if !task.doubt.is_empty() {
                task.doubt.push_str("; ");
            }
            task.doubt.push_str(words);
            inner.touch(ordinal);
            true
        })
    }

    /// The host has signed the receipt of the task: from now on this is kept of it. No change that anybody watches for.
    pub(crate) fn set_receipt(&self, ordinal: u32, receipt: Bytes) {
        self.inner.lock().set_receipt(ordinal, receipt);
    }

    /// Whether hosts are about to sign for tasks that are over.
    pub(crate) fn awaits_signatures(&self) -> bool {
        self.inner.lock().unsigned > 0
    }

    /// The task is over, as its host says. Says whether that is new.
    pub(crate) fn ended(&self, ordinal: u32, ending: Ending) -> Result<bool, NotAllowed> {
        self.change(|inner| {
            let before = inner.tasks[ordinal as usize].state;
            let mut new = inner.step(ordinal, Event::Ended(ending.state), ending.time)?;
            let task = &mut inner.tasks[ordinal as usize];
            if before == State::Lost {
                let late = late_result(&ending);
                new = ending.state != State::Lost && task.late_result != late;
                if new {
                    task.late_result = late;
                    task.end_recorded = false;
                    inner.set_receipt(ordinal, ending.receipt);
                }
            } else if new {
                // A process that ended before its start was reported has still started.
                if let Some(run_time) = ending.run_time.filter(|_| task.start_time.is_none()) {
                    let start = ending.time - run_time / 1000;
                    task.start_time = Some(start);
                    inner.start_time = Some(inner.start_time.map_or(start, |at| at.min(start)));
                }
                let task = &mut inner.tasks[ordinal as usize];
                task.reason = ending.reason;
                task.message = ending.message;
                task.exit_code = ending.exit_code;
                task.signal = ending.signal;
                task.run_time = ending.run_time;
                task.result = ending.result;
                inner.set_receipt(ordinal, ending.receipt);
            }
            if new {
                inner.touch(ordinal);
            }
            Ok(new)
        })
    }

    /// The host says that nothing more will be written. Says whether that is new.
    pub(crate) fn output_ended(
        &self,
        ordinal: u32,
        last_sequence: i64,
        size: Option<OutputSize>,
    ) -> bool {
        self.change(|inner| {
            let task = &mut inner.tasks[ordinal as usize];
            if task.output_end.is_some() {
                return false;
            }
            if let Some(size) = size {
                task.output_size = size;
            }
            task.output_size.last_sequence = task.output_size.last_sequence.max(last_sequence);
            task.output_end = Some(last_sequence);
            task.output_complete = true;
            inner.touch(ordinal);
            true
        })
    }

    /// Nobody will say how much output there is: what was taken is all.
    pub(crate) fn output_abandoned(&self, ordinal: u32, size: Option<OutputSize>) {
        self.change(|inner| {
            let task = &mut inner.tasks[ordinal as usize];
            if let Some(size) = size {
                task.output_size = size;
            }
            // No `output_end`: readers show what the store has, and the host may still come and say it.
            task.output_complete = true;
            inner.touch(ordinal);
        });
    }

    /// The control plane takes back a task that it never offered.
    pub(crate) fn withdraw(
        &self,
        ordinal: u32,
        withdrawal: Withdrawal,
        reason: Reason,
        message: String,
        now: i64,
    ) -> Result<bool, NotAllowed> {
        self.change(|inner| {
            let new = inner.step(ordinal, Event::Withdrawn(withdrawal), now)?;
            let task = &mut inner.tasks[ordinal as usize];
            task.reason = reason;
            task.message = message;
            task.output_end = Some(0);
            task.output_complete = true;
            inner.touch(ordinal);
            Ok(new)
        })
    }

    /// The task's fate cannot be proved any more. Says whether that is new.
    pub(crate) fn give_up(
        &self,
        ordinal: u32,
        reason: Reason,
        message: String,
        now: i64,
    ) -> Result<bool, NotAllowed> {
        self.change(|inner| {
            let new = inner.step(ordinal, Event::GaveUp, now)?;
            if new {
                let task = &mut inner.tasks[ordinal as usize];
                task.reason = reason;
                task.message = message;
                inner.touch(ordinal);
            }
            Ok(new)
        })
    }

    /// The audit log says how these tasks ended, with or without a late result. No change that anybody watches for.
    pub(crate) fn ends_recorded(&self, ended: &[(u32, bool)]) {
        let mut inner = self.inner.lock();
        for (ordinal, late) in ended {
            let task = &mut inner.tasks[*ordinal as usize];
            // A late result that came meanwhile is not in the log yet.
            task.end_recorded = *late != task.late_result.is_empty();
        }
    }

    /// Cancelling is wished for. Returns the tasks that this is news for.
    pub(crate) fn wish_cancel(
        &self,
        by: &Arc<str>,
        grace: Option<i64>,
        now: i64,
        mut keep: impl FnMut(&Task) -> bool,
    ) -> Vec<u32> {
        self.change(|inner| {
            let mut wished = Vec::new();
            for ordinal in 0..u32::try_from(inner.tasks.len()).unwrap_or(u32::MAX) {
                let task = &mut inner.tasks[ordinal as usize];
                if task.state.is_final() || !keep(task) {
                    continue;
                }
                // A second wish may shorten the grace, as a second Ctrl-C does.
                if task.cancel_time.is_none() || task.cancel_grace != grace {
                    task.cancel_time.get_or_insert(now);
                    task.cancel_grace = grace;
                    inner.touch(ordinal);
                    wished.push(ordinal);
                }
            }
            if !wished.is_empty() && inner.cancel.is_none() {
                inner.cancel = Some((now, Arc::clone(by)));
            }
            wished
        })
    }
}

fn is_unsigned(task: &Task) -> bool {
    let record = ReceiptRecord::read(&task.receipt);
    matches!(record.signing(), Signing::Pending)
}

fn late_result(ending: &Ending) -> String {
    let mut text = ending.state.name().to_owned();
    if let Some(code) = ending.exit_code {
        text.push_str(&format!(", exit code {code}"));
    }
    if !ending.signal.is_empty() {
        text.push_str(&format!(", {}", ending.signal));
    }
    if !ending.message.is_empty() {
        text.push_str(&format!(": {}", ending.message));
    }
    text
}
