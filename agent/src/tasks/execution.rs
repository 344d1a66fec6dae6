//! One task below a supervisor, from the agent's side: started, or taken up from an earlier agent; its output
//! taken to the spool; its end.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{Input, task_state},
    ids::TaskId,
    v1::OutputStream,
};
use tokio::sync::mpsc;

use super::{
    Tasks,
    spool::{NOT_KEPT, Spool},
    task::Task,
};
use crate::{
    actions::{self, Kind, Work},
    process::StartError,
    supervision::{
        Link,
        protocol::{
            Cancel, Ended, Gap, News, NotStarted, Order, Output, Reached, Start, Started, Variable,
        },
    },
};

/// After so much output, writing to the spool leaves the threads that others wait for: a busy disk
/// may then hold up this task only.
const BULK: u64 = 1 << 20;

/// The supervisor is told what was written down each time that it is so much: this many bytes, or pieces.
const TELL_BYTES: usize = 128 << 10;
const TELL_PIECES: usize = 256;

/// How what a supervisor held came to its end.
pub(super) enum Over {
    /// As it says.
    Ended(Ended),
    /// The process could not be started.
    NotStarted(NotStarted),
    /// The supervisor is gone, and has not said it.
    SupervisorDied,
    /// The agent stops; the task goes on.
    Left,
}

/// What a task wants, as a supervisor wants it.
pub(super) fn start(task_id: TaskId, kind: Box<dyn Kind>) -> Result<Start, StartError> {
    let start = Start {
        task_id: task_id.to_string(),
        user: kind.user().to_owned(),
        timeout_ms: kind.timeout().map(millis),
        grace_ms: millis(kind.grace()),
        ..Start::default()
    };
    Ok(match kind.work()? {
        Work::Program(command) => Start {
            argv: command.argv,
            cwd: command.cwd,
            env: variables(command.env),
            stdin: command.stdin,
            open_stdin: command.open_stdin,
            terminal: command.terminal,
            inherited: command.environment,
            limits: command.limits,
            ..start
        },
        Work::Worker(action) => Start {
            worker: Some(*action),
            ..start
        },
    })
}

