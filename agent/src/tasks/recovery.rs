//! What becomes of the tasks of an earlier agent. Those that a supervisor holds go on; of the others, the result
//! is said as far as it can be proved, and what is left of their processes is ended.

use std::{collections::HashMap, io, sync::Arc, task::Waker, time::Duration};

use muster_proto::{
    agent::v1::SealedOffer,
    ids::TaskId,
    v1::{Reason, task::State},
};
use muster_runtime::backoff::Backoff;
use prost::Message;
use tracing::{Instrument, info_span};

use super::{
    Tasks,
    execution::{Over, Taken},
    journal::{Held, Phase},
    not_after_ms,
    overflow::Overflow,
    task::Task,
};
use crate::{
    actions::{self, GRACE},
    spool::{Content, Next, Piece, Position, Room, Spool},
    supervision::{
        Left, Link, SupervisorId,
        protocol::{Cancel, Cause, Gap, News, Order, Output, Reached},
    },
};

/// How soon a supervisor that does not answer is asked again, at first and at last.
const ASK_FIRST: Duration = Duration::from_millis(50);
const ASK_LAST: Duration = Duration::from_secs(1);

impl Tasks {
    /// Takes up what the journal holds unsettled, and what these supervisors hold.
    pub(super) fn recover(&self, unsettled: Vec<Held>, alive: Vec<SupervisorId>) {
        let mut taken_up = Vec::new();
        for held in unsettled {
            let task_id = held.task_id;
            let _entered = info_span!("task", task.id = %task_id).entered();
            let wanted = actions::output_limit(&held.sealed_offer);
            let overflow = Overflow::of(wanted, self.0.limits.task_spool);
            let spool = Spool::recover(
                task_id,
                Arc::clone(&self.0.room),
                overflow.keep(),
                held.produced,
            );
            let task = Task::new(
                task_id,
                held.sealed_offer.clone(),
                held.seal.clone(),
                Arc::new(spool),
            );
            if let Some(started) = held.started.clone() {
                task.started(self.0.journal.position(), started);
            }
            self.0.held.lock().insert(task_id, Arc::clone(&task));
            let supervisor = held.supervisor.filter(|id| alive.contains(id));
            taken_up.extend(self.resolve(task, held, supervisor));
        }
        for id in alive.into_iter().filter(|id| !taken_up.contains(id)) {
            self.dismiss(id);
        }
    }

    /// Says what becomes of a task; names its supervisor if that goes on with it.
    fn resolve(
        &self,
        task: Arc<Task>,
        held: Held,
        supervisor: Option<SupervisorId>,
    ) -> Option<SupervisorId> {
        let same_boot = held.boot_id == self.0.boot_id;
        match held.phase {
            Phase::Ended(ended) => {
                Left::new(&self.0.left, task.id).forget();
                task.ended(self.0.journal.position(), ended);
            }
            Phase::Barred | Phase::Settled { .. } => {
                task.ended(self.0.journal.position(), self.cancelled_before_start());
            }
            Phase::Starting | Phase::Started if supervisor.is_some() && same_boot => {
                self.spawn(self.clone().adopt(task, supervisor?));
                return supervisor;
            }
            Phase::Starting | Phase::Started => {
                self.spawn(self.clone().prove(task, same_boot, false));
            }
            // Not even an accepted one can be started after a reboot: that it was started may be just
            // what the power cut took from the journal.
            Phase::Accepted if !same_boot => {
                self.finish(&task, self.rebooted());
            }
            Phase::Accepted => self.0.waiting.lock().push(task),
        }
        None
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0
            .running
            .spawn(future.instrument(tracing::Span::current()));
    }

