//! The connection of an attachment: made again when it breaks, silent for nobody.

use std::{collections::VecDeque, time::Duration};

use muster_proto::v1::{
    AttachDetach, AttachInput, AttachOpen, AttachPong, AttachTaskRequest, AttachTaskResponse,
    Attached, Writer, attach_open::Access, attach_task_request::Message as Up,
    attach_task_response::Message as Down, job_event::Event, task::State, task_input::Kind,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Attach, AttachEvent};
use crate::{
    connect::Client,
    error::ClientError,
    jobs::{Retry, draw_request_id},
};

/// Inputs that may be unanswered until the control plane has said how many.
const UNANSWERED: usize = 1;

/// Messages up that may wait for the network: all that may be unanswered, twice, and some pongs.
const QUEUE: usize = 128;

/// How long a detaching client waits for the control plane to let it go.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// A control plane that says no intervals is given these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const GONE_AFTER: Duration = Duration::from_secs(25);

type Events = mpsc::Sender<Result<AttachEvent, ClientError>>;

/// What is known across connections.
pub(super) struct Connection {
    client: Client,
    open: AttachOpen,
    ordered: Way,
    urgent: Way,
    writes: bool,
    /// The task is final and its output complete: the end of the stream is the end.
    done: bool,
}

/// What is written, and what of it is not answered yet.
struct Way {
    written: mpsc::Receiver<AttachInput>,
    unanswered: VecDeque<AttachInput>,
    max: usize,
    /// Nobody writes any more.
    ended: bool,
}

impl Way {
    fn new(written: mpsc::Receiver<AttachInput>) -> Self {
        Self {
            written,
            unanswered: VecDeque::new(),
            max: UNANSWERED,
            ended: false,
        }
    }

    /// The next input, once there is one and it may be sent; `None`, once, when nobody writes any more.
    async fn next(&mut self) -> Option<AttachInput> {
        if self.ended || self.unanswered.len() >= self.max {
            // An answer makes room, and wakes the loop that this stands in.
            return std::future::pending().await;
        }
        let input = self.written.recv().await;
        match &input {
            Some(input) => self.unanswered.push_back(input.clone()),
            None => self.ended = true,
        }
        input
    }

    /// Nobody writes any more, and all that was written is answered.
    fn is_done(&self) -> bool {
        self.ended && self.unanswered.is_empty()
    }

    fn answered(&mut self, write_id: &str) {
        self.unanswered.retain(|input| input.write_id != write_id);
    }
}

/// How one connection ended.
enum End {
    /// Nothing is left to be done.
    Over,
    Broken(ClientError),
}

impl Connection {
    pub(super) fn new(
        client: Client,
        task_id: &str,
        attach: Attach,
        ordered: mpsc::Receiver<AttachInput>,
        urgent: mpsc::Receiver<AttachInput>,
    ) -> Self {
        Self {
            client,
            open: AttachOpen {
                task_id: task_id.to_owned(),
                after_sequence: attach.after_sequence,
                access: attach.access.into(),
                exclusive: attach.exclusive,
                attach_id: draw_request_id(),
                terminal: attach.terminal,
            },
            ordered: Way::new(ordered),
            urgent: Way::new(urgent),
            writes: false,
            done: false,
        }
    }

