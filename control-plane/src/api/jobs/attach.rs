//! `AttachTask`: a task's output live, and one writer at a time.
//!
//! What goes out are two queues: control, which is short, and output, which waits for a slow reader. Everything else
//! happens in one loop that waits for nobody: a reader that is stuck holds up its own output and nothing more.

mod early;
mod typing;

use std::{pin::pin, time::Duration};

use futures_util::stream;
use muster_proto::v1::{
    AttachInput, AttachInputResult, AttachOpen, AttachPing, AttachTaskRequest, AttachTaskResponse,
    Attached, InputStatus, JobEvent, Reason, TaskUpdate, Writer as WireWriter, WriterChanged,
    attach_open::Access as WireAccess, attach_task_request::Message as Up,
    attach_task_response::Message as Down, job_event::Event,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use self::{early::Early, typing::Typing};
use super::{JobDoor, Messages, input, messages};
use crate::{
    api::{caller::Caller, output},
    hosts::Inventory,
    jobs::{Access, Attachment, Client, TaskRef, TaskWatch, WatchEvent, Writer},
    times,
    wire::status,
};

/// How long a stream may take to say what it attaches to.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Control messages that may wait for a client.
const CONTROL_QUEUE: usize = 64;

/// Updates that may wait for a client; more wait in the store.
const OUTPUT_QUEUE: usize = 1;

/// How whoever attaches is looked after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttachSettings {
    /// How often there is a ping.
    pub(crate) ping_interval: Duration,
    /// A client unheard for this long is taken for gone.
    pub(crate) gone_after: Duration,
}

impl AttachSettings {
    /// With time for two pings, of which one may be lost.
    pub(crate) fn within(gone_after: Duration) -> Self {
        Self {
            ping_interval: gone_after * 2 / 5,
            gone_after,
        }
    }
}

type Wire = mpsc::Sender<Result<AttachTaskResponse, Status>>;

/// Serves one attachment. The stream that is returned is what the client hears.
pub(super) async fn attach(
    door: &JobDoor,
    caller: &Caller,
    mut incoming: Streaming<AttachTaskRequest>,
) -> Result<Messages<AttachTaskResponse>, Status> {
    let open = match timeout(OPEN_LIMIT, incoming.message()).await {
        Ok(Ok(Some(AttachTaskRequest {
            message: Some(Up::Open(open)),
        }))) => open,
        Ok(Err(status)) => return Err(status),
        Ok(Ok(_)) => return Err(status::invalid("open", "is the first message")),
        Err(_) => return Err(status::invalid("open", "did not come within 10 s")),
    };
    if open.after_sequence < 0 {
        return Err(status::invalid("open.after_sequence", "is not negative"));
    }
    let size = match open.terminal.clone() {
        None => None,
        Some(size) => Some(input::input(Some(resize(size)))?),
    };
    let task = door.task(caller, &open.task_id).await?;
    let types = !matches!(open.access(), WireAccess::Unspecified | WireAccess::Read);
    if types {
        door.may_type(caller, &task)?;
    }
    let attachment = attachment(door, caller, &task, &open)?;
    let (control, control_out) = mpsc::channel(CONTROL_QUEUE);
    let (output, output_out) = mpsc::channel(OUTPUT_QUEUE);
    // The queue is empty.
    let _ = control.try_send(Ok(down(Down::Attached(attached(door, &task, &attachment)))));
    let watch = door.jobs.follow(&task, open.after_sequence);
    let session = Session {
        door: door.clone(),
        task,
        attachment,
        control,
        early: Early::new(Instant::now()),
        caller: caller.clone(),
        types,
    };
    let id = session.task.look(|task| task.task_id);
    let span = tracing::info_span!("attach", task.id = %id, principal = %caller.principal);
    tokio::spawn(
        async move {
            let control = session.control.clone();
            if let Err(status) = session.run(incoming, watch, output, size).await {
                tracing::debug!("somebody was detached: {}", status.message());
                // Whoever does not read is not told.
                let _ = control.try_send(Err(status));
            }
        }
        .instrument(span),
    );
    Ok(Box::pin(stream::select_with_strategy(
        ReceiverStream::new(control_out),
        ReceiverStream::new(output_out),
        |(): &mut ()| stream::PollNext::Left,
    )))
}

