//! Following a job: states and output as they come, and where to go on.
//!
//! A watcher is woken to look again and then reads what it has not shown: states from the job, output
//! from the store. So a slow one costs nothing but its own delay. What it has shown is its token.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use muster_proto::ids::TaskId;
use tokio::{sync::watch, time::Instant};

use super::{Job, ids};
use crate::{
    model::{JobState, State, Summary, Task},
    output::{Item, OutputError, OutputStore},
    store::StoreError,
};

/// Bytes of output in one update, about.
pub(super) const UPDATE_BYTES: usize = 256 << 10;

/// Events in one update.
const UPDATE_EVENTS: usize = 1000;

/// A job with more tasks than this is shown at most once in `PAUSE`: its token is long.
const BIG: usize = 256;

/// See `BIG`.
const PAUSE: Duration = Duration::from_millis(20);

/// Something that a watcher has not seen.
pub(crate) enum Event {
    /// The job as it stands now.
    Job(Summary),
    /// A task as it stands now.
    Task(Box<Task>),
    /// Output, or a gap in it.
    Output(TaskId, Item),
}

/// What happened since the last update, and where it ends.
pub(crate) struct Update {
    /// What happened.
    pub(crate) events: Vec<Event>,
    /// Continues after these events.
    pub(crate) token: String,
}

/// Why a job cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// Not a token of this job.
    #[error("resume_token: it is malformed, or belongs to another watch; begin without one")]
    Token,
    /// The ledger cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Output cannot be read.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// What was shown of a task: a digest of its state, 0 for nothing, and the last sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shown {
    state: u64,
    sequence: i64,
}

impl Shown {
    /// No state, and output up to this sequence.
    pub(super) fn after(sequence: i64) -> Self {
        Self { state: 0, sequence }
    }

    /// Shows what is new of a task, without output unless it says where that is; says whether that was all.
    pub(super) async fn show(
        &mut self,
        job: &Job,
        ordinal: u32,
        output: Option<&OutputStore>,
        budget: &mut usize,
        events: &mut Vec<Event>,
    ) -> Result<bool, WatchError> {
        let mut task = job.task(ordinal);
        if let Some(size) = output.and_then(|output| output.size_now(task.task_id)) {
            task.output_size = size;
        }
        let digest = task_digest(&task);
        let mut shown = *self;
        let task_id = task.task_id;
        let is_final = task.state.is_final();
        let output_end = task.output_end;
        let mut task = Some(Box::new(task)).filter(|_| digest != shown.state);
        // An end comes after the output before it, everything else before the output after it.
        if let Some(task) = task.take_if(|_| !is_final) {
            events.push(Event::Task(task));
            shown.state = digest;
        }
        let mut all = true;
        if let Some(output) = output.filter(|_| output_end.is_none_or(|end| shown.sequence < end)) {
            let items = output.read_after(task_id, shown.sequence, *budget).await?;
            let read: usize = items.iter().map(Item::weight).sum();
            *budget = budget.saturating_sub(read);
            let found = !items.is_empty();
            for item in items {
                shown.sequence = item.sequence;
                events.push(Event::Output(task_id, item));
            }
            // What is promised and not found was dropped with old history.
            all = !found || shown.sequence >= output.last_sequence(task_id).await?;
        }
        if all && let Some(task) = task {
            events.push(Event::Task(task));
            shown.state = digest;
        }
        *self = shown;
        Ok(all)
    }
}

/// Follows a job.
pub(crate) struct Watch {
    job: Arc<Job>,
    output: OutputStore,
    changed: watch::Receiver<()>,
    states_only: bool,
    shown_job: u64,
    shown: Vec<Shown>,
    version: u64,
    /// Ordinals to look at, each once.
    backlog: VecDeque<u32>,
    queued: HashSet<u32>,
    last: Option<Instant>,
}

impl Watch {
    pub(super) fn new(
        job: Arc<Job>,
        output: OutputStore,
        token: &str,
        states_only: bool,
    ) -> Result<Self, WatchError> {
        let mut watch = Self {
            changed: job.changed(),
            output,
            states_only,
            shown_job: 0,
            shown: vec![Shown::default(); job.len() as usize],
            version: 0,
            backlog: VecDeque::new(),
            queued: HashSet::new(),
            last: None,
            job,
        };
        if !token.is_empty() {
            watch.resume(token).ok_or(WatchError::Token)?;
        }
        Ok(watch)
    }

