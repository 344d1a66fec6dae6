//! Simulated agents: a real connection with an identity of its own for each, and commands that are answered without a
//! process. Like real ones they dial again, after a while, when they are turned away.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_client::{
    identity::{Identity, generate_key},
    join::JoinString,
};
use muster_proto::{
    agent::v1::{
        AttachRequest, Heartbeat, Hello, Offer, Open, OutputEnd, ReportRequest, SealedOffer,
        TaskState, Welcome, agent_service_client::AgentServiceClient, attach_request,
        attach_response, report_request, report_response, task_state,
    },
    v1::{
        EnrollRequest, Facts, enroll_request::Proof, enroll_response::Outcome,
        enrollment_service_client::EnrollmentServiceClient, task,
    },
};
use muster_runtime::{
    backoff::Backoff,
    tls::{ClientTls, connect},
};
use prost::Message as _;
use rand::Rng as _;
use rcgen::CertificateParams;
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// How often an agent gives a sign of life that is not told.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Agents that have joined and stay attached. Dropping it detaches them.
pub(crate) struct Simulation {
    counts: Arc<Counts>,
    agents: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    attached: AtomicUsize,
    turned_away: AtomicUsize,
}

impl Simulation {
    /// Attaches all of them, `at_once` at a time.
    pub(crate) fn start(identities: Vec<Identity>, at_once: usize) -> Simulation {
        let counts = Arc::new(Counts::default());
        let dialling = Arc::new(Semaphore::new(at_once));
        let mut agents = JoinSet::new();
        for identity in identities {
            agents.spawn(stay(identity, counts.clone(), dialling.clone()));
        }
        Simulation { counts, agents }
    }

    /// How many are attached now.
    pub(crate) fn attached(&self) -> usize {
        self.counts.attached.load(Ordering::Relaxed)
    }

    /// How often one was turned away or cut off, and dialled again.
    pub(crate) fn turned_away(&self) -> usize {
        self.counts.turned_away.load(Ordering::Relaxed)
    }

    /// Detaches all of them.
    pub(crate) async fn stop(mut self) {
        self.agents.shutdown().await;
    }
}

/// Joins so many hosts, `at_once` at a time, over one connection and without a directory for any: an identity that is
/// stored is synced more than ten times, which would hold up the threads that all simulated agents share, until the
/// control plane lets go of those whose handshakes do not come to an end.
pub(crate) async fn enroll(
    join: &JoinString,
    count: usize,
    at_once: usize,
) -> anyhow::Result<Vec<Identity>> {
    let channel = connect(join.address(), &ClientTls::pinned(join.pin())).await?;
    stream::iter((0..count).map(|number| enroll_one(channel.clone(), join, number)))
        .buffer_unordered(at_once)
        .try_collect()
        .await
}

async fn enroll_one(
    channel: Channel,
    join: &JoinString,
    number: usize,
) -> anyhow::Result<Identity> {
    let key = generate_key();
    let csr = CertificateParams::default().serialize_request(&key)?;
    let request = EnrollRequest {
        proof: Some(Proof::JoinToken(join.token().to_owned())),
        csr: csr.der().to_vec().into(),
        name: format!("sim-{number}"),
    };
    let answer = EnrollmentServiceClient::new(channel)
        .enroll(request)
        .await?;
    let Some(Outcome::Identity(given)) = answer.into_inner().outcome else {
        bail!("a join token was answered without an identity");
    };
    let certificates = |der: Vec<bytes::Bytes>| -> Vec<CertificateDer<'static>> {
        let der = der.into_iter();
        der.map(|der| CertificateDer::from(der.to_vec())).collect()
    };
    let chain = certificates(given.certificate_chain);
    let authorities = certificates(given.authorities);
    let address = join.address().to_owned();
    let nowhere = Path::new("");
    Ok(Identity::new(
        nowhere,
        key,
        chain,
        authorities,
        address,
        given.name,
    )?)
}

/// One agent, attached again and again.
async fn stay(identity: Identity, counts: Arc<Counts>, dialling: Arc<Semaphore>) {
    let mut backoff = Backoff::default();
    loop {
        // An error of one is told by how many there are: thousands of lines would say the same.
        let _ = attach(&identity, &counts, &dialling, &mut backoff).await;
        counts.turned_away.fetch_add(1, Ordering::Relaxed);
        backoff.wait().await;
    }
}

