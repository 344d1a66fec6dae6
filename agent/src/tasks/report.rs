//! Reports one task to the control plane, from the first state to the moment that all of it is safe
//! there. The task and its spool are the truth; the stream takes from them whatever comes next, when
//! the network has room for it, so nothing queues in between.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use muster_client::reason_of;
use muster_proto::{
    agent::v1::{
        Chunk, Gap, Open, OutputEnd, ReportRequest, ReportResponse, TaskState,
        agent_service_client::AgentServiceClient, report_request::Message, report_response,
        task_state,
    },
    v1::Reason,
};
use muster_runtime::backoff::Backoff;
use tokio::{task::JoinHandle, time::Sleep};
use tokio_stream::Stream;
use tonic::{Response, Status, Streaming};

use super::task::Task;
use crate::{
    session::Session,
    spool::{Content, Next, Piece, Position},
};

/// Between tries to report a task, while the connection is there.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// A task that starts and ends within this time is told in one go: each message that is not sent spares both
/// ends and every watcher a turn. Output is never held back.
const TOGETHER: Duration = Duration::from_millis(2);

/// How one report went.
enum Outcome {
    /// The control plane has everything.
    Settled,
    /// The task has a backlog, and the report has to leave the connection that it shares with others.
    Backlog,
    /// The session is over.
    Detached,
    /// The stream broke, and the connection may be there.
    Broken(Status),
}

/// Reports a task until the control plane has all of it, or the session ends. Returns whether it does.
pub(crate) async fn report(task: Arc<Task>, session: Arc<Session>, mut fresh: bool) -> bool {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
    let mut bulk = !fresh && task.spool.has_backlog(task.spool.acknowledged());
    loop {
        match report_once(&task, &session, fresh, bulk).await {
            Outcome::Settled => return true,
            Outcome::Detached => return false,
            Outcome::Backlog => bulk = true,
            Outcome::Broken(status) => {
                match reason_of(&status) {
                    Some(Reason::SessionSuperseded | Reason::Locked | Reason::SealInvalid) => {
                        tracing::warn!(task.id = %task.id, %status, "the control plane does not take a report: {}", status.message());
                        return false;
                    }
                    _ => {
                        tracing::debug!(task.id = %task.id, %status, "a report broke off: {status}")
                    }
                }
                tokio::select! {
                    () = backoff.wait() => {}
                    () = session.ended() => return false,
                }
            }
        }
        fresh = false;
    }
}

async fn report_once(task: &Arc<Task>, session: &Arc<Session>, fresh: bool, bulk: bool) -> Outcome {
    let seat = session.seat(bulk);
    let progress = Arc::new(Progress {
        after: AtomicI64::new(if fresh { 0 } else { UNKNOWN }),
        left: AtomicBool::new(false),
        waker: AtomicWaker::new(),
    });
    let outgoing = Outgoing::new(
        Arc::clone(task),
        Arc::clone(session),
        fresh,
        Arc::clone(&progress),
    );
    let mut client = AgentServiceClient::new(seat.channel());
    let outcome = drive(task, session, bulk, &progress, client.report(outgoing)).await;
    progress.leave();
    outcome
}

