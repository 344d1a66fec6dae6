//! The Upload stream of one host: what it still knows of settled tasks, after a restore.
//!
//! The agent waits for each answer before it says more, and few hosts have their turn at once: so an upload of any
//! length takes little memory, and leaves the ledger to others in between.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use muster_client::audit::sha256;
use muster_proto::{
    agent::v1::{
        KnownTasks, RecalledTask, RecalledTasks, TakenTasks, UploadComplete, UploadRequest,
        UploadResponse, WantedTasks, task_state::Ended, upload_request::Message as Up,
        upload_response::Message as Down,
    },
    ids::{HostId, TaskId},
    v1::Reason,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::{Rooms, driver::refusal, receipts::Told};
use crate::{
    clock::now,
    jobs::{RecallError, Recalled},
    sessions::{End, Session},
    times,
    wire::{heard, status},
};

/// How long a stream may take to say which session it belongs to.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How long an agent may take over its next message once it has its turn: others wait for it.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Tasks in one message.
const TASKS_MAX: usize = 1000;

type Wire = mpsc::Sender<Result<UploadResponse, Status>>;

/// Serves one upload. The stream that is returned is what the agent hears.
pub(crate) async fn upload(
    rooms: Rooms,
    host_id: HostId,
    mut incoming: Streaming<UploadRequest>,
) -> Result<impl Stream<Item = Result<UploadResponse, Status>> + Send + use<>, Status> {
    let open = match timeout(OPEN_LIMIT, incoming.message()).await {
        Ok(Ok(Some(UploadRequest {
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
    // What is uploaded now counts for this generation, whatever begins meanwhile.
    let generation = rooms.restores.generation();
    let (wire, messages) = mpsc::channel(1);
    let superseded = CancellationToken::new();
    let older = std::mem::replace(&mut *session.upload.lock(), superseded.clone());
    older.cancel();
    let span = tracing::info_span!("upload", host.id = %host_id);
    tokio::spawn(
        async move {
            let upload = Upload {
                rooms,
                session,
                generation,
                wire,
            };
            let outcome = tokio::select! {
                outcome = upload.run(incoming) => outcome,
                () = superseded.cancelled() => Err(refusal(End::Superseded)),
            };
            if let Err(status) = outcome {
                tracing::warn!("an upload ended: {}", status.message());
                let _ = timeout(SILENCE_MAX, upload.wire.send(Err(status))).await;
            }
        }
        .instrument(span),
    );
    Ok(ReceiverStream::new(messages))
}

struct Upload {
    rooms: Rooms,
    session: Arc<Session>,
    generation: Arc<str>,
    wire: Wire,
}

impl Upload {
    async fn run(&self, mut incoming: Streaming<UploadRequest>) -> Result<(), Status> {
        let _turn = tokio::select! {
            turn = self.rooms.restores.turn() => turn,
            end = self.session.ended() => return Err(refusal(end)),
        };
        let (mut taken, mut refused) = (0, 0);
        loop {
            let message = tokio::select! {
                end = self.session.ended() => return Err(refusal(end)),
                message = timeout(SILENCE_MAX, incoming.message()) => message,
            };
            let Ok(message) = message else {
                return Err(status::invalid("upload", "went silent for 60 s"));
            };
            let answer = match message?.map(|message| message.message) {
                Some(Some(Up::Known(known))) => Down::Wanted(self.known(known).await?),
                Some(Some(Up::Recalled(recalled))) => {
                    let tasks = recalled.tasks.len();
                    let answer = self.recalled(recalled).await?;
                    taken += tasks - answer.refused_task_ids.len();
                    refused += answer.refused_task_ids.len();
                    Down::Taken(answer)
                }
                Some(Some(Up::End(_))) => {
                    self.complete().await?;
                    let host = self.session.host_id;
                    tracing::info!(
                        taken,
                        refused,
                        "{host} has uploaded what it knows: {taken} tasks were taken, {refused} refused"
                    );
                    self.answer(Down::Complete(UploadComplete {})).await;
                    return Ok(());
                }
                Some(Some(Up::Open(_))) => return Err(status::invalid("open", "comes once")),
                Some(None) => continue,
                // The agent went away, and begins anew with its next session.
                None => return Ok(()),
            };
            self.answer(answer).await;
        }
    }

    /// An agent that is gone begins anew.
    async fn answer(&self, message: Down) {
        let message = UploadResponse {
            message: Some(message),
        };
        // Nor is one waited for that does not read: others wait for its turn.
        let _ = timeout(SILENCE_MAX, self.wire.send(Ok(message))).await;
    }

    async fn known(&self, known: KnownTasks) -> Result<WantedTasks, Status> {
        if known.task_ids.len() > TASKS_MAX {
            return Err(status::invalid("known.task_ids", "are at most 1,000"));
        }
        let ids: Vec<TaskId> = known
            .task_ids
            .iter()
            .map(|id| id.parse())
            .collect::<Result<_, _>>()
            .map_err(|_| status::invalid("known.task_ids", "holds what is no task id"))?;
        let wanted = self.rooms.jobs.wanted(self.session.host_id, &ids).await;
        let wanted = wanted.map_err(status::of)?;
        Ok(WantedTasks {
            task_ids: wanted.iter().map(ToString::to_string).collect(),
        })
    }

    /// Takes what the agent recalls; what is refused is named and holds up nothing else. Returns once it is durable.
    async fn recalled(&self, recalled: RecalledTasks) -> Result<TakenTasks, Status> {
        if recalled.tasks.len() > TASKS_MAX {
            return Err(status::invalid("recalled.tasks", "are at most 1,000"));
        }
        let mut refused_task_ids = Vec::new();
        let mut written = Vec::new();
        for task in recalled.tasks {
            let id = task.task_id.clone();
            let digest = sha256(&task.sealed_offer);
            let ended = task.ended.clone().unwrap_or_default();
            let Some(task) = self.read(task) else {
                refused_task_ids.push(id);
                continue;
            };
            let (task_id, time) = (task.task_id, task.ending.time);
            let digest = task.offer.is_some().then_some(digest);
            let fence = self.session.fence.clone();
            let taken = self.rooms.jobs.recall(self.session.host_id, fence, task);
            match taken.await {
                Ok(last) => {
                    if last > 0 {
                        written.push((task_id, last));
                    }
                    self.check(task_id, &ended, time, digest).await?;
                }
                Err(error @ RecallError::Unsealed) => {
                    tracing::warn!(task.id = %id, "a recalled task is refused: {error}");
                    refused_task_ids.push(id);
                }
                Err(RecallError::Store(error)) => return Err(status::of(error)),
                Err(RecallError::Output(error)) => return Err(status::of(error)),
            }
        }
        for (task_id, last) in written {
            let durable = self.rooms.output.watch_durable(task_id).await;
            let mut durable = durable.map_err(status::of)?;
            tokio::select! {
                reached = durable.wait_for(|sequence| *sequence >= last) => {
                    reached.map_err(|_| refusal(End::Stopping))?;
                }
                end = self.session.ended() => return Err(refusal(end)),
            }
        }
        let durable = self.rooms.jobs.durable().await;
        durable.map_err(status::of)?;
        Ok(TakenTasks { refused_task_ids })
    }

    /// Waits for the signature of a task's receipt, and marks the task if anything speaks against it.
    async fn check(
        &self,
        id: TaskId,
        ended: &Ended,
        time: i64,
        offer_digest: Option<Bytes>,
    ) -> Result<(), Status> {
        let found = self.rooms.jobs.find(id).await;
        let Some(task) = found.map_err(status::of)? else {
            return Ok(());
        };
        // What is lost and has its end already keeps the receipt that came with that.
        let told = Told {
            ended,
            time,
            offer_digest,
        };
        let settled = tokio::select! {
            settled = self.rooms.settle_receipt(&self.session, &task, &told) => settled,
            end = self.session.ended() => return Err(refusal(end)),
        };
        settled.map_err(status::of)
    }

    /// What the agent says of one task; `None` if that is no settled task.
    fn read(&self, task: RecalledTask) -> Option<Recalled> {
        let task_id: TaskId = task.task_id.parse().ok()?;
        let now = now();
        let time = |theirs: Option<&prost_types::Timestamp>| {
            self.session.our_time(theirs.map(times::millis), now)
        };
        let ended = task.ended?;
        let at = time(ended.time.as_ref());
        Some(Recalled {
            task_id,
            offer: self.rooms.jobs.unseal(&task.sealed_offer, &task.seal),
            started: task.started.map(|started| {
                let at = time(started.time.as_ref());
                (at, heard::confinement_in(started.confinement))
            }),
            ending: heard::ending(ended, at)?,
            stdout_bytes: task.stdout_bytes,
            stderr_bytes: task.stderr_bytes,
        })
    }

    async fn complete(&self) -> Result<(), Status> {
        let host = self.session.host_id;
        let noted = self
            .rooms
            .restores
            .uploaded(host, &self.generation, &self.rooms.inventory);
        noted.await.map_err(|error| {
            status::refuse(
                Reason::LedgerUnavailable,
                &format!("the upload was not noted: {error}"),
            )
        })?;
        // What was released and waited for this goes now.
        self.session.look();
        Ok(())
    }
}
