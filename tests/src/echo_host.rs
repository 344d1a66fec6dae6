//! A host whose every process is a made-up one, over the real wire: for stories about terminals and pipes.
//!
//! In a terminal it shows what is typed; "exit N" and enter ends it. Without one it counts what comes until standard
//! input ends, and says how much that was. Now and then it has no room, as a process that does not read.

use std::collections::HashSet;

use bytes::Bytes;
use muster_proto::{
    agent::v1::{
        Chunk, InputResult, Offer, Open, OutputEnd, ReportRequest, SealedOffer, TaskState,
        attach_response,
        report_request::Message as Up,
        report_response::Message as Down,
        task_state::{Ended, Event, Started},
    },
    v1::{Command, InputStatus, OutputStream, TaskInput, action, task, task_input::Kind},
};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    fake_agent::{Attached, FakeAgent, hello},
    fleet::Fleet,
};

/// Every so many inputs there is no room for one.
const FULL_EVERY: usize = 5;

/// A host that is served until it is dropped.
#[derive(Debug)]
pub struct EchoHost {
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for EchoHost {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl EchoHost {
    /// A host of that name joins and serves.
    pub async fn start(fleet: &Fleet, name: &str) -> Self {
        let host = fleet.joined(name, &[]).await;
        let agent = FakeAgent::new(host.dial(fleet.address()).await.unwrap());
        let attached = agent.attach(hello("boot", "journal")).await.unwrap();
        Self {
            serving: tokio::spawn(serve(agent, attached)),
        }
    }
}

async fn serve(agent: FakeAgent, mut attached: Attached) {
    while let Ok(Some(message)) = attached.next().await {
        if let attach_response::Message::Offer(offer) = message {
            let epoch = attached.welcome.session_epoch;
            tokio::spawn(run(agent.clone(), offer, epoch));
        }
    }
}

/// A made-up process.
struct Echo {
    up: mpsc::Sender<ReportRequest>,
    stream: OutputStream,
    sequence: i64,
    offset: i64,
    line: String,
    count: usize,
}

async fn run(agent: FakeAgent, offer: Offer, session_epoch: i64) {
    let sealed = SealedOffer::decode(offer.sealed_offer).unwrap();
    let Some(action::Kind::Command(command)) = sealed.action.unwrap().kind else {
        panic!("no command");
    };
    let open = Open {
        task_id: sealed.task_id,
        session_epoch,
        fresh: true,
        ..Open::default()
    };
    let message = Some(Up::Open(open));
    let (up, mut down) = agent.open_report(ReportRequest { message }).await.unwrap();
    let mut echo = Echo {
        up,
        stream: match command.terminal {
            Some(_) => OutputStream::Pty,
            None => OutputStream::Stdout,
        },
        sequence: 0,
        offset: 0,
        line: String::new(),
        count: 0,
    };
    echo.begin(&command).await;
    let mut carried_out = HashSet::new();
    let mut inputs = 0;
    while let Ok(Some(message)) = down.message().await {
        let Some(Down::Input(input)) = message.message else {
            continue;
        };
        inputs += 1;
        let mut ended = None;
        let status = if carried_out.contains(&input.write_id) {
            InputStatus::Accepted
        } else if inputs % FULL_EVERY == 0 {
            InputStatus::Full
        } else {
            carried_out.insert(input.write_id.clone());
            ended = echo.take(input.input.unwrap()).await;
            InputStatus::Accepted
        };
        echo.say(Up::InputResult(InputResult {
            write_id: input.write_id,
            status: status.into(),
        }))
        .await;
        if let Some(code) = ended {
            echo.end(code).await;
        }
    }
}

impl Echo {
    async fn say(&self, message: Up) {
        let message = Some(message);
        // The story may be over.
        let _ = self.up.send(ReportRequest { message }).await;
    }

    async fn begin(&mut self, command: &Command) {
        self.say(Up::State(TaskState {
            journal_position: 1,
            event: Some(Event::Started(Started::default())),
        }))
        .await;
        self.count = command.stdin.len();
        if let Some(terminal) = &command.terminal {
            let (term, rows, columns) = (&terminal.term, terminal.rows, terminal.columns);
            self.write(format!("{term} {rows}x{columns}\r\n$ ")).await;
        } else if !command.open_stdin {
            self.write("no input\n".to_owned()).await;
            self.end(0).await;
        }
    }

    async fn write(&mut self, text: String) {
        self.sequence += 1;
        let chunk = Chunk {
            sequence: self.sequence,
            stream: self.stream.into(),
            offset: self.offset,
            data: Bytes::from(text),
        };
        self.offset += chunk.data.len() as i64;
        self.say(Up::Chunk(chunk)).await;
    }

    /// Takes an input; the exit code if that ends it.
    async fn take(&mut self, input: TaskInput) -> Option<i32> {
        match input.kind.unwrap() {
            Kind::Data(data) if self.stream == OutputStream::Stdout => self.count += data.len(),
            Kind::Data(data) => return self.typed(&String::from_utf8_lossy(&data)).await,
            Kind::CloseStdin(_) => {
                self.write(format!("{}\n", self.count)).await;
                return Some(0);
            }
            Kind::Resize(size) => {
                let size = format!("size {}x{}\r\n", size.rows, size.columns);
                self.write(size).await;
            }
            Kind::Signal(name) => self.write(format!("got {name}\r\n")).await,
        }
        None
    }

    async fn typed(&mut self, keys: &str) -> Option<i32> {
        for key in keys.chars() {
            if key != '\r' && key != '\n' {
                self.line.push(key);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if let Some(code) = line.strip_prefix("exit ") {
                return Some(code.parse().unwrap_or(2));
            }
            self.write(format!("{line}\r\n\x1b[32mheard {line}\x1b[0m\r\n$ "))
                .await;
        }
        None
    }

    async fn end(&mut self, code: i32) {
        let state = match code {
            0 => task::State::Succeeded,
            _ => task::State::Failed,
        };
        self.say(Up::State(TaskState {
            journal_position: 2,
            event: Some(Event::Ended(Ended {
                state: state.into(),
                exit_code: Some(code),
                run_time: Some(prost_types::Duration::default()),
                ..Ended::default()
            })),
        }))
        .await;
        let last_sequence = self.sequence;
        self.say(Up::OutputEnd(OutputEnd { last_sequence })).await;
    }
}