    pub(super) async fn run(mut self, events: Events) {
        let mut retry = Retry::default();
        loop {
            let broken = match self.once(&events, &mut retry).await {
                End::Over => return,
                End::Broken(error) => error,
            };
            let told = AttachEvent::Broken(broken.to_string());
            let wait = match retry.after(broken) {
                Ok(backoff) => backoff.next_wait(),
                Err(error) => {
                    let _ = events.send(Err(error)).await;
                    return;
                }
            };
            if events.send(Ok(told)).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = events.closed() => return,
            }
        }
    }

    async fn once(&mut self, events: &Events, retry: &mut Retry) -> End {
        let (up, requests) = mpsc::channel(QUEUE);
        // All of it fits.
        let _ = up.try_send(request(Up::Open(self.open.clone())));
        for input in self
            .urgent
            .unanswered
            .iter()
            .chain(&self.ordered.unanswered)
        {
            let _ = up.try_send(request(Up::Input(input.clone())));
        }
        // Until this connection of the attachment ends.
        let seat = match self.client.seat() {
            Ok(seat) => seat,
            Err(error) => return End::Broken(error),
        };
        let mut jobs = self.client.jobs_on(&seat);
        let answer = tokio::select! {
            answer = jobs.attach_task(ReceiverStream::new(requests)) => answer,
            () = events.closed() => return End::Over,
        };
        match answer {
            Ok(answer) => self.serve(answer.into_inner(), &up, events, retry).await,
            Err(status) => End::Broken(status.into()),
        }
    }

    async fn serve(
        &mut self,
        mut down: Streaming<AttachTaskResponse>,
        up: &mpsc::Sender<AttachTaskRequest>,
        events: &Events,
        retry: &mut Retry,
    ) -> End {
        let mut pending = VecDeque::new();
        let mut gone_after = GONE_AFTER;
        let mut pongs = ticks(PING_INTERVAL);
        let mut heard = Instant::now();
        loop {
            if self.ordered.is_done() {
                return leave(up, down).await;
            }
            // A message that finds no room is held up by a network that takes nothing: that is a broken one.
            let said = tokio::select! {
                room = events.reserve(), if !pending.is_empty() => {
                    let Ok(room) = room else {
                        return leave(up, down).await;
                    };
                    if let Some(event) = pending.pop_front() {
                        room.send(Ok(event));
                    }
                    heard = Instant::now();
                    true
                }
                () = events.closed() => return leave(up, down).await,
                message = down.message(), if pending.is_empty() => match message {
                    Ok(Some(message)) => {
                        heard = Instant::now();
                        retry.worked();
                        match message.message {
                            Some(Down::Attached(attached)) => {
                                let limits = limits(&attached);
                                (pongs, gone_after) = (ticks(limits.0), limits.1);
                                self.attached(attached, &mut pending);
                                true
                            }
                            Some(Down::Ping(_)) => up.try_send(request(Up::Pong(AttachPong {}))).is_ok(),
                            Some(message) => {
                                self.take(message, &mut pending);
                                true
                            }
                            None => true,
                        }
                    }
                    Ok(None) if self.done => return End::Over,
                    Ok(None) => return broken("the stream ended before the task"),
                    Err(status) => return End::Broken(status.into()),
                },
                input = self.ordered.next() => {
                    input.is_none_or(|input| up.try_send(request(Up::Input(input))).is_ok())
                }
                input = self.urgent.next() => {
                    self.remember_size(input.as_ref());
                    input.is_none_or(|input| up.try_send(request(Up::Input(input))).is_ok())
                }
                // Unasked, since a ping waits behind the output that a slow reader has not taken.
                _ = pongs.tick() => up.try_send(request(Up::Pong(AttachPong {}))).is_ok(),
                () = sleep_until(heard + gone_after), if pending.is_empty() => {
                    return broken("nothing was heard from the control plane for too long");
                }
            };
            if !said {
                return broken("the network takes nothing any more");
            }
        }
    }

    fn attached(&mut self, attached: Attached, pending: &mut VecDeque<AttachEvent>) {
        let max = usize::try_from(attached.max_unanswered).unwrap_or_default();
        self.ordered.max = max.max(1);
        self.urgent.max = max.max(1);
        self.writes = attached.writer.as_ref().is_some_and(|writer| writer.you);
        if self.open.access() == Access::TakeOver {
            // It takes over once only.
            self.open.access = Access::Write.into();
        }
        if let Some(task) = &attached.task {
            self.done = is_done(task);
        }
        pending.push_back(AttachEvent::Attached(Box::new(attached)));
    }

    /// Comes back as what it is now: whoever was taken over watches, and whoever waits for it to write still does.
    fn written_by(&mut self, writer: Option<&Writer>) {
        let wrote = std::mem::replace(&mut self.writes, writer.is_some_and(|writer| writer.you));
        if wrote != self.writes {
            let access = match self.writes {
                true => Access::Write,
                false => Access::Read,
            };
            self.open.access = access.into();
        }
    }

    fn remember_size(&mut self, input: Option<&AttachInput>) {
        let kind = input.and_then(|input| input.input.as_ref()?.kind.as_ref());
        if let Some(Kind::Resize(size)) = kind {
            self.open.terminal = Some(size.clone());
        }
    }

    fn take(&mut self, message: Down, pending: &mut VecDeque<AttachEvent>) {
        match message {
            Down::Update(update) => {
                for event in update.events {
                    match event.event {
                        Some(Event::Task(task)) => {
                            self.done = is_done(&task);
                            pending.push_back(AttachEvent::Task(Box::new(task)));
                        }
                        Some(Event::Output(chunk)) => {
                            self.open.after_sequence = chunk.sequence;
                            pending.push_back(AttachEvent::Output(chunk));
                        }
                        Some(Event::Gap(gap)) => {
                            self.open.after_sequence = gap.sequence;
                            pending.push_back(AttachEvent::Gap(gap));
                        }
                        Some(Event::Job(_)) | None => {}
                    }
                }
            }
            Down::InputResult(result) => {
                self.ordered.answered(&result.write_id);
                self.urgent.answered(&result.write_id);
                pending.push_back(AttachEvent::Input(result));
            }
            Down::WriterChanged(changed) => {
                self.written_by(changed.writer.as_ref());
                pending.push_back(AttachEvent::Writer(changed.writer));
            }
            Down::Attached(_) | Down::Ping(_) => {}
        }
    }
}