/// Attaches once, and takes every offer at its word.
async fn attach(
    identity: &Identity,
    counts: &Arc<Counts>,
    dialling: &Semaphore,
    backoff: &mut Backoff,
) -> anyhow::Result<()> {
    let permit = dialling.acquire().await?;
    let channel = connect(identity.address(), &identity.client_tls()?).await?;
    let (requests, outgoing) = mpsc::channel(16);
    let hello = attach_request::Message::Hello(hello(identity.name()));
    requests.send(said(hello)).await?;
    let mut incoming = AgentServiceClient::new(channel.clone())
        .attach(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let first = incoming.message().await?.and_then(|first| first.message);
    let Some(attach_response::Message::Welcome(welcome)) = first else {
        bail!("the control plane does not begin with a welcome");
    };
    drop(permit);
    backoff.reset();
    let _counted = Counted::new(counts);
    let (mut position, every) = (0, heartbeat_interval(&welcome));
    let mut beat_at = Instant::now() + jittered(every);
    loop {
        let message = tokio::select! {
            message = incoming.message() => message?.context("the control plane ended the attach")?,
            () = time::sleep_until(beat_at) => {
                let beat = Heartbeat { journal_position: position, time: None };
                requests.send(said(attach_request::Message::Heartbeat(beat))).await?;
                beat_at = Instant::now() + jittered(every);
                continue;
            }
        };
        if let Some(attach_response::Message::Offer(offer)) = message.message {
            position += 2;
            let report = report(channel.clone(), offer, welcome.session_epoch, position);
            tokio::spawn(report);
        }
    }
}

/// Counts as attached until it is dropped.
struct Counted(Arc<Counts>);

impl Counted {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.attached.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.attached.fetch_sub(1, Ordering::Relaxed);
    }
}

fn heartbeat_interval(welcome: &Welcome) -> Duration {
    let told = welcome.heartbeat_interval;
    told.and_then(|told| Duration::try_from(told).ok())
        .filter(|told| !told.is_zero())
        .unwrap_or(HEARTBEAT)
}

/// As real agents spread theirs.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(rand::rng().random_range(0.8..=1.2))
}

fn hello(name: &str) -> Hello {
    Hello {
        boot_id: name.to_owned(),
        journal_id: name.to_owned(),
        instance_id: name.to_owned(),
        facts: Some(Facts {
            os: "simulated".to_owned(),
            boot_id: name.to_owned(),
            hostname: name.to_owned(),
            ..Facts::default()
        }),
        ..Hello::default()
    }
}

fn said(message: attach_request::Message) -> AttachRequest {
    AttachRequest {
        message: Some(message),
    }
}

/// Reports a task as done.
async fn report(channel: Channel, offer: Offer, epoch: i64, position: i64) -> anyhow::Result<()> {
    let sealed = SealedOffer::decode(offer.sealed_offer)?;
    let state = |position, event| {
        report_request::Message::State(TaskState {
            journal_position: position,
            event: Some(event),
        })
    };
    let messages = [
        report_request::Message::Open(Open {
            task_id: sealed.task_id,
            session_epoch: epoch,
            fresh: true,
            ..Open::default()
        }),
        state(
            position - 1,
            task_state::Event::Started(task_state::Started {
                pid: 1,
                ..Default::default()
            }),
        ),
        state(
            position,
            task_state::Event::Ended(task_state::Ended {
                state: task::State::Succeeded.into(),
                exit_code: Some(0),
                ..task_state::Ended::default()
            }),
        ),
        report_request::Message::OutputEnd(OutputEnd { last_sequence: 0 }),
    ];
    let (requests, outgoing) = mpsc::channel(messages.len());
    for message in messages {
        let message = Some(message);
        requests.send(ReportRequest { message }).await?;
    }
    let mut answers = AgentServiceClient::new(channel)
        .report(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(report_response::Message::Settled(_)) = answer.message {
            break;
        }
    }
    drop(requests);
    Ok(())
}