/// Hears what the control plane answers.
async fn drive(
    task: &Task,
    session: &Session,
    bulk: bool,
    progress: &Progress,
    answer: impl Future<Output = Result<Response<Streaming<ReportResponse>>, Status>>,
) -> Outcome {
    let answer = tokio::select! {
        answer = answer => answer,
        () = session.ended() => return Outcome::Detached,
    };
    let mut incoming = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Outcome::Broken(status),
    };
    let backlog = task.spool.backlog();
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = backlog.notified(), if !bulk => {
                if task.spool.has_backlog(progress.after.load(Ordering::Relaxed).max(0)) {
                    return Outcome::Backlog;
                }
                continue;
            }
            () = session.ended() => return Outcome::Detached,
        };
        match message.map(|message| message.and_then(|message| message.message)) {
            Ok(Some(report_response::Message::Resume(resume))) => {
                // Whoever asks for more than any task has makes it up.
                let after = resume.after_sequence.clamp(0, SEQUENCE_MAX);
                let after = task.spool.resume(after);
                if !bulk && task.spool.has_backlog(after) {
                    return Outcome::Backlog;
                }
                progress.resume(after);
            }
            Ok(Some(report_response::Message::Ack(ack))) => task.spool.acknowledge(ack.sequence),
            Ok(Some(report_response::Message::Settled(_))) => return Outcome::Settled,
            Ok(Some(report_response::Message::Input(input))) => task.put(input),
            Ok(None) => return Outcome::Broken(Status::unavailable("the report was closed")),
            Err(status) => return Outcome::Broken(status),
        }
    }
}

/// Output waits until the control plane has said where to go on.
const UNKNOWN: i64 = -1;

/// More pieces of output no task has.
const SEQUENCE_MAX: i64 = i64::MAX / 2;

/// How far the control plane wants, or has been sent, the output.
struct Progress {
    after: AtomicI64,
    /// Another stream reports the task now, or none; whatever this one still said would be stale.
    left: AtomicBool,
    waker: AtomicWaker,
}

