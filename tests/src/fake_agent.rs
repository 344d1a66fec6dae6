//! An agent that says what a story wants, with a host's real certificate.

use muster_proto::agent::v1::{
    AttachRequest, AttachResponse, Hello, ReportRequest, ReportResponse, UploadRequest,
    agent_service_client::AgentServiceClient, attach_request, attach_response, upload_request,
    upload_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// A connection with a host's certificate.
#[derive(Debug, Clone)]
pub struct FakeAgent {
    client: AgentServiceClient<Channel>,
}

/// An attach that was welcomed.
#[derive(Debug)]
pub struct Attached {
    /// What the welcome said.
    pub welcome: muster_proto::agent::v1::Welcome,
    /// Speaks to the control plane.
    pub up: mpsc::Sender<AttachRequest>,
    down: Streaming<AttachResponse>,
}

/// A hello of a fresh boot with a fresh journal.
pub fn hello(boot_id: &str, journal_id: &str) -> Hello {
    Hello {
        boot_id: boot_id.to_owned(),
        journal_id: journal_id.to_owned(),
        instance_id: format!("{boot_id}-{journal_id}"),
        time: Some(std::time::SystemTime::now().into()),
        facts: Some(muster_proto::v1::Facts {
            os: "linux".to_owned(),
            boot_id: boot_id.to_owned(),
            ..Default::default()
        }),
        ..Hello::default()
    }
}

impl FakeAgent {
    /// Speaks over this channel.
    pub fn new(channel: Channel) -> Self {
        Self {
            client: AgentServiceClient::new(channel),
        }
    }

    /// Attaches with this hello.
    pub async fn attach(&self, hello: Hello) -> Result<Attached, Status> {
        let (up, requests) = mpsc::channel(16);
        let message = Some(attach_request::Message::Hello(hello));
        up.send(AttachRequest { message }).await.unwrap();
        let mut client = self.client.clone();
        let answer = client.attach(ReceiverStream::new(requests)).await?;
        let mut down = answer.into_inner();
        let first = down
            .message()
            .await?
            .ok_or_else(|| Status::unknown("no welcome"))?;
        match first.message {
            Some(attach_response::Message::Welcome(welcome)) => Ok(Attached { welcome, up, down }),
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// Opens a report, for whoever talks both ways.
    pub async fn open_report(
        &self,
        first: ReportRequest,
    ) -> Result<(mpsc::Sender<ReportRequest>, Streaming<ReportResponse>), Status> {
        let mut client = self.client.clone();
        let (up, stream) = mpsc::channel(16);
        up.send(first).await.unwrap();
        let answers = client.report(ReceiverStream::new(stream)).await?;
        Ok((up, answers.into_inner()))
    }

    /// Uploads what it says it knows, and returns what the control plane answers to each message after the first.
    pub async fn upload(
        &self,
        messages: Vec<upload_request::Message>,
    ) -> Result<Vec<upload_response::Message>, Status> {
        let mut client = self.client.clone();
        let (up, stream) = mpsc::channel(messages.len());
        let expected = messages.len() - 1;
        for message in messages {
            let message = Some(message);
            up.send(UploadRequest { message }).await.unwrap();
        }
        let answers = client.upload(ReceiverStream::new(stream)).await?;
        let mut answers = answers.into_inner();
        let mut heard = Vec::new();
        while heard.len() < expected
            && let Some(answer) = answers.message().await?
        {
            heard.extend(answer.message);
        }
        drop(up);
        Ok(heard)
    }

    /// Reports, and returns what the control plane answers first.
    pub async fn report(
        &self,
        requests: Vec<ReportRequest>,
    ) -> Result<Option<ReportResponse>, Status> {
        let mut client = self.client.clone();
        // Stays open after the last request, as a real report does.
        let (up, stream) = mpsc::channel(requests.len() + 1);
        for request in requests {
            up.send(request).await.unwrap();
        }
        let mut answers = client
            .report(ReceiverStream::new(stream))
            .await?
            .into_inner();
        let first = answers.message().await;
        drop(up);
        first
    }
}

impl Attached {
    /// What the control plane says next.
    pub async fn next(&mut self) -> Result<Option<attach_response::Message>, Status> {
        let next = self.down.message().await?;
        Ok(next.and_then(|response| response.message))
    }
}
