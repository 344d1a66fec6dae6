//! A host whose every word a test says, over the real wire.

use bytes::Bytes;
use muster_proto::{
    agent::v1::{
        self as agent, AttachRequest, AttachResponse, Chunk, Hello, Input, InputResult, Offer,
        Open, OutputEnd, ReportRequest, ReportResponse, SealedOffer, TaskState,
        agent_service_client::AgentServiceClient, attach_request::Message as Up,
        attach_response::Message as Down, report_request::Message as ReportUp,
        report_response::Message as ReportDown, task_state::Event,
    },
    v1::{InputStatus, OutputStream, task},
};
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{Duration, Identity, Plane, dial};

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A host that is attached.
pub(super) struct FakeHost {
    client: AgentServiceClient<Channel>,
    _up: mpsc::Sender<AttachRequest>,
    down: Streaming<AttachResponse>,
    epoch: i64,
}

/// A task of it.
pub(super) struct FakeTask {
    client: AgentServiceClient<Channel>,
    epoch: i64,
    offer: Offer,
    pub(super) task_id: String,
    up: mpsc::Sender<ReportRequest>,
    down: Streaming<ReportResponse>,
    sequence: i64,
    offset: i64,
}

impl FakeHost {
    pub(super) async fn attach(plane: &Plane, name: &str) -> Self {
        Self::with(&plane.host(name).await).await
    }

    pub(super) async fn with(identity: &Identity) -> Self {
        let mut client = AgentServiceClient::new(dial(identity).await.unwrap());
        let (up, requests) = mpsc::channel(16);
        let hello = Hello {
            boot_id: "boot".into(),
            journal_id: "journal".into(),
            instance_id: "i".into(),
            ..Hello::default()
        };
        let message = Some(Up::Hello(hello));
        up.send(AttachRequest { message }).await.unwrap();
        let answer = client.attach(ReceiverStream::new(requests)).await.unwrap();
        let mut down = answer.into_inner();
        let Some(Down::Welcome(welcome)) = down.message().await.unwrap().unwrap().message else {
            panic!("the welcome is first");
        };
        Self {
            client,
            _up: up,
            down,
            epoch: welcome.session_epoch,
        }
    }

    /// Takes the next offer and says that its process runs.
    pub(super) async fn start(&mut self) -> FakeTask {
        let offer = loop {
            let message = timeout(PATIENCE, self.down.message()).await.unwrap();
            if let Some(Down::Offer(offer)) = message.unwrap().unwrap().message {
                break offer;
            }
        };
        let sealed = SealedOffer::decode(offer.sealed_offer.clone()).unwrap();
        let (up, down) = report(
            &self.client,
            Open {
                task_id: sealed.task_id.clone(),
                session_epoch: self.epoch,
                fresh: true,
                ..Open::default()
            },
        )
        .await;
        let mut task = FakeTask {
            client: self.client.clone(),
            epoch: self.epoch,
            offer,
            task_id: sealed.task_id,
            up,
            down,
            sequence: 0,
            offset: 0,
        };
        task.say_started().await;
        task
    }
}

async fn report(
    client: &AgentServiceClient<Channel>,
    open: Open,
) -> (mpsc::Sender<ReportRequest>, Streaming<ReportResponse>) {
    let (up, requests) = mpsc::channel(16);
    let message = Some(ReportUp::Open(open));
    up.send(ReportRequest { message }).await.unwrap();
    let mut client = client.clone();
    let down = client.report(ReceiverStream::new(requests)).await.unwrap();
    (up, down.into_inner())
}

impl FakeTask {
    pub(super) async fn say(&self, message: ReportUp) {
        let message = Some(message);
        self.up.send(ReportRequest { message }).await.unwrap();
    }

    async fn say_started(&mut self) {
        self.say(ReportUp::State(TaskState {
            journal_position: 1,
            event: Some(Event::Started(agent::task_state::Started::default())),
        }))
        .await;
    }

    /// Breaks the report off.
    pub(super) fn break_off(&mut self) {
        let (up, _) = mpsc::channel(1);
        self.up = up;
    }

    /// Reports again, as after a broken connection.
    pub(super) async fn report_again(&mut self) {
        let (up, down) = report(
            &self.client,
            Open {
                task_id: self.task_id.clone(),
                session_epoch: self.epoch,
                fresh: false,
                sealed_offer: self.offer.sealed_offer.clone(),
                seal: self.offer.seal.clone(),
            },
        )
        .await;
        (self.up, self.down) = (up, down);
        self.say_started().await;
    }

    /// The next input.
    pub(super) async fn input(&mut self) -> Input {
        loop {
            let message = timeout(PATIENCE, self.down.message()).await.unwrap();
            if let Some(ReportDown::Input(input)) = message.unwrap().unwrap().message {
                return input;
            }
        }
    }

    pub(super) async fn answer(&self, input: &Input, status: InputStatus) {
        self.say(ReportUp::InputResult(InputResult {
            write_id: input.write_id.clone(),
            status: status.into(),
        }))
        .await;
    }

    pub(super) async fn write(&mut self, bytes: &'static [u8]) {
        self.sequence += 1;
        let chunk = Chunk {
            sequence: self.sequence,
            stream: OutputStream::Pty.into(),
            offset: self.offset,
            data: Bytes::from_static(bytes),
        };
        self.offset += bytes.len() as i64;
        self.say(ReportUp::Chunk(chunk)).await;
    }

    pub(super) async fn say_ended(&mut self) {
        self.say(ReportUp::State(TaskState {
            journal_position: 2,
            event: Some(Event::Ended(agent::task_state::Ended {
                state: task::State::Succeeded.into(),
                exit_code: Some(0),
                run_time: Some(prost_types::Duration::default()),
                ..agent::task_state::Ended::default()
            })),
        }))
        .await;
    }

    pub(super) async fn say_complete(&mut self) {
        let last_sequence = self.sequence;
        self.say(ReportUp::OutputEnd(OutputEnd { last_sequence }))
            .await;
    }
}

impl FakeTask {
    /// The offer as it came.
    pub(super) fn sealed_offer(&self) -> Bytes {
        self.offer.sealed_offer.clone()
    }
}