impl Progress {
    fn resume(&self, after: i64) {
        self.after.store(after, Ordering::Relaxed);
        self.waker.wake();
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// What a report sends, in order. Polled when the network has room.
struct Outgoing {
    task: Arc<Task>,
    session: Arc<Session>,
    open: Option<Open>,
    progress: Arc<Progress>,
    /// Until when a start waits for what follows it; only where the task is told from its beginning.
    together: Option<Pin<Box<Sleep>>>,
    fresh: bool,
    start_sent: bool,
    end_sent: bool,
    done: bool,
    /// The control plane was told where what is kept begins, since it cannot go by numbers.
    begun_later: bool,
    last_sequence: i64,
    /// Pieces that were read from the files.
    stored: VecDeque<Piece>,
    reading: Option<JoinHandle<(io::Result<Vec<Piece>>, Position)>>,
    position: Option<Position>,
}

impl Outgoing {
    fn new(task: Arc<Task>, session: Arc<Session>, fresh: bool, progress: Arc<Progress>) -> Self {
        let (sealed_offer, seal) = if fresh {
            (Bytes::new(), Bytes::new())
        } else {
            (task.sealed_offer.clone(), task.seal.clone())
        };
        let open = Open {
            task_id: task.id.to_string(),
            session_epoch: session.epoch(),
            fresh,
            sealed_offer,
            seal,
        };
        Self {
            task,
            session,
            open: Some(open),
            progress,
            together: None,
            fresh,
            start_sent: false,
            end_sent: false,
            done: false,
            begun_later: false,
            last_sequence: 0,
            stored: VecDeque::new(),
            reading: None,
            position: Some(Position::default()),
        }
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        if let Some(open) = self.open.take() {
            return Poll::Ready(Some(Message::Open(open)));
        }
        if self.progress.left.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        // Registered before looking, so that no change is missed.
        self.task.wake_on_change(context.waker());
        if !self.start_sent
            && let Some(state) = self.task.start()
        {
            if self.fresh {
                std::task::ready!(self.poll_more(context));
            }
            self.start_sent = true;
            return Poll::Ready(Some(Message::State(state)));
        }
        if let Some(result) = self.task.pop_result() {
            return Poll::Ready(Some(Message::InputResult(result)));
        }
        self.progress.waker.register(context.waker());
        let after = self.progress.after.load(Ordering::Relaxed);
        if after == UNKNOWN || self.done {
            // The stream stays open for the answers.
            return Poll::Pending;
        }
        if !self.begun_later && self.task.spool.counts_otherwise() {
            self.begun_later = true;
            let kept = self.task.spool.kept().map(|(_, kept)| kept);
            return Poll::Ready(Some(Message::Kept(kept.unwrap_or_default())));
        }
        if self.end_sent {
            self.done = true;
            let last_sequence = self.last_sequence;
            return Poll::Ready(Some(Message::OutputEnd(OutputEnd { last_sequence })));
        }
        loop {
            if let Some(piece) = self.stored.pop_front() {
                return Poll::Ready(Some(self.send(piece)));
            }
            if let Some(reading) = &mut self.reading {
                let done = std::task::ready!(Pin::new(reading).poll(context));
                self.reading = None;
                match done {
                    Ok((Ok(pieces), position)) => {
                        self.position = Some(position);
                        self.stored = pieces.into();
                        if !self.stored.is_empty() {
                            continue;
                        }
                    }
                    Ok((Err(error), _)) => {
                        tracing::error!(task.id = %self.task.id, %error, "kept output cannot be read: {error}");
                        return Poll::Ready(None);
                    }
                    Err(_) => return Poll::Ready(None),
                }
            }
            let after = self.progress.after.load(Ordering::Relaxed);
            match self.task.spool.next(after, context.waker()) {
                Next::Piece(piece) => return Poll::Ready(Some(self.send(piece))),
                Next::Nothing => return Poll::Pending,
                Next::Gone
                    if !self.begun_later
                        && let Some((first, kept)) = self.task.spool.kept() =>
                {
                    self.begun_later = true;
                    tracing::warn!(task.id = %self.task.id, after, "output is asked for that was acknowledged before; what is kept begins later");
                    self.progress.after.store(first - 1, Ordering::Relaxed);
                    return Poll::Ready(Some(Message::Kept(kept)));
                }
                Next::Gone => {
                    // Only a control plane that was set back asks again for what it has acknowledged. It
                    // learns how the task ended, and that its output never does.
                    let state = std::task::ready!(self.task.poll_end(context.waker()));
                    tracing::error!(task.id = %self.task.id, after, "output is asked for that was acknowledged before");
                    self.done = true;
                    return Poll::Ready(Some(self.end(state)));
                }
                Next::Stored => {
                    let spool = Arc::clone(&self.task.spool);
                    let mut position = self.position.take().unwrap_or_default();
                    self.reading = Some(tokio::task::spawn_blocking(move || {
                        (spool.read(after, &mut position), position)
                    }));
                }
                Next::End { last_sequence } => {
                    let state = std::task::ready!(self.task.poll_end(context.waker()));
                    self.end_sent = true;
                    self.last_sequence = last_sequence;
                    return Poll::Ready(Some(self.end(state)));
                }
            }
        }
    }

    /// How the task ended, with a receipt that is signed for from now on: whoever waits for the end has it by then.
    fn end(&self, state: TaskState) -> Message {
        if let Some(task_state::Event::Ended(ended)) = &state.event {
            self.session.unsigned().add(ended);
        }
        Message::State(state)
    }

    /// Ready once something follows the start, or has not for long enough.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.task.spool.poll_any(context.waker()).is_ready() {
            return Poll::Ready(());
        }
        let wait = || Box::pin(tokio::time::sleep(TOGETHER));
        self.together
            .get_or_insert_with(wait)
            .as_mut()
            .poll(context)
    }

    fn send(&mut self, piece: Piece) -> Message {
        self.progress.after.store(piece.sequence, Ordering::Relaxed);
        let stream = piece.stream().into();
        let Piece {
            sequence,
            offset,
            content,
            ..
        } = piece;
        match content {
            Content::Data(data) => Message::Chunk(Chunk {
                sequence,
                stream,
                offset,
                data,
            }),
            Content::Missing { length, cause } => Message::Gap(Gap {
                sequence,
                stream,
                offset,
                length,
                cause,
            }),
        }
    }
}

impl Stream for Outgoing {
    type Item = ReportRequest;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<ReportRequest>> {
        self.poll_message(context).map(|message| {
            message.map(|message| ReportRequest {
                message: Some(message),
            })
        })
    }
}
