//! Being attached to a task: its output here, what is typed or piped here there.

mod keyboard;
mod signals;
mod stream;
pub(crate) mod terminal;

use std::io::{self, Write as _};

use bytes::Bytes;
use muster_client::{AttachEvent, Attachment, Client, ClientError, Writing};
use muster_proto::v1::{
    AttachInputResult, Attached, CancelJobRequest, InputStatus, OutputChunk, OutputGap,
    OutputStream, Task, Writer, task::State,
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub(crate) use self::signals::Signals;
use self::{
    keyboard::Typed,
    signals::Told,
    stream::Stream,
    terminal::{Modes, Raw},
};
use crate::{
    failure::{Failure, exit},
    json, result,
    screen::{self, bytes, clean, say},
};

/// How somebody is attached.
pub(crate) struct Session {
    /// The job, for whoever comes back.
    pub(crate) job_id: String,
    /// The task has a terminal, and so have we: keys go there as they are.
    pub(crate) raw: bool,
    /// Standard input is passed on.
    pub(crate) input: bool,
    /// Its end is that of the task's input.
    pub(crate) closes: bool,
    /// Events are printed as JSON lines.
    pub(crate) json: bool,
    /// The job is this session's own: an interrupt before its start cancels it.
    pub(crate) own: Option<Client>,
}

/// Stays attached until the task ends or somebody detaches; the exit code that stands for it.
pub(crate) async fn run(session: Session, mut attachment: Attachment) -> Result<u8, Failure> {
    let raw = if session.raw {
        let raw = Raw::enter();
        Some(raw.map_err(|error| Failure::usage(format!("the terminal cannot be used: {error}")))?)
    } else {
        None
    };
    let (typed_in, mut typed) = mpsc::channel(1);
    let leaving = CancellationToken::new();
    if session.input {
        keyboard::read(attachment.writing(), session.raw, typed_in, leaving.clone());
    }
    let mut view = View::new(&session);
    let ended = view.watch(&mut attachment, &mut typed).await;
    if !session.json {
        view.modes.reset();
    }
    // The terminal is its own again before anything else is said.
    drop(raw);
    match ended? {
        Ended::Task => {
            let code = view.task.as_ref();
            if let Some(task) = code.filter(|task| result::speaks(task)) {
                let host = clean(&task.host_name);
                say(&format!("muster: {host}: {}", result::outcome(task)));
            }
            Ok(result::exit_code(view.task.iter()))
        }
        Ended::Detached => {
            leaving.cancel();
            if !attachment.detach().await {
                say("muster: the task may not have got what was typed last");
            }
            Ok(detached(&session.job_id))
        }
    }
}

/// Ending the command never ends the job.
fn detached(job_id: &str) -> u8 {
    let job_id = clean(job_id);
    say(&format!(
        "detached; {job_id} goes on\n  come back: muster job attach {job_id}\n  end it:    muster job cancel {job_id}"
    ));
    exit::INTERRUPTED
}

enum Ended {
    Task,
    Detached,
}

struct View<'a> {
    session: &'a Session,
    task: Option<Task>,
    remark: Option<String>,
    writes: bool,
    attached_before: bool,
    modes: Modes,
    /// Standard input, where it is not keys of a terminal.
    stream: Stream,
}

impl<'a> View<'a> {
    fn new(session: &'a Session) -> Self {
        Self {
            session,
            task: None,
            remark: None,
            writes: false,
            attached_before: false,
            modes: Modes::default(),
            stream: Stream::default(),
        }
    }