    /// Starts what an earlier agent had taken and not started, if it is still in time.
    #[allow(clippy::result_large_err)] // As in `admit`.
    pub(super) fn start_waiting(&self) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        for task in waiting {
            let admitted = SealedOffer::decode(task.sealed_offer.clone())
                .map_err(|error| self.over(State::Rejected, Reason::SealInvalid, error.to_string()))
                .and_then(|mut sealed| {
                    let kind = sealed.action.take().and_then(actions::of);
                    self.admit(&sealed, kind, not_after_ms(&sealed), HashMap::new())
                });
            match admitted {
                Err(refusal) => {
                    self.finish(&task, refusal);
                }
                Ok(admitted) => self.run(task, admitted, None),
            }
        }
    }

    /// Goes on with a task below the supervisor that holds it. One that cannot be understood is waited for: it keeps
    /// the output, and leaves the end in a file.
    async fn adopt(self, task: Arc<Task>, id: SupervisorId) {
        self.0.supervisors.adopted();
        let mut cancel = task.cancel.subscribe();
        cancel.mark_changed();
        let mut cancelled = false;
        let mut pauses = Backoff::new(ASK_FIRST, ASK_LAST);
        let mut said = false;
        loop {
            let why = match Link::adopt(&self.0.left, id).await {
                Ok((mut link, holds)) if holds == task.id.to_string() => {
                    tracing::info!("found the task below its supervisor, process {}", id.pid);
                    let over = match link.resume(task.spool.produced()) {
                        Ok(()) => self.hear(&task, &mut link).await,
                        Err(_) => Over::SupervisorDied,
                    };
                    if !matches!(over, Over::SupervisorDied) {
                        return self.conclude(&task, link, over).await;
                    }
                    "it hung up".to_owned()
                }
                Ok(_) => break,
                // It may be stopped, or wait for a disk.
                Err(error) => error.to_string(),
            };
            if !id.lives() {
                break;
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(
                    "the supervisor of a task, process {}, cannot be talked to, so the task takes no input, and its \
                     output and its end are told once it is over: {why}",
                    id.pid
                );
            }
            tokio::select! {
                () = pauses.wait() => {}
                changed = cancel.changed() => {
                    let grace = *cancel.borrow_and_update();
                    if let (Ok(()), Some(grace)) = (changed, grace) {
                        cancelled = true;
                        self.tree(&task).1.end(grace).await;
                    }
                }
                () = self.0.stopping.cancelled() => return,
            }
        }
        self.0.supervisors.lost();
        self.prove(task, true, cancelled).await;
    }

    /// Says what can be proved of a task without a supervisor, and ends what is left of it. `cancelled`: the agent
    /// ended it, and its supervisor does not know that.
    async fn prove(self, task: Arc<Task>, same_boot: bool, cancelled: bool) {
        let left = Left::new(&self.0.left, task.id);
        let record = left.record();
        let written = record
            .as_ref()
            .and_then(|record| record.ended.as_ref()?.written);
        if !self.take_left(&task, written).await {
            return;
        }
        let ended = match record {
            Some(record) => {
                if let Some(started) = record.started {
                    self.started(&task, started);
                }
                match (record.ended, record.not_started) {
                    (Some(mut ended), _) => {
                        if cancelled && ended.cause() == Cause::ByItself {
                            ended.set_cause(Cause::Cancelled);
                        }
                        self.judge(ended)
                    }
                    (None, Some(refusal)) => self.not_started(refusal),
                    (None, None) => self.after_supervisor(&task, false).await,
                }
            }
            None if same_boot => self.after_supervisor(&task, false).await,
            None => self.rebooted(),
        };
        if self.finish(&task, ended) {
            left.forget();
        }
    }

    /// Takes over the output that a supervisor which is gone has left on disk, with a gap for the rest of what was
    /// written, where it said how much that is. `false` if the runtime is stopping.
    pub(super) async fn take_left(&self, task: &Task, written: Option<Reached>) -> bool {
        let (spool, directory) = (Arc::clone(&task.spool), self.0.left.clone());
        let limits = self.0.limits.clone();
        let task_id = task.id;
        let taking = tokio::task::spawn_blocking(move || {
            let room = Arc::new(Room::new(directory, limits.spool, limits.free_percent));
            let written = written.as_ref().map(Reached::streams);
            let left = Spool::recover(task_id, room, limits.task_spool, written);
            take_over(&left, &spool)
        });
        match taking.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "output of a task cannot be read: {error}");
                true
            }
            Err(_) => false,
        }
    }

    /// Lets go of a supervisor whose task is over, or ends a task that the journal does not know: nobody would
    /// ever ask for it.
    fn dismiss(&self, id: SupervisorId) {
        let tasks = self.clone();
        self.spawn(async move {
            if let Err(error) = tasks.try_dismiss(id).await {
                tracing::warn!(%error, "a supervisor of an earlier agent, process {}, cannot be dismissed: {error}", id.pid);
            }
        });
    }

    async fn try_dismiss(&self, id: SupervisorId) -> io::Result<()> {
        let (mut link, holds) = Link::adopt(&self.0.left, id)
            .await
            .map_err(io::Error::other)?;
        let Ok(task_id) = holds.parse::<TaskId>() else {
            return Ok(()); // Without a task it leaves by itself.
        };
        let held = self.0.journal.find(&task_id).map(|held| held.phase);
        if !matches!(held, Some(Phase::Ended(_) | Phase::Settled { .. })) {
            tracing::warn!(
                task.id = holds,
                "ending a task that the journal does not know"
            );
            link.resume([i64::MAX; 3])?;
            let grace_ms = u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX);
            link.send(Order::Cancel(Cancel { grace_ms }))?;
            loop {
                let news = tokio::select! {
                    news = link.next() => news?,
                    () = self.0.stopping.cancelled() => return Ok(()),
                };
                if matches!(news, News::Ended(_) | News::NotStarted(_)) {
                    break;
                }
            }
        }
        link.release()
    }

    fn rebooted(&self) -> muster_proto::agent::v1::task_state::Ended {
        let message = "the host was restarted while the task was in flight".to_owned();
        self.over(State::Lost, Reason::HostRebooted, message)
    }
}

/// Moves all output of one spool to another, but for what is there already.
fn take_over(left: &Spool, spool: &Arc<Spool>) -> io::Result<()> {
    let mut taken = Taken::new(spool);
    let mut position = Position::default();
    let mut after = left.acknowledged();
    loop {
        let pieces = match left.next(after, Waker::noop()) {
            Next::Piece(piece) => vec![piece],
            Next::Stored => left.read(after, &mut position)?,
            Next::Nothing | Next::Gone | Next::End { .. } => Vec::new(),
        };
        if pieces.is_empty() {
            break;
        }
        for piece in pieces {
            after = piece.sequence;
            take_piece(&mut taken, piece);
        }
    }
    left.forget();
    Ok(())
}

fn take_piece(taken: &mut Taken, piece: Piece) {
    let stream = piece.stream_index() as u32;
    match piece.content {
        Content::Data(data) => taken.take_now(Output {
            stream,
            offset: piece.offset,
            data,
        }),
        Content::Missing { length, cause } => taken.take_gap(Gap {
            stream,
            offset: piece.offset,
            length,
            cause,
        }),
    }
}