    /// The job as it stands now.
    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// What happens next; `None` once every task is final and its output complete and shown.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, WatchError> {
        if let Some(last) = self.last.filter(|_| self.shown.len() > BIG) {
            tokio::time::sleep_until(last + PAUSE).await;
        }
        loop {
            self.changed.borrow_and_update();
            // Before the look: what is not done now wakes us again.
            let done = self.job.is_done();
            let (changes, version) = self.job.changes(self.version);
            self.version = version;
            for ordinal in changes {
                if self.queued.insert(ordinal) {
                    self.backlog.push_back(ordinal);
                }
            }
            let mut events = Vec::new();
            if self.shown_job == 0 {
                self.show_job(&mut events);
            }
            let mut budget = UPDATE_BYTES;
            while budget > 0 && events.len() < UPDATE_EVENTS {
                let Some(ordinal) = self.backlog.pop_front() else {
                    break;
                };
                if self.show_task(ordinal, &mut budget, &mut events).await? {
                    self.queued.remove(&ordinal);
                } else {
                    // In turn, so that one chatty task does not hide the others.
                    self.backlog.push_back(ordinal);
                }
            }
            if self.backlog.is_empty() {
                // After its tasks: who sees the job final has seen all of it.
                self.show_job(&mut events);
            }
            if !events.is_empty() {
                self.last = Some(Instant::now());
                return Ok(Some(Update {
                    events,
                    token: self.token(),
                }));
            }
            if self.backlog.is_empty() {
                if done {
                    return Ok(None);
                }
                if self.changed.changed().await.is_err() {
                    return Ok(None);
                }
            }
        }
    }

    fn show_job(&mut self, events: &mut Vec<Event>) {
        let summary = self.job.summary();
        let digest = job_digest(&summary);
        if digest != self.shown_job {
            self.shown_job = digest;
            events.push(Event::Job(summary));
        }
    }

    /// Shows what is new of a task; says whether that was all.
    async fn show_task(
        &mut self,
        ordinal: u32,
        budget: &mut usize,
        events: &mut Vec<Event>,
    ) -> Result<bool, WatchError> {
        let index = ordinal as usize;
        if self.shown.len() <= index {
            self.shown.resize(index + 1, Shown::default());
        }
        let output = (!self.states_only).then_some(&self.output);
        self.shown[index]
            .show(&self.job, ordinal, output, budget, events)
            .await
    }

    /// Job, flags, then runs of equal tasks: state, sequence, how many.
    fn token(&self) -> String {
        let mut bytes = self.binding().to_vec();
        write(&mut bytes, self.shown_job);
        for run in self.shown.chunk_by(|a, b| a == b) {
            write(&mut bytes, run[0].state);
            write(&mut bytes, run[0].sequence.unsigned_abs());
            write(&mut bytes, run.len() as u64);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn resume(&mut self, token: &str) -> Option<()> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let mut rest = bytes.strip_prefix(self.binding().as_slice())?;
        self.shown_job = read(&mut rest)?;
        let mut at = 0_usize;
        while !rest.is_empty() {
            let state = read(&mut rest)?;
            let sequence = i64::try_from(read(&mut rest)?).ok()?;
            let run = usize::try_from(read(&mut rest)?).ok()?;
            let tasks = self.shown.get_mut(at..at.checked_add(run)?)?;
            tasks.fill(Shown { state, sequence });
            at += run;
        }
        Some(())
    }

    /// Ties a token to its job and kind of watch.
    fn binding(&self) -> [u8; 8] {
        let id = self.job.order.job_id.to_string();
        let kind: &[u8] = if self.states_only { b"states" } else { b"all" };
        let digest = ids::digest(&[b"muster-watch-v1", id.as_bytes(), kind]);
        digest[..8].try_into().expect("8 of 32 bytes")
    }
}

fn job_digest(job: &Summary) -> u64 {
    let state = JobState::ALL
        .iter()
        .position(|(state, _)| *state == job.state)
        .unwrap_or_default() as u64;
    let awaits = job.counts.of(State::AwaitingApproval) > 0;
    1 + state + (u64::from(job.cancel.is_some()) << 3) + (u64::from(awaits) << 4)
}

fn task_digest(task: &Task) -> u64 {
    let flags = [
        task.offered.is_some(),
        task.output_complete,
        task.cancel_time.is_some(),
        !task.late_result.is_empty(),
    ];
    let flags = flags
        .into_iter()
        .fold(0, |flags, flag| flags << 1 | u64::from(flag));
    // How many have approved it stands in its message.
    let approval = match task.state {
        State::AwaitingApproval => u64::from(crc32fast::hash(task.message.as_bytes())) << 8,
        _ => 0,
    };
    1 + (task.state as u64) + (flags << 4) + approval
}

fn write(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_read_back(numbers in prop::collection::vec(0..1_u64 << 62, 0..20)) {
            let mut bytes = Vec::new();
            for number in &numbers {
                write(&mut bytes, *number);
            }
            let mut rest = bytes.as_slice();
            for number in numbers {
                prop_assert_eq!(read(&mut rest), Some(number));
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn rubbish_is_no_token(rubbish in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut rest = rubbish.as_slice();
            while read(&mut rest).is_some() {}
        }
    }
}
