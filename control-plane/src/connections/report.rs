//! The Report stream of one task: state and output up, acknowledgements and input down.

mod inputs;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use muster_client::audit::sha256;
use muster_proto::{
    agent::v1::{
        Ack, Open, ReportRequest, ReportResponse, Resume, Settled, TaskState,
        report_request::Message as Up,
        report_response::Message as Down,
        task_state::{Ended, Event},
    },
    ids::{HostId, TaskId},
    v1::Reason,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use self::inputs::Inputs;
use super::{Rooms, confined, driver::refusal, receipts::Told, renumber::Renumbering};
use crate::{
    clock::now,
    jobs::{AdoptError, TaskRef},
    model::order::record::OrderRecord,
    output::{Chunk, Gap},
    sessions::{End, Session},
    times,
    wire::{heard, status, streams},
};

/// How long a stream may take to say which task it reports.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How long an agent that does not read has for the last message.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Messages down that may wait: acknowledgements, of which a later one replaces an earlier, and input.
const QUEUE: usize = 8;

/// Bytes of one chunk.
const CHUNK_MAX: usize = 256 << 10;

type Wire = mpsc::Sender<Result<ReportResponse, Status>>;

/// Serves one report. The stream that is returned is what the agent hears.
pub(crate) async fn report(
    rooms: Rooms,
    host_id: HostId,
    mut incoming: Streaming<ReportRequest>,
) -> Result<impl Stream<Item = Result<ReportResponse, Status>> + Send + use<>, Status> {
    let open = match timeout(OPEN_LIMIT, incoming.message()).await {
        Ok(Ok(Some(ReportRequest {
            message: Some(Up::Open(open)),
        }))) => open,
        Ok(Err(status)) => return Err(status),
        Ok(Ok(_)) => return Err(status::invalid("open", "is the first message")),
        Err(_) => return Err(status::invalid("open", "did not come within 10 s")),
    };
    let session = rooms
        .connections
        .current(host_id)
        .filter(|session| session.epoch == open.session_epoch)
        .ok_or_else(|| refusal(End::Superseded))?;
    let (task, offer_digest) = task(&rooms, &session, &open).await?;
    let (wire, messages) = mpsc::channel(QUEUE);
    if !open.fresh {
        // What is taken and not durable yet comes again: the agent lets go of all before this.
        let after_sequence = rooms
            .output
            .durable(task.look(|task| task.task_id))
            .await
            .map_err(unavailable)?;
        // The queue is empty.
        let _ = wire.try_send(Ok(down(Down::Resume(Resume { after_sequence }))));
    }
    let id = task.look(|task| task.task_id);
    let superseded = session.reports.begin(id);
    let span = tracing::info_span!("report", task.id = %id, host.id = %host_id);
    tokio::spawn(
        async move {
            let inputs = Inputs::new(rooms.jobs.open_road(id), wire.clone());
            let recorded = task.job.order.action.records_times();
            let report = Report {
                rooms,
                session,
                task,
                id,
                wire,
                recorded,
                numbers: Renumbering::default(),
                offer_digest,
                ended: Mutex::default(),
                end_told: AtomicBool::new(false),
                complained: AtomicBool::new(false),
            };
            let run = report.run(incoming, inputs);
            let outcome = tokio::select! {
                outcome = run => outcome,
                // The agent goes on with another stream, and does not listen to this one any more.
                () = superseded.cancelled() => Ok(()),
            };
            report.session.reports.end(id, &superseded);
            if let Err(status) = outcome {
                tracing::warn!("a report ended: {}", status.message());
                let _ = timeout(LAST_WORDS, report.wire.send(Err(status))).await;
            }
        }
        .instrument(span),
    );
    Ok(ReceiverStream::new(messages))
}

/// The task that is reported: known, or adopted from its sealed offer. With the digest of that offer, if it came along.
async fn task(
    rooms: &Rooms,
    session: &Session,
    open: &Open,
) -> Result<(TaskRef, Option<Bytes>), Status> {
    let id: TaskId = open
        .task_id
        .parse()
        .map_err(|_| status::invalid("open.task_id", "is no task id"))?;
    let own = |offer: &OrderRecord| offer.task() == Some((id, session.host_id));
    let unsealed = rooms.jobs.unseal(&open.sealed_offer, &open.seal);
    let unsealed = unsealed.filter(own);
    let digest = unsealed.as_ref().map(|_| sha256(&open.sealed_offer));
    let found = rooms.jobs.find(id).await.map_err(status::of)?;
    if let Some(task) = found {
        if task.look(|task| task.host_id) != session.host_id {
            return Err(status::refuse(
                Reason::SealInvalid,
                "the task belongs to another host",
            ));
        }
        if task.look(|task| task.offered.is_none()) {
            if unsealed.is_some() {
                rooms
                    .jobs
                    .proved_offered(&task, session.fence.clone(), session.epoch);
            } else if task.look(|task| !task.state.is_final()) {
                return Err(status::refuse(
                    Reason::SealInvalid,
                    "the task was not offered to this host",
                ));
            }
        }
        return Ok((task, digest));
    }
    let offer = unsealed.ok_or_else(|| {
        status::refuse(
            Reason::SealInvalid,
            "the task is unknown, and the offer is not sealed by this control plane for this host",
        )
    })?;
    let adopted = rooms.jobs.adopt(offer, session.fence.clone()).await;
    match adopted {
        Ok(task) => Ok((task, digest)),
        Err(error @ (AdoptError::Ids | AdoptError::Unreadable(_))) => {
            Err(status::refuse(Reason::SealInvalid, &error.to_string()))
        }
        Err(AdoptError::Store(error)) => Err(status::of(error)),
    }
}

struct Report {
    rooms: Rooms,
    session: Arc<Session>,
    task: TaskRef,
    id: TaskId,
    wire: Wire,
    /// Output is kept with the times at which it comes.
    recorded: bool,
    /// How the agent counts its output.
    numbers: Renumbering,
    /// The digest of the offer as the agent holds it, if it showed that under our seal.
    offer_digest: Option<Bytes>,
    /// The end as it was reported, with its receipt, and when that was by our clock.
    // Held for a look only.
    ended: Mutex<Option<(Ended, i64)>>,
    /// The end was reported, whether it makes sense or not.
    end_told: AtomicBool,
    /// It was noted in the log that the report makes no sense.
    complained: AtomicBool,
}

impl Report {
    async fn run(
        &self,
        mut incoming: Streaming<ReportRequest>,
        mut inputs: Inputs,
    ) -> Result<(), Status> {
        let mut durable = self
            .rooms
            .output
            .watch_durable(self.id)
            .await
            .map_err(unavailable)?;
        loop {
            tokio::select! {
                // Before reading, which a busy host keeps ready for ever: an end must hold, and an agent
                // that hears no acknowledgement runs out of room.
                end = self.session.ended() => return Err(refusal(end)),
                changed = durable.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let sequence = self.numbers.acknowledged(*durable.borrow_and_update());
                    // A later one says the same and more.
                    let _ = self.wire.try_send(Ok(down(Down::Ack(Ack { sequence }))));
                }
                () = inputs.pass_on() => {}
                message = incoming.message() => match message? {
                    Some(ReportRequest { message: Some(Up::InputResult(result)) }) => {
                        inputs.answered(&result);
                    }
                    Some(ReportRequest { message: Some(message) }) => {
                        self.take(message).await?;
                        if self.is_whole() {
                            return self.settle(&mut durable).await;
                        }
                    }
                    Some(ReportRequest { message: None }) => {}
                    None => return Ok(()),
                },
            }
        }
    }

    /// Whether all was said that the host has to say. Its end is said after each open, and brings the receipt: without it
    /// a task that was known to be over would be settled before that is signed.
    fn is_whole(&self) -> bool {
        self.end_told.load(Ordering::Relaxed)
            && (self.task).look(|task| task.state.is_final() && task.output_end.is_some())
    }

    async fn take(&self, message: Up) -> Result<(), Status> {
        let is_output = matches!(message, Up::Chunk(_) | Up::Gap(_) | Up::Kept(_));
        if is_output && self.has_all().await? {
            // Nothing comes after the end.
            return Ok(());
        }
        match message {
            Up::Open(_) => Err(status::invalid("open", "comes once")),
            // Taken where the inputs are.
            Up::InputResult(_) => Ok(()),
            Up::State(state) => {
                self.state(state);
                Ok(())
            }
            Up::Chunk(chunk) => {
                if chunk.data.len() > CHUNK_MAX {
                    return Err(status::invalid("chunk.data", "has at most 256 KiB"));
                }
                let stream = streams::stream(chunk.stream)
                    .ok_or_else(|| status::invalid("chunk.stream", "is not said"))?;
                let bytes = chunk.data.len() as u64;
                let chunk = Chunk {
                    sequence: chunk.sequence,
                    stream,
                    offset: chunk.offset,
                    data: chunk.data,
                    time: self.recorded.then(now),
                };
                let taken = self
                    .numbers
                    .append(&self.rooms.output, self.id, chunk)
                    .await;
                // What was known before is nothing that the task has written.
                if taken.map_err(unavailable)? {
                    (self.rooms.written)(&self.task.job.order.principal, bytes);
                }
                self.rooms.jobs.output_taken(&self.task);
                Ok(())
            }
            Up::Gap(gap) => {
                let stream = streams::stream(gap.stream)
                    .ok_or_else(|| status::invalid("gap.stream", "is not said"))?;
                let gap = Gap {
                    sequence: gap.sequence,
                    stream,
                    offset: gap.offset,
                    length: gap.length,
                    cause: heard::words(gap.cause),
                };
                let taken = self.numbers.gap(&self.rooms.output, self.id, gap).await;
                taken.map_err(unavailable)?;
                self.rooms.jobs.output_taken(&self.task);
                Ok(())
            }
            Up::OutputEnd(end) => {
                let last = self
                    .numbers
                    .last(&self.rooms.output, self.id, end.last_sequence);
                let last = last.await.map_err(unavailable)?;
                // What was reported counts, even if its host would end before it.
                let known = self.rooms.output.last_sequence(self.id).await;
                let last = last.max(known.map_err(unavailable)?);
                let complete = self.rooms.output.complete(self.id, last);
                complete.await.map_err(unavailable)?;
                self.rooms.jobs.output_ended(&self.task, last);
                Ok(())
            }
            Up::Kept(kept) => {
                let taken = self.numbers.kept(&self.rooms.output, self.id, &kept).await;
                taken.map_err(unavailable)?;
                self.rooms.jobs.output_taken(&self.task);
                Ok(())
            }
        }
    }

    /// Whether all output is here that there will ever be.
    async fn has_all(&self) -> Result<bool, Status> {
        let Some(end) = self.task.look(|task| task.output_end) else {
            return Ok(false);
        };
        let last = self.rooms.output.last_sequence(self.id).await;
        Ok(last.map_err(unavailable)? >= end)
    }

    /// A report that contradicts what is known changes nothing; it is logged, and settled all the
    /// same, since it would only be sent again.
    fn state(&self, state: TaskState) {
        let heard = self.rooms.connections.hear(
            self.session.host_id,
            &self.session.fence,
            state.journal_position,
        );
        if let Some(heard) = heard {
            self.rooms.jobs.heard(self.session.host_id, heard);
        }
        let time = |theirs: Option<prost_types::Timestamp>| {
            self.session
                .our_time(theirs.as_ref().map(times::millis), now())
        };
        let taken = match state.event {
            Some(Event::Started(started)) => {
                let confinement = heard::confinement_in(started.confinement);
                let weaker = confined::weaker(&self.task.job.order.confinement, &confinement);
                let taken = self
                    .rooms
                    .jobs
                    .started(&self.task, time(started.time), confinement);
                if let (Ok(()), Some(words)) = (&taken, weaker) {
                    self.rooms.jobs.doubt(&self.task, &words);
                }
                taken
            }
            Some(Event::Ended(ended)) => {
                self.end_told.store(true, Ordering::Relaxed);
                let at = time(ended.time);
                match heard::ending(ended.clone(), at) {
                    Some(ending) => {
                        let taken = self.rooms.jobs.ended(&self.task, ending);
                        if taken.is_ok() {
                            *self.ended.lock() = Some((ended, at));
                        }
                        taken
                    }
                    None => return self.complain("a report ends a task with no final state"),
                }
            }
            None => return,
        };
        if let Err(error) = taken {
            self.complain(&format!("a report contradicts the ledger: {error}"));
        }
    }

    /// Once a report: an agent that says such things may say them all the time.
    fn complain(&self, words: &str) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!("{words}");
        }
    }

    /// Everything is said: waits until it is durable, and says so.
    async fn settle(&self, durable: &mut watch::Receiver<i64>) -> Result<(), Status> {
        let last = self.task.look(|task| task.output_end).unwrap_or_default();
        let all_durable = async {
            let output = durable.wait_for(|sequence| *sequence >= last).await;
            output.map_err(|_| refusal(End::Stopping))?;
            // The caller has its answer by now, and what is found is written with the rest.
            let ended = self.ended.lock().take();
            if let Some((ended, at)) = ended {
                let told = Told {
                    ended: &ended,
                    time: at,
                    offer_digest: self.offer_digest.clone(),
                };
                let settled = self
                    .rooms
                    .settle_receipt(&self.session, &self.task, &told)
                    .await;
                settled.map_err(unavailable)?;
            }
            let job = self.task.job.order.job_id;
            let written = self.rooms.jobs.job_durable(job).await;
            written.map_err(status::of)
        };
        tokio::select! {
            settled = all_durable => settled?,
            end = self.session.ended() => return Err(refusal(end)),
        }
        // An agent that is gone, or does not read, asks again.
        let settled = self.wire.send(Ok(down(Down::Settled(Settled {}))));
        let _ = timeout(LAST_WORDS, settled).await;
        Ok(())
    }
}

fn down(message: Down) -> ReportResponse {
    ReportResponse {
        message: Some(message),
    }
}

fn unavailable(error: crate::output::OutputError) -> Status {
    tracing::warn!(%error, "output was not taken: {error}");
    status::of(error)
}