fn attachment(
    door: &JobDoor,
    caller: &Caller,
    task: &TaskRef,
    open: &AttachOpen,
) -> Result<Attachment, Status> {
    let access = match open.access() {
        WireAccess::Unspecified | WireAccess::Read => Access::Read,
        WireAccess::Write => Access::Write,
        WireAccess::TakeOver => Access::TakeOver,
    };
    let client = Client {
        principal: caller.principal.clone(),
        attach_id: input::name("open.attach_id", &open.attach_id, 0)?,
        exclusive: open.exclusive,
    };
    let attached = door
        .jobs
        .attach(task.look(|task| task.task_id), client, access);
    attached.ok_or_else(|| {
        status::refuse(
            Reason::Overloaded,
            "too many are attached to the task; try again once somebody has detached",
        )
    })
}

fn resize(size: muster_proto::v1::Terminal) -> muster_proto::v1::TaskInput {
    muster_proto::v1::TaskInput {
        kind: Some(muster_proto::v1::task_input::Kind::Resize(size)),
    }
}

fn attached(door: &JobDoor, task: &TaskRef, attachment: &Attachment) -> Attached {
    Attached {
        task: Some(messages::task(&door.inventory, &task.job, &task.get())),
        writer: writer(attachment, attachment.writer()),
        max_unanswered: i32::try_from(typing::UNANSWERED_MAX).unwrap_or(1),
        ping_interval: Some(times::duration(door.attach.ping_interval)),
        gone_after: Some(times::duration(door.attach.gone_after)),
    }
}

fn writer(attachment: &Attachment, writer: Option<Writer>) -> Option<WireWriter> {
    let you = attachment.is(writer.as_ref());
    writer.map(|writer| WireWriter {
        principal: writer.client.principal.to_string(),
        you,
        exclusive: writer.client.exclusive,
    })
}

fn down(message: Down) -> AttachTaskResponse {
    AttachTaskResponse {
        message: Some(message),
    }
}

/// Sends the task's events as fast as the client takes them.
async fn show(mut watch: TaskWatch, inventory: Inventory, wire: Wire) -> Result<(), Status> {
    while let Some(events) = watch.next().await.map_err(status::of)? {
        let events = events.into_iter().map(|event| JobEvent {
            event: match event {
                WatchEvent::Job(job) => Some(Event::Job(messages::job(&job))),
                WatchEvent::Task(task) => {
                    Some(Event::Task(messages::task(&inventory, watch.job(), &task)))
                }
                WatchEvent::Output(task_id, item) => {
                    Some(output::event(&task_id.to_string(), item))
                }
            },
        });
        let update = TaskUpdate {
            events: events.collect(),
        };
        if wire.send(Ok(down(Down::Update(update)))).await.is_err() {
            break;
        }
    }
    Ok(())
}

struct Session {
    door: JobDoor,
    task: TaskRef,
    attachment: Attachment,
    control: Wire,
    early: Early,
    caller: Caller,
    /// It may write, or may come to.
    types: bool,
}

/// What to do after a message.
enum Next {
    GoOn,
    /// The client says no more, and goes on watching.
    Silent,
    Detach,
}

impl Session {
    async fn run(
        mut self,
        mut incoming: Streaming<AttachTaskRequest>,
        watch: TaskWatch,
        output: Wire,
        size: Option<crate::jobs::Input>,
    ) -> Result<(), Status> {
        let AttachSettings {
            ping_interval,
            gone_after,
        } = self.door.attach;
        let mut showing = pin!(show(watch, self.door.inventory.clone(), output));
        let (typing, carrying) = Typing::new(&self.door.jobs, &self.task, self.control.clone());
        let mut carrying = pin!(carrying);
        if let Some(size) = size.filter(|_| self.attachment.writes()) {
            typing.resize(size);
        }
        typing.set_allowed(self.attachment.writes());
        let stopping = self.door.jobs.stopping();
        let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut speaks = true;
        let mut holds = true;
        let mut rights = self.caller.policy_changed();
        loop {
            tokio::select! {
                shown = &mut showing => return shown,
                () = &mut carrying => return Ok(()),
                message = incoming.message(), if speaks => {
                    heard = Instant::now();
                    let next = match message {
                        Ok(Some(message)) => self.take(message, &typing)?,
                        Ok(None) => Next::Silent,
                        // The connection broke.
                        Err(_) => Next::Detach,
                    };
                    match next {
                        Next::GoOn => {}
                        Next::Silent => speaks = false,
                        Next::Detach => return Ok(()),
                    }
                }
                writer = self.attachment.changed() => {
                    if self.attachment.is_left_over() {
                        return Err(status::refuse(
                            Reason::SessionSuperseded,
                            "this client has attached again over another connection",
                        ));
                    }
                    typing.set_allowed(self.attachment.writes());
                    let writer = self::writer(&self.attachment, writer);
                    self.tell(Down::WriterChanged(WriterChanged { writer }))?;
                    if self.attachment.writes() || !self.attachment.is_next() {
                        self.settle(&typing)?;
                    }
                }
                () = at(self.early.due()) => self.settle(&typing)?,
                // What was typed before the last word still has its writer.
                () = typing.answered(), if !speaks && holds && self.early.due().is_none() => {
                    holds = false;
                    self.attachment.let_go();
                }
                _ = pings.tick(), if speaks => {
                    // One that finds no room is as good as one that gets no answer.
                    let _ = self.control.try_send(Ok(down(Down::Ping(AttachPing {}))));
                }
                () = sleep_until(heard + gone_after), if speaks => {
                    return Err(status::refuse(
                        Reason::ClientSilent,
                        "nothing was heard from the client for too long; attach again",
                    ));
                }
                Ok(()) = rights.changed() => self.judge_anew()?,
                () = self.control.closed() => return Ok(()),
                () = stopping.cancelled() => {
                    return Err(status::refuse(
                        Reason::ShuttingDown,
                        "the control plane is stopping; attach again after the last sequence",
                    ));
                }
            }
        }
    }

