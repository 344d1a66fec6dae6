//! Attaching to a task: its output as it comes, and a way to write to it, through broken connections.
//!
//! A task of its own keeps the connection: it comes back after the last sequence that was taken in, and sends what was
//! not answered again under the same names, so nothing is shown or put in twice.

mod connection;

use std::time::Duration;

use bytes::Bytes;
use muster_proto::v1::{
    AttachInput, AttachInputResult, Attached, CloseStdin, InputStatus, OutputChunk, OutputGap,
    SendInputRequest, SendInputResponse, Task, TaskInput, Terminal, Writer, attach_open::Access,
    task_input::Kind,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use crate::{
    connect::Client,
    error::ClientError,
    jobs::{draw_request_id, repeated},
};

/// Bytes of one input.
const PIECE: usize = 64 << 10;

/// Events that may wait for their reader. The connection waits for what does not fit.
const EVENTS: usize = 16;

/// Signals and sizes that may wait to be sent.
const URGENT: usize = 16;

/// How long whoever detaches waits for the answers to what was written.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// How to attach.
#[derive(Debug, Clone, Default)]
pub struct Attach {
    /// To watch, to write if nobody does, or to write whoever does.
    pub access: Access,
    /// Nobody else may put anything in meanwhile.
    pub exclusive: bool,
    /// Begins after this sequence of the output; 0 begins at the beginning.
    pub after_sequence: i64,
    /// The size of one's terminal, if the task's shall have it.
    pub terminal: Option<Terminal>,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum AttachEvent {
    /// The connection stands: at first, and again after each time it broke.
    Attached(Box<Attached>),
    /// The task as it stands now.
    Task(Box<Task>),
    /// Output.
    Output(OutputChunk),
    /// Output that was not kept.
    Gap(OutputGap),
    /// What became of an input.
    Input(AttachInputResult),
    /// Who writes from now on, if anybody does.
    Writer(Option<Writer>),
    /// The connection broke; it is mended.
    Broken(String),
}

impl Client {
    /// Attaches to a task. The attachment ends when the task is final and its output complete; dropping it detaches.
    pub fn attach(&self, task_id: &str, attach: Attach) -> Attachment {
        let (events, received) = mpsc::channel(EVENTS);
        let (ordered, ordered_out) = mpsc::channel(1);
        let (urgent, urgent_out) = mpsc::channel(URGENT);
        let connection =
            connection::Connection::new(self.clone(), task_id, attach, ordered_out, urgent_out);
        let connected = tokio::spawn(connection.run(events));
        Attachment {
            events: received,
            writing: Writing { ordered, urgent },
            connected,
        }
    }

    /// Puts something into a task without attaching; again under the same name while nobody answers. A `write_id` is
    /// drawn unless one is given.
    pub async fn send_input(
        &self,
        task_id: &str,
        write_id: &str,
        input: TaskInput,
    ) -> Result<SendInputResponse, ClientError> {
        let write_id = match write_id {
            "" => draw_request_id(),
            given => given.to_owned(),
        };
        let request = SendInputRequest {
            task_id: task_id.to_owned(),
            write_id,
            input: Some(input),
        };
        repeated(|| {
            let (mut jobs, request) = (self.jobs(), request.clone());
            async move { jobs.send_input(request).await }
        })
        .await
    }
}

/// Somebody attached to a task.
#[derive(Debug)]
pub struct Attachment {
    events: mpsc::Receiver<Result<AttachEvent, ClientError>>,
    writing: Writing,
    connected: JoinHandle<()>,
}

impl Attachment {
    /// Detaches once everybody has let go of their [`Writing`] and all that was written is answered, or after 2 s; and
    /// waits a moment until the control plane knows: so whoever comes next may write. Whether the task took all of it.
    pub async fn detach(self) -> bool {
        let Self {
            mut events,
            writing,
            connected,
        } = self;
        drop(writing);
        let mut taken = true;
        // The connection leaves by itself; meanwhile nothing that happens may hold it up.
        let answered = timeout(LAST_WORDS_LIMIT, async {
            while let Some(event) = events.recv().await {
                if let Ok(AttachEvent::Input(result)) = event {
                    taken &=
                        !matches!(result.status(), InputStatus::Refused | InputStatus::Unknown);
                }
            }
        });
        taken &= answered.await.is_ok();
        drop(events);
        let _ = connected.await;
        taken
    }

    /// What happens next; `None` at the end of the task. After an error it is over.
    pub async fn next(&mut self) -> Option<Result<AttachEvent, ClientError>> {
        self.events.recv().await
    }

    /// Writes to the task, from anywhere.
    pub fn writing(&self) -> Writing {
        self.writing.clone()
    }
}

/// The attachment is over: nothing can be written any more.
#[derive(Debug, thiserror::Error)]
#[error("the attachment is over")]
pub struct Over;

/// Writes to a task. What becomes of it is told by [`AttachEvent::Input`].
#[derive(Debug, Clone)]
pub struct Writing {
    ordered: mpsc::Sender<AttachInput>,
    urgent: mpsc::Sender<AttachInput>,
}

impl Writing {
    /// Puts bytes in, in pieces where they are long. Waits while the task does not take them.
    pub async fn write(&self, mut data: Bytes) -> Result<(), Over> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.put(&self.ordered, Kind::Data(piece)).await?;
        }
        Ok(())
    }

    /// Ends standard input, after all that was written.
    pub async fn close(&self) -> Result<(), Over> {
        self.put(&self.ordered, Kind::CloseStdin(CloseStdin {}))
            .await
    }

    /// Gives the task's terminal another size, ahead of what waits.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Over> {
        let size = Terminal {
            rows: rows.into(),
            columns: columns.into(),
            term: String::new(),
        };
        self.put(&self.urgent, Kind::Resize(size)).await
    }

    /// Sends a signal, as "SIGINT", ahead of what waits.
    pub async fn signal(&self, name: &str) -> Result<(), Over> {
        self.put(&self.urgent, Kind::Signal(name.to_owned())).await
    }

    async fn put(&self, way: &mpsc::Sender<AttachInput>, kind: Kind) -> Result<(), Over> {
        let input = AttachInput {
            write_id: draw_request_id(),
            input: Some(TaskInput { kind: Some(kind) }),
        };
        way.send(input).await.map_err(|_| Over)
    }
}
