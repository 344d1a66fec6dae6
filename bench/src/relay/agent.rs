//! The agent of the relay: dials in, starts each program that it is offered, and reports it. Frozen with the rest of the
//! relay.

use std::{
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicI64, Ordering},
};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use muster_client::identity::Identity;
use muster_proto::{
    agent::v1::{
        AttachRequest, Chunk, Hello, InputResult, Offer, Open, OutputEnd, ReportRequest,
        ReportResponse, SealedOffer, TaskState, agent_service_client::AgentServiceClient,
        attach_request, attach_response, report_request::Message as Up,
        report_response::Message as Down, task_state,
    },
    v1::{Command, InputStatus, OutputStream, action::Kind, task, task_input},
};
use muster_runtime::tls::connect;
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming, transport::Channel};

use super::QUEUE;

/// Bytes of output in one message.
const PIECE: usize = 64 << 10;

/// Takes offers until the server is gone.
pub(super) async fn run(directory: &Path) -> anyhow::Result<()> {
    let identity = Identity::load(directory)?;
    let channel = connect(identity.address(), &identity.client_tls()?).await?;
    let (requests, outgoing) = mpsc::channel(QUEUE);
    let hello = attach_request::Message::Hello(Hello::default());
    let message = Some(hello);
    requests.send(AttachRequest { message }).await?;
    let mut incoming = AgentServiceClient::new(channel.clone())
        .attach(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    while let Some(message) = incoming.message().await? {
        if let Some(attach_response::Message::Offer(offer)) = message.message {
            let channel = channel.clone();
            tokio::spawn(async move {
                if let Err(error) = task(channel, offer).await {
                    println!("a task was not reported: {error:#}");
                }
            });
        }
    }
    Ok(())
}

async fn task(channel: Channel, offer: Offer) -> anyhow::Result<()> {
    let sealed = SealedOffer::decode(offer.sealed_offer)?;
    let Some(Kind::Command(command)) = sealed.action.and_then(|action| action.kind) else {
        bail!("it is no command");
    };
    let mut child = start(&command)?;
    let stdin = child.stdin.take();
    let (up, outgoing) = mpsc::channel(QUEUE);
    let opened = Up::Open(Open {
        task_id: sealed.task_id,
        fresh: true,
        ..Open::default()
    });
    let started = task_state::Event::Started(task_state::Started {
        pid: child.id().unwrap_or_default().cast_signed(),
        ..task_state::Started::default()
    });
    send(&up, opened).await?;
    send(&up, state(started)).await?;
    let results = up.downgrade();
    let mut client = AgentServiceClient::new(channel);
    let report = async {
        let answer = client.report(ReceiverStream::new(outgoing)).await;
        input(answer, stdin, results).await
    };
    tokio::try_join!(report, output(child, up)).map(|((), ())| ())
}

/// Starts a program, by `posix_spawn`, as there is nothing to be done between.
fn start(command: &Command) -> anyhow::Result<Child> {
    let (program, arguments) = command.argv.split_first().context("it names no program")?;
    let stdin = match command.open_stdin {
        true => Stdio::piped(),
        false => Stdio::null(),
    };
    // Nothing of Muster's own way to start a process may be in the yardstick.
    #[allow(clippy::disallowed_methods)]
    let mut process = tokio::process::Command::new(program);
    let process = process.args(arguments).stdin(stdin);
    Ok(process
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// Reports what a program writes, and how it ends.
async fn output(mut child: Child, up: mpsc::Sender<ReportRequest>) -> anyhow::Result<()> {
    let sequence = AtomicI64::new(0);
    let stdout = pump(child.stdout.take(), OutputStream::Stdout, &sequence, &up);
    let stderr = pump(child.stderr.take(), OutputStream::Stderr, &sequence, &up);
    let ended = async { Ok(child.wait().await?) };
    let ((), (), status) = tokio::try_join!(stdout, stderr, ended)?;
    let last_sequence = sequence.load(Ordering::Relaxed);
    send(&up, Up::OutputEnd(OutputEnd { last_sequence })).await?;
    let state_of_task = match status.success() {
        true => task::State::Succeeded,
        false => task::State::Failed,
    };
    let ended = task_state::Event::Ended(task_state::Ended {
        state: state_of_task.into(),
        exit_code: status.code(),
        ..task_state::Ended::default()
    });
    send(&up, state(ended)).await
}

async fn pump(
    pipe: Option<impl AsyncRead + Unpin>,
    stream: OutputStream,
    sequence: &AtomicI64,
    up: &mpsc::Sender<ReportRequest>,
) -> anyhow::Result<()> {
    let mut pipe = pipe.context("a pipe is missing")?;
    let (mut offset, mut data) = (0, BytesMut::new());
    loop {
        data.reserve(PIECE);
        let count = pipe.read_buf(&mut data).await?;
        if count == 0 {
            return Ok(());
        }
        let chunk = Chunk {
            sequence: sequence.fetch_add(1, Ordering::Relaxed) + 1,
            stream: stream.into(),
            offset,
            data: data.split().freeze(),
        };
        offset += i64::try_from(count)?;
        send(up, Up::Chunk(chunk)).await?;
    }
}

/// Puts into a program what comes for it, until its report is over.
async fn input(
    answer: Result<Response<Streaming<ReportResponse>>, Status>,
    mut stdin: Option<ChildStdin>,
    up: mpsc::WeakSender<ReportRequest>,
) -> anyhow::Result<()> {
    let mut answers = answer?.into_inner();
    while let Some(answer) = answers.message().await? {
        let Some(Down::Input(input)) = answer.message else {
            continue;
        };
        match input.input.and_then(|input| input.kind) {
            Some(task_input::Kind::Data(data)) => {
                let stdin = stdin.as_mut().context("standard input is closed")?;
                stdin.write_all(&data).await?;
            }
            Some(task_input::Kind::CloseStdin(_)) => stdin = None,
            _ => bail!("an input that the relay does not know"),
        }
        let result = Up::InputResult(InputResult {
            write_id: input.write_id,
            status: InputStatus::Accepted.into(),
        });
        // Nobody hears of it once the program has ended.
        if let Some(up) = up.upgrade() {
            send(&up, result).await?;
        }
    }
    Ok(())
}

fn state(event: task_state::Event) -> Up {
    Up::State(TaskState {
        event: Some(event),
        ..TaskState::default()
    })
}

async fn send(up: &mpsc::Sender<ReportRequest>, message: Up) -> anyhow::Result<()> {
    let message = Some(message);
    Ok(up.send(ReportRequest { message }).await?)
}
