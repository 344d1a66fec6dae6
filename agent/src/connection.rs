//! The agent's end of the live stream: dials, attaches, does what it is told, and tries again.
//! `run` never gives up by itself; `attach_once` is one life of the stream.

mod live;
mod retry;
mod seen;
mod signing;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    agent::v1::{
        AttachRequest, AttachResponse, Hello, Welcome, agent_service_client::AgentServiceClient,
        attach_request, attach_response,
    },
    v1::AuditHead,
};
use muster_runtime::tls::{ClientTls, connect};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

pub(crate) use self::retry::Detached;
use self::{
    live::{AbortOnDrop, Live},
    retry::{Next, Retry},
    seen::Seen,
};
use crate::{
    actions,
    clock::Clock,
    facts,
    heads::Heads,
    renewal::Renewal,
    session::Session,
    standing::{Board, Standing},
    tasks::Tasks,
};

/// Messages that wait to be sent; the loop waits when it is full, which only a stalled network makes it.
const OUTGOING: usize = 64;

/// How long a control plane may take to say welcome.
const WELCOME_LIMIT: Duration = Duration::from_secs(15);

/// Where the welcome does not say how often to send a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The stream to the control plane.
pub(crate) struct Connection {
    tls: ClientTls,
    address: String,
    tasks: Tasks,
    clock: Arc<Clock>,
    facts: facts::Source,
    seen: Seen,
    instance_id: String,
    renewal: Arc<Renewal>,
    /// The version of the authorities that were taken.
    taken: Arc<AtomicI64>,
    standing: Board,
    heads: Heads,
}

impl Connection {
    pub(crate) fn new(
        address: String,
        directory: &Path,
        tls: ClientTls,
        tasks: Tasks,
        clock: Arc<Clock>,
        mut facts: facts::Source,
        renewal: Arc<Renewal>,
    ) -> Self {
        let heads = Heads::load(directory);
        facts.set_audit_conflict(heads.conflict().to_owned());
        Self {
            tls,
            address,
            tasks,
            clock,
            facts,
            seen: Seen::load(directory.join("seen")),
            instance_id: format!("{:032x}", rand::random::<u128>()),
            renewal,
            taken: Arc::default(),
            standing: Board::default(),
            heads,
        }
    }

    /// Where the stream stands, now and from now on.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Stays attached until told to stop. Returns only then, or if nothing but an operator can help.
    pub(crate) async fn run(&mut self, stop: CancellationToken) -> Result<(), Detached> {
        let mut retry = Retry::default();
        loop {
            let reason = self.attach_once(&stop, &mut retry).await;
            if stop.is_cancelled() {
                return Ok(());
            }
            self.standing.detached(reason.to_string());
            let wait = match retry.after(&reason) {
                Next::Wait(wait) => {
                    tracing::warn!(%reason, "detached: {reason}; trying again in {:.1} s", wait.as_secs_f64());
                    wait
                }
                Next::EnrollAgain(wait) => {
                    tracing::warn!(%reason, "detached: {reason}; asking for a new certificate with the old key");
                    self.renewal.rejoin().await;
                    wait
                }
                Next::GiveUp => return Err(reason),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// One life of the stream, from hello to goodbye. Returns why it ended.
    async fn attach_once(&mut self, stop: &CancellationToken, retry: &mut Retry) -> Detached {
        let dialled = tokio::select! {
            dialled = connect(&self.address, &self.tls) => dialled,
            () = stop.cancelled() => return Detached::Stopped,
        };
        let channel = match dialled {
            Ok(channel) => channel,
            Err(error) => return error.into(),
        };
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let hello = self.hello();
        let hello = AttachRequest {
            message: Some(attach_request::Message::Hello(hello)),
        };
        let messages = tokio_stream::once(hello).chain(ReceiverStream::new(messages));
        let mut client = AgentServiceClient::new(channel.clone());
        let attached = tokio::select! {
            attached = tokio::time::timeout(WELCOME_LIMIT, welcome(&mut client, messages)) => attached,
            () = stop.cancelled() => return Detached::Stopped,
        };
        let (welcome, incoming) = match attached {
            Ok(Ok(attached)) => attached,
            Ok(Err(reason)) => return reason,
            Err(_) => return Detached::Silent,
        };
        retry.attached();
        let session = Session::new(
            welcome.session_epoch,
            self.address.clone(),
            self.tls.clone(),
            channel,
        );
        let _signing = AbortOnDrop(tokio::spawn(signing::sign(
            Arc::clone(&session),
            self.tasks.receipts().clone(),
            self.tasks.host_id().to_owned(),
            Arc::clone(&self.clock),
            outgoing.clone(),
        )));
        let mut live = Live {
            connection: self,
            session: Arc::clone(&session),
            incoming,
            outgoing,
            heard: Instant::now(),
            heartbeat: heartbeat_interval(&welcome),
            taking: None,
        };
        let reason = live.live(welcome, stop).await;
        session.end();
        reason
    }

    /// Keeps a head of the audit log. Says whether there is news of what it contradicts, which the facts tell.
    fn take_head(&mut self, head: AuditHead) -> bool {
        let news = self.heads.take(head);
        if news {
            self.facts
                .set_audit_conflict(self.heads.conflict().to_owned());
        }
        news
    }

    fn hello(&mut self) -> Hello {
        Hello {
            boot_id: self.facts.boot_id().to_owned(),
            journal_id: self.tasks.journal().id().to_owned(),
            journal_position: self.tasks.journal().position(),
            held_task_ids: self.tasks.held(),
            facts: Some(self.facts.look()),
            capabilities: capabilities(),
            seen_generation: self.seen.generation.clone(),
            seen_ledger_position: self.seen.ledger_position,
            seen_ledger_seal: self.seen.seal.clone(),
            time: Some(self.clock.host_time()),
            instance_id: self.instance_id.clone(),
            authorities_version: self.taken.load(Ordering::Relaxed),
        }
    }
}

/// What this agent can do beyond the basics, a command among them.
fn capabilities() -> Vec<String> {
    let kinds = actions::workers().map(|kind| format!("action.{kind}"));
    let others = ["upload", "secrets"].map(str::to_owned);
    others.into_iter().chain(kinds).collect()
}

/// Opens the stream and waits for the welcome.
async fn welcome(
    client: &mut AgentServiceClient<tonic::transport::Channel>,
    messages: impl tokio_stream::Stream<Item = AttachRequest> + Send + 'static,
) -> Result<(Welcome, Streaming<AttachResponse>), Detached> {
    let mut incoming = client.attach(messages).await?.into_inner();
    match incoming
        .message()
        .await?
        .and_then(|message| message.message)
    {
        Some(attach_response::Message::Welcome(welcome)) => Ok((welcome, incoming)),
        Some(attach_response::Message::Drain(drain)) => Err(Detached::drained(drain)),
        Some(_) => Err(Detached::Protocol("the first message was no welcome")),
        None => Err(Detached::Closed),
    }
}

fn heartbeat_interval(welcome: &Welcome) -> Duration {
    welcome
        .heartbeat_interval
        .and_then(|interval| interval.try_into().ok())
        .filter(|interval: &Duration| !interval.is_zero())
        .unwrap_or(HEARTBEAT)
}