fn request(message: Up) -> AttachTaskRequest {
    AttachTaskRequest {
        message: Some(message),
    }
}

/// Says so, and waits a moment for the control plane to hear it.
async fn leave(
    up: &mpsc::Sender<AttachTaskRequest>,
    mut down: Streaming<AttachTaskResponse>,
) -> End {
    let _ = up.try_send(request(Up::Detach(AttachDetach {})));
    let heard = async { while let Ok(Some(_)) = down.message().await {} };
    let _ = timeout(LEAVE_LIMIT, heard).await;
    End::Over
}

fn broken(why: &str) -> End {
    End::Broken(Status::unavailable(why).into())
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// How often to give a sign of life, and how long to wait for one.
fn limits(attached: &Attached) -> (Duration, Duration) {
    let said = |duration: Option<prost_types::Duration>, usual| {
        let said = duration.and_then(|duration| Duration::try_from(duration).ok());
        said.filter(|said| !said.is_zero()).unwrap_or(usual)
    };
    (
        said(attached.ping_interval, PING_INTERVAL),
        said(attached.gone_after, GONE_AFTER),
    )
}

/// Nothing will come of the task any more. The output of a lost one may stay incomplete for ever.
fn is_done(task: &muster_proto::v1::Task) -> bool {
    let open = matches!(
        task.state(),
        State::Unspecified | State::AwaitingApproval | State::Pending | State::Running
    );
    !open && (task.output_complete || task.state() == State::Lost)
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    fn input(write_id: &str) -> AttachInput {
        AttachInput {
            write_id: write_id.to_owned(),
            input: None,
        }
    }

    #[tokio::test]
    async fn a_way_is_done_once_all_that_was_written_is_answered() {
        let (writing, written) = mpsc::channel(2);
        let mut way = Way::new(written);
        way.max = 2;
        for name in ["w-1", "w-2"] {
            writing.send(input(name)).await.unwrap();
        }
        drop(writing);
        for name in ["w-1", "w-2"] {
            assert_eq!(
                way.next().await,
                Some(input(name)),
                "nothing is left behind"
            );
            assert!(!way.is_done());
        }
        way.answered("w-1");
        assert_eq!(way.next().await, None);
        assert!(!way.is_done(), "one is not answered");
        way.answered("w-2");
        assert!(way.is_done());
    }

    fn writer(you: bool) -> Option<Writer> {
        Some(Writer {
            you,
            ..Writer::default()
        })
    }

    #[tokio::test]
    async fn a_client_comes_back_as_what_it_is() {
        let nowhere = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let (_writing, ordered) = mpsc::channel(1);
        let (_urging, urgent) = mpsc::channel(1);
        let how = Attach {
            access: Access::TakeOver,
            ..Attach::default()
        };
        let client = Client::from_channel(nowhere);
        let mut connection = Connection::new(client, "t-1", how, ordered, urgent);
        let attached = |connection: &mut Connection, you| {
            let attached = Attached {
                writer: writer(you),
                ..Attached::default()
            };
            connection.attached(attached, &mut VecDeque::new());
        };
        attached(&mut connection, true);
        assert_eq!(
            connection.open.access(),
            Access::Write,
            "it takes over once"
        );
        // It was away, and somebody else writes meanwhile: it waits for that one to go.
        attached(&mut connection, false);
        connection.written_by(writer(false).as_ref());
        assert_eq!(
            connection.open.access(),
            Access::Write,
            "it is next in line"
        );
        connection.written_by(writer(true).as_ref());
        assert_eq!(connection.open.access(), Access::Write);
        connection.written_by(writer(false).as_ref());
        assert_eq!(connection.open.access(), Access::Read, "it was taken over");
        connection.written_by(writer(true).as_ref());
        assert_eq!(connection.open.access(), Access::Write, "it writes again");
    }
}
