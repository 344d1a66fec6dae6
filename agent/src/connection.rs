//! The agent's end of the live stream: dials, attaches, does what it is told, and tries again.
//! `run` never gives up by itself; `attach_once` is one life of the stream.

mod retry;
mod signing;

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use muster_proto::{
    agent::v1::{
        AttachRequest, AttachResponse, Authorities, AuthoritiesTaken, Goodbye, Heartbeat, Hello,
        NotHeld, Welcome, agent_service_client::AgentServiceClient, attach_request,
        attach_response,
    },
    v1::{AuditHead, Facts},
};
use muster_runtime::tls::{ClientTls, connect};
use rand::Rng;
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

pub(crate) use self::retry::Detached;
use self::retry::{Next, Retry};
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

/// Without a word for so many heartbeats, the other end is gone.
const SILENT_HEARTBEATS: u32 = 3;

/// How often the facts are looked at for changes.
const FACTS_EVERY: Duration = Duration::from_secs(60);

/// How long a goodbye may take to leave.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);

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

/// The latest state of the control plane that this agent has seen, so that a restore from a backup shows.
struct Seen {
    path: PathBuf,
    generation: String,
    ledger_position: i64,
    /// Proves that position.
    seal: Bytes,
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

/// An attached stream.
struct Live<'a> {
    connection: &'a mut Connection,
    session: Arc<Session>,
    incoming: Streaming<AttachResponse>,
    outgoing: mpsc::Sender<AttachRequest>,
    heard: Instant,
    heartbeat: Duration,
    /// Takes authorities; gone with the stream, after which they are told again.
    taking: Option<AbortOnDrop>,
}

