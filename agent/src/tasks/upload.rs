//! Tells a control plane that was restored from a backup what became of settled tasks since.
//!
//! One message is answered before the next is sent, and records are read as they are wanted: an upload of any length
//! takes little memory here and there. It rides beside control, on the second connection.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use muster_client::reason_of;
use muster_proto::{
    agent::v1::{
        KnownTasks, RecalledTask, RecalledTasks, UploadEnd, UploadOpen, UploadRequest,
        UploadResponse, agent_service_client::AgentServiceClient, upload_request::Message as Up,
        upload_response::Message as Down,
    },
    ids::TaskId,
    v1::Reason,
};
use muster_runtime::backoff::Backoff;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Tasks, history::Place};
use crate::session::Session;

/// Tasks in one message.
const TASKS_MAX: usize = 1000;

/// Bytes of the records in one message, beyond the first.
const BYTES_MAX: usize = 1 << 20;

/// Between tries, while the session is there.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// Uploads what is remembered, until the control plane has it or the session ends. `expected`: settled tasks that the
/// control plane asked about; those that are not remembered are reported.
pub(super) async fn upload(tasks: Tasks, session: Arc<Session>, mut expected: Vec<TaskId>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
    loop {
        let tried = tokio::select! {
            tried = upload_once(&tasks, &session, &mut expected) => tried,
            () = session.ended() => return,
        };
        let status = match tried {
            Ok(sent) => {
                tracing::info!(
                    sent,
                    "the restored control plane has what this host knows: {sent} tasks were sent"
                );
                return;
            }
            Err(status) => status,
        };
        if matches!(
            reason_of(&status),
            Some(Reason::SessionSuperseded | Reason::Locked | Reason::HostRemoved)
        ) {
            return;
        }
        tracing::warn!(%status, "an upload broke off: {}", status.message());
        tokio::select! {
            () = backoff.wait() => {}
            () = session.ended() => return,
        }
    }
}

async fn upload_once(
    tasks: &Tasks,
    session: &Arc<Session>,
    expected: &mut Vec<TaskId>,
) -> Result<usize, Status> {
    let places = {
        let history = Arc::clone(&tasks.0.history);
        blocking(move || history.places()).await?
    };
    for task_id in expected.drain(..) {
        // In the order of their ids.
        if places
            .binary_search_by_key(&task_id, |place| place.task_id)
            .is_err()
        {
            tasks.answer(task_id, session, None);
        }
    }
    let (up, messages) = mpsc::channel(1);
    let session_epoch = session.epoch();
    send(&up, Up::Open(UploadOpen { session_epoch })).await?;
    let seat = session.seat(true);
    let mut client = AgentServiceClient::new(seat.channel());
    let mut answers = client
        .upload(ReceiverStream::new(messages))
        .await?
        .into_inner();
    let mut sent = 0;
    for page in places.chunks(TASKS_MAX) {
        let task_ids = page.iter().map(|place| place.task_id.to_string()).collect();
        send(&up, Up::Known(KnownTasks { task_ids })).await?;
        let Down::Wanted(wanted) = answer(&mut answers).await? else {
            return Err(odd());
        };
        let wanted: HashSet<TaskId> = wanted
            .task_ids
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        let wanted = page.iter().filter(|place| wanted.contains(&place.task_id));
        for batch in batches(wanted.cloned()) {
            sent += batch.len();
            let tasks: Vec<RecalledTask> =
                blocking(move || batch.iter().map(Place::read).collect()).await?;
            let ends = tasks.iter().filter_map(|task| task.ended.as_ref());
            ends.for_each(|ended| session.unsigned().add(ended));
            send(&up, Up::Recalled(RecalledTasks { tasks })).await?;
            let Down::Taken(taken) = answer(&mut answers).await? else {
                return Err(odd());
            };
            for id in &taken.refused_task_ids {
                tracing::warn!(
                    task.id = id,
                    "the control plane does not take {id}: nobody there sealed it"
                );
            }
        }
    }
    send(&up, Up::End(UploadEnd {})).await?;
    match answer(&mut answers).await? {
        Down::Complete(_) => Ok(sent),
        _ => Err(odd()),
    }
}

/// Records in messages of a size that holds nobody up.
fn batches(places: impl Iterator<Item = Place>) -> Vec<Vec<Place>> {
    let mut batches: Vec<Vec<Place>> = Vec::new();
    let mut bytes = 0;
    for place in places {
        bytes += place.length();
        match batches.last_mut() {
            Some(batch) if bytes <= BYTES_MAX => batch.push(place),
            _ => {
                bytes = place.length();
                batches.push(vec![place]);
            }
        }
    }
    batches
}

async fn send(up: &mpsc::Sender<UploadRequest>, message: Up) -> Result<(), Status> {
    let message = UploadRequest {
        message: Some(message),
    };
    let sent = up.send(message).await;
    sent.map_err(|_| Status::unavailable("the upload was closed"))
}

async fn answer(answers: &mut Streaming<UploadResponse>) -> Result<Down, Status> {
    let answer = answers.message().await?;
    answer
        .and_then(|answer| answer.message)
        .ok_or_else(|| Status::unavailable("the upload was closed"))
}

fn odd() -> Status {
    Status::internal("the control plane answered something else")
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(act).await;
    done.map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::internal(format!("the history cannot be read: {error}")))
}