    /// What the client may do may have changed: whoever may not be here any more goes.
    fn judge_anew(&mut self) -> Result<(), Status> {
        self.caller = self.caller.renewed();
        if !self.door.sees(&self.caller, &self.task) {
            return Err(self.caller.no_longer().into());
        }
        if self.types {
            self.caller.must_be_active()?;
            self.door.may_type(&self.caller, &self.task)?;
        }
        Ok(())
    }

    fn take(&mut self, message: AttachTaskRequest, typing: &Typing) -> Result<Next, Status> {
        match message.message {
            Some(Up::Open(_)) => Err(status::invalid("open", "comes once")),
            Some(Up::Input(AttachInput { write_id, input })) => {
                let write_id = input::name("input.write_id", &write_id, 1)?;
                let input = input::input(input)?;
                // In this order: whoever was next in line may just have become the writer.
                let is_next = !self.attachment.writes() && self.attachment.is_next();
                if is_next {
                    if let Err((write_id, _)) = self.early.hold(Instant::now(), (write_id, input)) {
                        self.refuse(&write_id)?;
                    }
                } else if self.attachment.writes() {
                    // What came before goes before, though the change is not seen yet.
                    self.settle(typing)?;
                    self.put(typing, (write_id, input))?;
                } else {
                    self.refuse(&write_id)?;
                }
                Ok(Next::GoOn)
            }
            Some(Up::Pong(_)) | None => Ok(Next::GoOn),
            Some(Up::Detach(_)) => Ok(Next::Detach),
        }
    }

    /// Puts in what was held, or refuses it.
    fn settle(&mut self, typing: &Typing) -> Result<(), Status> {
        let held = self.early.take();
        let writes = self.attachment.writes();
        if writes && !held.is_empty() {
            typing.set_allowed(true);
        }
        for (write_id, input) in held {
            match writes {
                true => self.put(typing, (write_id, input))?,
                false => self.refuse(&write_id)?,
            }
        }
        Ok(())
    }

    fn put(&self, typing: &Typing, (write_id, input): early::Named) -> Result<(), Status> {
        match typing.put(write_id, input) {
            Ok(()) => Ok(()),
            Err(full) => self.tell(Down::InputResult(full)),
        }
    }

    fn refuse(&self, write_id: &str) -> Result<(), Status> {
        let message = match &self.attachment.writer() {
            Some(writer) => input::refused_for(writer),
            None => "this attachment only watches; attach again to write".to_owned(),
        };
        self.tell(Down::InputResult(refused(write_id, message)))
    }

    fn tell(&self, message: Down) -> Result<(), Status> {
        let told = self.control.try_send(Ok(down(message)));
        told.map_err(|_| {
            status::refuse(
                Reason::Overloaded,
                "the client does not read what it is told; attach again",
            )
        })
    }
}

/// Returns at that moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn refused(write_id: &str, message: String) -> AttachInputResult {
    AttachInputResult {
        write_id: write_id.to_owned(),
        status: InputStatus::Refused.into(),
        reason: Reason::NotWriter.into(),
        message,
    }
}