fn variables(env: BTreeMap<String, String>) -> Vec<Variable> {
    let env = env.into_iter();
    env.map(|(name, value)| Variable { name, value }).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Tasks {
    /// Hears what a supervisor says about a task, until all is over.
    pub(super) async fn hear(&self, task: &Arc<Task>, link: &mut Link) -> Over {
        let mut cancel = task.cancel.subscribe();
        cancel.mark_changed();
        let mut inputs = task.take_inputs();
        let mut taken = Taken::new(&task.spool);
        let overflow = self.overflow(task);
        loop {
            let full = overflow.blocks() && task.spool.waiting() >= overflow.bytes;
            let news = tokio::select! {
                // What is rare is looked at first: output may come for ever.
                biased;
                () = self.0.stopping.cancelled() => return Over::Left,
                changed = cancel.changed() => {
                    let grace = *cancel.borrow_and_update();
                    if let (Ok(()), Some(grace)) = (changed, grace) {
                        // That the supervisor is gone, if it is, is the next news.
                        let _ = link.send(Order::Cancel(Cancel { grace_ms: millis(grace) }));
                    }
                    continue;
                }
                input = next_input(&mut inputs), if !link.is_full() => {
                    let _ = link.send(Order::Input(input));
                    continue;
                }
                () = task.spool.has_room(overflow.bytes), if full => continue,
                // The process waits while nobody listens to its supervisor.
                news = link.next(), if !full => news,
            };
            match news {
                Ok(News::Started(started)) => self.started(task, started),
                Ok(News::Output(output)) => {
                    if !taken.take(output).await {
                        return Over::Left;
                    }
                    taken.tell(link);
                    if overflow.fails()
                        && task.spool.waiting() >= overflow.bytes
                        && task.overflows()
                    {
                        let grace_ms = millis(actions::grace(&task.sealed_offer));
                        let _ = link.send(Order::Cancel(Cancel { grace_ms }));
                    }
                }
                Ok(News::Gap(gap)) => taken.take_gap(gap),
                Ok(News::InputResult(result)) => task.answered(result),
                Ok(News::NotStarted(not_started)) => return Over::NotStarted(not_started),
                Ok(News::Ended(ended)) => {
                    taken.miss_up_to(&ended);
                    return Over::Ended(ended);
                }
                Ok(News::Hello(_)) => {}
                Err(error) => {
                    tracing::error!(%error, "the supervisor of a task is gone: {error}");
                    return Over::SupervisorDied;
                }
            }
        }
    }

    /// The process of a task runs.
    pub(super) fn started(&self, task: &Task, started: Started) {
        let pid = started.started.pid;
        if task.start().is_some() {
            // An earlier agent had written that down.
            return;
        }
        let entry = super::journal::Started {
            task_id: task.id.to_string(),
            started: Some(started.started),
            start_time: started.start_time,
        };
        self.note_started(task, entry);
        tracing::debug!(pid, "started process {pid}");
    }

    fn note_started(&self, task: &Task, entry: super::journal::Started) {
        let started: Option<task_state::Started> = entry.started.clone();
        let event = super::Event::Started(entry);
        match (self.write(vec![event]), started) {
            (Ok(position), Some(started)) => task.started(position, started),
            (Ok(_), None) => {}
            // The start itself is in the journal; what follows can still be reported from memory.
            (Err(error), _) => tracing::error!(%error, "the journal cannot be written: {error}"),
        }
    }
}

/// The next input. Never returns once nobody can send any.
async fn next_input(inputs: &mut mpsc::Receiver<Input>) -> Input {
    match inputs.recv().await {
        Some(input) => input,
        None => std::future::pending().await,
    }
}

/// What was taken to the spool.
pub(super) struct Taken {
    spool: Arc<Spool>,
    reached: [i64; 3],
    total: u64,
    bytes: usize,
    pieces: usize,
}

impl Taken {
    pub(super) fn new(spool: &Arc<Spool>) -> Self {
        Self {
            spool: Arc::clone(spool),
            reached: spool.produced(),
            total: 0,
            bytes: 0,
            pieces: 0,
        }
    }

    /// Takes a piece, unless it was taken before; `false` if the runtime is stopping.
    pub(super) async fn take(&mut self, output: Output) -> bool {
        let Some((stream, data)) = self.admit(output) else {
            return true;
        };
        if self.total < BULK {
            self.spool.append(stream, data);
            return true;
        }
        let spool = Arc::clone(&self.spool);
        let appended = tokio::task::spawn_blocking(move || spool.append(stream, data));
        appended.await.is_ok()
    }

    /// The same where blocking is allowed.
    pub(super) fn take_now(&mut self, output: Output) {
        if let Some((stream, data)) = self.admit(output) {
            self.spool.append(stream, data);
        }
    }

    /// What of a piece was not taken before.
    fn admit(&mut self, output: Output) -> Option<(OutputStream, Bytes)> {
        let index = (output.stream as usize).min(2);
        let length = output.data.len();
        let end = output.offset + length as i64;
        self.bytes += length;
        self.pieces += 1;
        if end <= self.reached[index] {
            return None;
        }
        self.skip(index, output.offset);
        let known = usize::try_from(self.reached[index] - output.offset).unwrap_or(0);
        self.reached[index] = end;
        self.total += length as u64;
        let stream = OutputStream::try_from(index as i32 + 1).unwrap_or(OutputStream::Unspecified);
        Some((stream, output.data.slice(known.min(length)..)))
    }

    /// Takes note of what was not kept.
    pub(super) fn take_gap(&mut self, gap: Gap) {
        let index = (gap.stream as usize).min(2);
        let length = gap.offset + gap.length - self.reached[index];
        if length > 0 {
            self.reached[index] += length;
            self.spool.append_gap(index, length, gap.cause);
        }
        self.pieces += 1;
    }

    /// All of a task was said, and it wrote so much: nobody has the rest.
    fn miss_up_to(&mut self, ended: &Ended) {
        let written = ended.written.as_ref().map(Reached::streams);
        for (index, end) in written.into_iter().flatten().enumerate() {
            self.skip(index, end);
        }
    }

    /// What came before this was had by an earlier agent, which could not keep it.
    fn skip(&mut self, index: usize, offset: i64) {
        let length = offset - self.reached[index];
        if length > 0 {
            self.reached[index] = offset;
            self.spool.append_gap(index, length, NOT_KEPT.to_owned());
        }
    }

    /// Tells the supervisor how far this is, now and then.
    fn tell(&mut self, link: &mut Link) {
        if self.bytes >= TELL_BYTES || self.pieces >= TELL_PIECES {
            self.bytes = 0;
            self.pieces = 0;
            // That the supervisor is gone, if it is, is the next news.
            let _: io::Result<()> = link.send(Order::Taken(Reached::new(self.reached)));
        }
    }
}