    async fn watch(
        &mut self,
        attachment: &mut Attachment,
        typed: &mut mpsc::Receiver<Typed>,
    ) -> Result<Ended, Failure> {
        let writing = attachment.writing();
        let mut signals = Signals::new()?;
        let mut cancelling = JoinSet::new();
        loop {
            tokio::select! {
                event = attachment.next() => match event {
                    Some(event) => self.take(event?, &writing).await?,
                    None => return Ok(Ended::Task),
                },
                Some(typed) = typed.recv() => match typed {
                    Typed::Detach => return Ok(Ended::Detached),
                    Typed::Interrupt => self.interrupt(&mut cancelling),
                    Typed::End(pieces) => {
                        self.stream.ends(pieces);
                        self.close(&writing).await;
                    }
                },
                Some(cancelled) = cancelling.join_next() => self.cancelled(cancelled),
                signal = signals.next() => match signal {
                    Told::Leave => return Ok(Ended::Detached),
                    Told::Resize => self.resize(&writing).await,
                },
            }
        }
    }

    /// A task that has not started cannot be told to stop by a key. It is cancelled beside all else: whoever cannot be
    /// asked must not hold up the key that detaches.
    fn interrupt(&self, cancelling: &mut JoinSet<Result<(), Status>>) {
        let waits = self
            .task
            .as_ref()
            .is_some_and(|task| matches!(task.state(), State::Pending | State::AwaitingApproval));
        let own = self.session.own.as_ref();
        if let Some(client) = own.filter(|_| waits && cancelling.is_empty()) {
            let mut jobs = client.jobs();
            let request = CancelJobRequest {
                job_id: self.session.job_id.clone(),
                ..CancelJobRequest::default()
            };
            cancelling.spawn(async move { jobs.cancel_job(request).await.map(drop) });
            self.say("cancelling");
        }
    }

    fn cancelled(&self, cancelled: Result<Result<(), Status>, JoinError>) {
        let why = match cancelled {
            Ok(Ok(())) => return,
            Ok(Err(status)) => ClientError::from(status).to_string(),
            Err(error) => error.to_string(),
        };
        self.say(&format!(
            "it is not cancelled: {}; Ctrl-C tries again, Ctrl-] leaves",
            clean(&why)
        ));
    }

    /// Ends the task's input behind the whole of ours: half of it must not pass for that.
    async fn close(&mut self, writing: &Writing) {
        if self.stream.is_through() && self.session.closes {
            // Over is over: the next event says so.
            let _ = writing.close().await;
        }
    }

    async fn resize(&self, writing: &Writing) {
        if let Some((rows, columns)) = terminal::size().filter(|_| self.session.raw && self.writes)
        {
            // Over is over: the next event says so.
            let _ = writing.resize(rows, columns).await;
        }
    }

    async fn take(&mut self, event: AttachEvent, writing: &Writing) -> Result<(), Failure> {
        if let AttachEvent::Input(result) = &event
            && !self.session.raw
        {
            self.stream.answered(result, &self.session.job_id)?;
            self.close(writing).await;
        }
        if self.session.json {
            return self.take_as_json(event);
        }
        match event {
            AttachEvent::Attached(attached) => {
                let again = self.attached_before;
                self.attached(*attached);
                if again {
                    // It may have another size than before.
                    self.resize(writing).await;
                }
            }
            AttachEvent::Task(task) => {
                let began = self
                    .task
                    .as_ref()
                    .is_none_or(|old| old.start_time.is_none())
                    && task.start_time.is_some();
                self.remark(&task);
                self.task = Some(*task);
                if began {
                    // Whatever was said before the start went nowhere.
                    self.resize(writing).await;
                }
            }
            AttachEvent::Output(chunk) => self.write(&chunk)?,
            AttachEvent::Gap(gap) => self.gap(&gap),
            AttachEvent::Input(result) => self.input(&result),
            AttachEvent::Writer(writer) => {
                if self.writer(writer) {
                    // The task's terminal has the size of whoever wrote before.
                    self.resize(writing).await;
                }
            }
            AttachEvent::Broken(why) => {
                self.say(&format!("{}; trying again", clean(&why)));
                // Sizes would only queue up: the next connection is told the one there is then.
                self.writes = false;
            }
        }
        Ok(())
    }