/// A task that ends when this is dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Live<'_> {
    async fn live(&mut self, welcome: Welcome, stop: &CancellationToken) -> Detached {
        if let Err(reason) = self.begin(welcome).await {
            return reason;
        }
        let mut facts = tokio::time::interval_at(Instant::now() + FACTS_EVERY, FACTS_EVERY);
        let mut beat = Box::pin(tokio::time::sleep(self.jittered()));
        loop {
            let done = tokio::select! {
                message = self.incoming.message() => self.handle(message).await,
                () = &mut beat => {
                    beat.as_mut().reset(Instant::now() + self.jittered());
                    self.connection.tasks.give_memory_back();
                    self.send_heartbeat().await
                }
                _ = facts.tick() => self.send_changed_facts().await,
                () = stop.cancelled() => return self.say_goodbye().await,
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    /// Acts on the difference between what is held and what should be.
    async fn begin(&mut self, welcome: Welcome) -> Result<(), Detached> {
        let connection = &mut *self.connection;
        if let Some(time) = &welcome.time {
            connection.clock.set(time);
        }
        connection.tasks.policy().lower(welcome.mode_limit);
        tracing::info!(
            session_epoch = welcome.session_epoch,
            "attached to {} as {}",
            connection.address,
            welcome.host_name
        );
        connection
            .standing
            .attached(&connection.address, &welcome.host_name);
        connection.seen.note(
            &welcome.generation,
            welcome.ledger_position,
            &welcome.ledger_seal,
        );
        let news = match welcome.audit_head.clone() {
            Some(head) => connection.take_head(head),
            None => false,
        };
        let task_ids =
            connection
                .tasks
                .attach(&self.session, &welcome.expected_task_ids, welcome.upload);
        if news {
            self.send_changed_facts().await?;
        }
        if task_ids.is_empty() {
            return Ok(());
        }
        self.send(attach_request::Message::NotHeld(NotHeld { task_ids }))
            .await
    }

    async fn handle(
        &mut self,
        message: Result<Option<AttachResponse>, tonic::Status>,
    ) -> Result<(), Detached> {
        use attach_response::Message;
        let message = message?.ok_or(Detached::Closed)?;
        self.heard = Instant::now();
        match message.message {
            Some(Message::Offer(offer)) => self.connection.tasks.offer(offer, &self.session),
            Some(Message::Cancel(cancel)) => self.connection.tasks.cancel(cancel, &self.session),
            Some(Message::HeartbeatAck(ack)) => {
                if let Some(time) = &ack.time {
                    self.connection.clock.set(time);
                }
                let seen = &mut self.connection.seen;
                seen.advance(ack.ledger_position, &ack.ledger_seal);
            }
            Some(Message::Authorities(authorities)) => self.take(authorities),
            Some(Message::Policy(policy)) => {
                self.connection.tasks.policy().lower(policy.mode_limit)
            }
            Some(Message::AuditHead(head)) => {
                let news = self.connection.take_head(head);
                return match news {
                    true => self.send_changed_facts().await,
                    false => Ok(()),
                };
            }
            Some(Message::Drain(drain)) => return Err(Detached::drained(drain)),
            Some(Message::Welcome(_)) => return Err(Detached::Protocol("a second welcome")),
            // A later control plane may say what this agent does not know.
            None => {}
        }
        Ok(())
    }

    /// Takes authorities beside the stream, and then says so. What was being taken before is out of date.
    fn take(&mut self, authorities: Authorities) {
        let version = authorities.version;
        let der: Vec<CertificateDer<'static>> = authorities
            .authorities
            .iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect();
        let (renewal, taken) = (
            Arc::clone(&self.connection.renewal),
            Arc::clone(&self.connection.taken),
        );
        let outgoing = self.outgoing.clone();
        self.taking = Some(AbortOnDrop(tokio::spawn(async move {
            renewal.take(der).await;
            taken.store(version, Ordering::Relaxed);
            let message = AttachRequest {
                message: Some(attach_request::Message::AuthoritiesTaken(
                    AuthoritiesTaken { version },
                )),
            };
            // Where the stream is over, the next hello says it.
            let _ = outgoing.send(message).await;
        })));
    }

    async fn send_heartbeat(&mut self) -> Result<(), Detached> {
        if self.heard.elapsed() > self.heartbeat * SILENT_HEARTBEATS {
            return Err(Detached::Silent);
        }
        let heartbeat = Heartbeat {
            journal_position: self.connection.tasks.journal().position(),
            time: Some(self.connection.clock.host_time()),
        };
        self.send(attach_request::Message::Heartbeat(heartbeat))
            .await
    }

    async fn send_changed_facts(&mut self) -> Result<(), Detached> {
        let changed: Option<Facts> = self.connection.facts.look_for_change();
        match changed {
            Some(facts) => self.send(attach_request::Message::Facts(facts)).await,
            None => Ok(()),
        }
    }

    async fn say_goodbye(&mut self) -> Detached {
        let goodbye = Goodbye {
            cause: "the agent was told to stop".to_owned(),
        };
        let sent = self.send(attach_request::Message::Goodbye(goodbye));
        let _ = tokio::time::timeout(GOODBYE_LIMIT, sent).await;
        // Until the other end has closed, the goodbye may still be on its way.
        let closed = async { while let Ok(Some(_)) = self.incoming.message().await {} };
        let _ = tokio::time::timeout(GOODBYE_LIMIT, closed).await;
        Detached::Stopped
    }

    async fn send(&self, message: attach_request::Message) -> Result<(), Detached> {
        let message = AttachRequest {
            message: Some(message),
        };
        let sent = tokio::time::timeout(self.heartbeat, self.outgoing.send(message)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Detached::Closed),
            Err(_) => Err(Detached::Silent),
        }
    }

    /// The next sign of life, ± 20 %, so that a fleet does not beat as one.
    fn jittered(&self) -> Duration {
        self.heartbeat.mul_f64(rand::rng().random_range(0.8..=1.2))
    }
}

impl Seen {
    fn load(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let mut word = || words.next().unwrap_or_default();
        Self {
            generation: word().to_owned(),
            ledger_position: word().parse().unwrap_or(0),
            // An older agent has written none.
            seal: HEXLOWER
                .decode(word().as_bytes())
                .unwrap_or_default()
                .into(),
            path,
        }
    }

    fn note(&mut self, generation: &str, ledger_position: i64, seal: &Bytes) {
        if self.generation != generation {
            if !self.generation.is_empty() {
                tracing::warn!("the control plane was restored from a backup, or is another one");
            }
            generation.clone_into(&mut self.generation);
            self.ledger_position = 0;
        }
        // The same position is told again with a seal to one that had none.
        if self.seal.is_empty() && ledger_position == self.ledger_position {
            self.seal = seal.clone();
        }
        self.advance(ledger_position, seal);
        self.store();
    }

    fn advance(&mut self, ledger_position: i64, seal: &Bytes) {
        if ledger_position > self.ledger_position {
            self.ledger_position = ledger_position;
            self.seal = seal.clone();
            self.store();
        }
    }

    /// A stale file after a power cut only makes a rollback show later, so it is not synced.
    fn store(&self) {
        let new = self.path.with_extension("new");
        let seal = HEXLOWER.encode(&self.seal);
        let text = format!("{} {} {seal}\n", self.generation, self.ledger_position);
        let stored = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = stored {
            tracing::warn!(%error, "{} cannot be written: {error}", self.path.display());
        }
    }
}