    fn take_as_json(&mut self, event: AttachEvent) -> Result<(), Failure> {
        let line = match event {
            AttachEvent::Attached(attached) => {
                self.task = attached.task;
                json!({"attached": {"writer": attached.writer.as_ref().map(json::document)}})
            }
            AttachEvent::Task(task) => {
                let line = json!({"task": json::document(&*task)});
                self.task = Some(*task);
                line
            }
            AttachEvent::Output(chunk) => json!({"output": json::document(&chunk)}),
            AttachEvent::Gap(gap) => json!({"gap": json::document(&gap)}),
            AttachEvent::Input(result) => json!({"input": json::document(&result)}),
            AttachEvent::Writer(writer) => {
                json!({"writer_changed": {"writer": writer.as_ref().map(json::document)}})
            }
            AttachEvent::Broken(why) => json!({"broken": why}),
        };
        Ok(screen::print_json_line(&line)?)
    }

    fn attached(&mut self, attached: Attached) {
        let writer = attached.writer.as_ref();
        self.writes = writer.is_some_and(|writer| writer.you);
        let other = writer.filter(|writer| self.session.input && !writer.you);
        let other = other.map(|writer| clean(&writer.principal));
        match (self.attached_before, other) {
            (false, None) => {}
            (false, Some(other)) => self.say(&format!(
                "{other} writes, you watch until that one has gone; --take-over writes at once"
            )),
            (true, None) => self.say("connected again"),
            (true, Some(other)) => {
                self.say(&format!(
                    "connected again; {other} writes now, you watch ({})",
                    self.way_back()
                ));
            }
        }
        self.attached_before = true;
        if let Some(task) = attached.task {
            self.remark(&task);
            self.task = Some(task);
        }
    }

    /// Says what a reader could not guess, as that the task waits for its host.
    fn remark(&mut self, task: &Task) {
        let remark = result::hold_up(task);
        if self.remark != remark {
            match &remark {
                Some(text) => self.say(&format!("{}: {text}", clean(&task.host_name))),
                None => self.say(&format!("{}: goes on", clean(&task.host_name))),
            }
            self.remark = remark;
        }
    }

    fn write(&mut self, chunk: &OutputChunk) -> io::Result<()> {
        self.modes.look(&chunk.data);
        if chunk.stream() == OutputStream::Stderr {
            return io::stderr().write_all(&chunk.data);
        }
        let mut out = io::stdout().lock();
        out.write_all(&chunk.data)?;
        out.flush()
    }

    fn gap(&self, gap: &OutputGap) {
        self.say(&format!(
            "{} of output are missing here: {}",
            bytes(gap.length),
            clean(&gap.cause)
        ));
    }

    fn input(&self, result: &AttachInputResult) {
        match result.status() {
            InputStatus::Refused => self.say(&clean(&result.message)),
            InputStatus::Unknown => self.say(&format!(
                "whether the task got it is not known: {}",
                clean(&result.message)
            )),
            // A process that has ended, or reads no more, is no news to whoever pipes into it.
            _ => {}
        }
    }

    /// Who writes from now on; whether that is this one, and was not before.
    fn writer(&mut self, writer: Option<Writer>) -> bool {
        let wrote = std::mem::replace(&mut self.writes, writer.as_ref().is_some_and(|w| w.you));
        let begins = self.writes && !wrote;
        if begins {
            self.say("you write now");
        }
        if let Some(other) = writer.filter(|writer| wrote && !writer.you) {
            self.say(&format!(
                "{} took over; you watch now ({})",
                clean(&other.principal),
                self.way_back()
            ));
        }
        begins
    }

    fn way_back(&self) -> String {
        let job_id = clean(&self.session.job_id);
        format!("take back: muster job attach {job_id} --take-over")
    }

    fn say(&self, text: &str) {
        if self.session.raw {
            // A raw terminal does not return to the left by itself.
            let mut out = io::stderr().lock();
            let _ = write!(out, "\r\n[muster: {text}]\r\n");
        } else {
            say(&format!("muster: {text}"));
        }
    }
}

/// Bytes of one read of standard input, and of one input.
const PIECE: usize = 64 << 10;

/// A piece of standard input.
type Piece = io::Result<Bytes>;
