//! A control plane for tests: speaks the real proto over real TLS, keeps what agents report, and is
//! strict about the order of output.

mod service;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, atomic::AtomicI64, atomic::Ordering},
    time::{Duration, SystemTime},
};

use muster_client::identity::Identity;
use muster_proto::{
    agent::v1::{
        Ack, AttachRequest, AttachResponse, Cancel, Drain, Hello, Input, InputResult, Kept, Offer,
        Open, RecalledTask, ReportRequest, ReportResponse, Resume, SealedOffer, Settled,
        UploadRequest, UploadResponse, WantedTasks, Welcome,
        agent_service_server::{AgentService, AgentServiceServer},
        attach_request, attach_response, report_request, report_response, task_state,
        upload_request, upload_response,
    },
    ids::TaskId,
    v1::{
        Action, Command, Confinement, FileRead, InputStatus, Mode, OutputStream, TaskInput, action,
        task, task_input,
    },
};
use muster_runtime::tls::{AcceptLimits, Admission, ServerTls, SpiffeId, SpiffeKind};
use parking_lot::Mutex;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::service::Service;

/// The id of the one host.
pub(crate) const HOST: &str = "h-00000000000000000000";

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct FakeControlPlane {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    tls: ServerTls,
    authority: CertifiedIssuer<'static, KeyPair>,
    tasks_made: AtomicI64,
    stop: CancellationToken,
}

/// How the fake behaves.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// Says that output is durable.
    pub(crate) acknowledges: bool,
    /// Says that tasks are settled.
    pub(crate) settles: bool,
    /// Stops reading reports, as the flow control of a stalled network would.
    pub(crate) reads_nothing: bool,
    /// Checks and counts output, and does not keep it.
    pub(crate) discards: bool,
    /// Expected at the next attach.
    pub(crate) expected: Vec<String>,
    /// Was restored: wants what agents remember.
    pub(crate) upload: bool,
    /// The mode that the host is limited to, as every welcome says.
    pub(crate) mode_limit: Mode,
}

struct State {
    seen: watch::Sender<Seen>,
    behaviour: Mutex<Behaviour>,
}

/// What agents said.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) hellos: Vec<Hello>,
    pub(crate) messages: Vec<attach_request::Message>,
    pub(crate) tasks: HashMap<String, Reported>,
    pub(crate) violations: Vec<String>,
    pub(crate) recalled: Vec<RecalledTask>,
    session: Option<mpsc::Sender<Result<AttachResponse, Status>>>,
}

/// What was reported of a task.
#[derive(Default, Clone, Debug)]
pub(crate) struct Reported {
    pub(crate) opens: Vec<Open>,
    /// The beginning of the output that is left, where what was asked for is gone.
    pub(crate) kept: Option<Kept>,
    pub(crate) started: Option<task_state::Started>,
    pub(crate) ended: Option<task_state::Ended>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Bytes that were not kept, stdout and stderr.
    pub(crate) missing: [i64; 2],
    pub(crate) last_sequence: i64,
    pub(crate) output_ended: bool,
    pub(crate) settled: bool,
    pub(crate) results: Vec<InputResult>,
    offsets: [i64; 2],
    /// To the agent, on the newest report.
    down: Option<mpsc::Sender<Result<ReportResponse, Status>>>,
}

struct Everybody;

impl Admission for Everybody {
    fn admits(&self, _: &SpiffeId) -> bool {
        true
    }
}

impl FakeControlPlane {
    pub(crate) async fn start() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, key()).unwrap();
        let server_key = key();
        let server = CertificateParams::new([muster_proto::CONTROL_PLANE_NAME.to_owned()])
            .unwrap()
            .signed_by(&server_key, &authority)
            .unwrap();
        let authorities = [authority.der().clone()];
        let tls = ServerTls::new(
            vec![server.der().clone(), authority.der().clone()],
            server_key.into(),
            &authorities,
            Arc::new(Everybody),
        )
        .unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let incoming = tls.incoming(listener, AcceptLimits::default(), stop.clone());
        let state = Arc::new(State {
            seen: watch::Sender::default(),
            behaviour: Mutex::new(Behaviour {
                acknowledges: true,
                settles: true,
                ..Behaviour::default()
            }),
        });
        let service =
            AgentServiceServer::new(Service(Arc::clone(&state))).max_decoding_message_size(8 << 20);
        tokio::spawn(
            tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(200 << 20)
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        Self {
            address,
            state,
            tls,
            authority,
            tasks_made: AtomicI64::new(0),
            stop,
        }
    }

    /// Gives the agent's directory the identity of the one host.
    pub(crate) fn enroll(&self, directory: &Path) {
        let key = key();
        let mut leaf = CertificateParams::default();
        let id = format!("spiffe://muster.internal/host/{HOST}");
        leaf.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        leaf.not_before = (SystemTime::now() - Duration::from_secs(300)).into();
        leaf.not_after = (SystemTime::now() + Duration::from_secs(86_400)).into();
        let leaf = leaf.signed_by(&key, &self.authority).unwrap();
        let chain = vec![leaf.der().clone(), self.authority.der().clone()];
        let authorities = vec![self.authority.der().clone()];
        let address = self.address.to_string();
        Identity::new(
            directory,
            key,
            chain,
            authorities,
            address,
            "web-1".to_owned(),
        )
        .unwrap()
        .store()
        .unwrap();
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.behaviour.lock());
        self.state.seen.send_modify(|_| {});
    }

    /// Waits until what was seen is as wanted, and returns what that gives.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        mut wanted: impl FnMut(&Seen) -> Option<T>,
    ) -> T {
        let mut seen = self.state.seen.subscribe();
        let mut found = None;
        let waited = tokio::time::timeout(
            PATIENCE,
            seen.wait_for(|seen| {
                assert_eq!(seen.violations, Vec::<String>::new());
                found = wanted(seen);
                found.is_some()
            }),
        );
        match waited.await {
            Ok(done) => drop(done.unwrap()),
            Err(_) => panic!(
                "never came: {what}; tasks: {:?}",
                self.state
                    .seen
                    .borrow()
                    .tasks
                    .values()
                    .map(|t| (
                        &t.started,
                        &t.ended,
                        t.last_sequence,
                        t.output_ended,
                        t.opens.len()
                    ))
                    .collect::<Vec<_>>()
            ),
        }
        found.unwrap()
    }

    pub(crate) async fn attached(&self, times: usize) {
        self.until("an attach", |seen| {
            (seen.hellos.len() >= times).then_some(())
        })
        .await;
    }

    /// Waits until a task is settled.
    pub(crate) async fn settled(&self, task_id: &str) -> Reported {
        self.until("a settled task", |seen| {
            seen.tasks.get(task_id).filter(|task| task.settled).cloned()
        })
        .await
    }

    /// Waits until a task has been reported in this way.
    pub(crate) async fn task(&self, task_id: &str, wanted: impl Fn(&Reported) -> bool) -> Reported {
        self.until("a reported task", |seen| {
            seen.tasks.get(task_id).filter(|task| wanted(task)).cloned()
        })
        .await
    }

    /// Offers a task that says a process id first. Returns its id, and that.
    pub(crate) async fn begun(&self, wanted: Command) -> (String, i32) {
        let task_id = self.offer(wanted).await;
        let task = self.task(&task_id, |task| !task.stdout.is_empty()).await;
        (task_id, task.out().trim().parse().unwrap())
    }

    /// An offer of a command, as the control plane would seal it.
    pub(crate) fn offer_of(&self, command: Command) -> (String, Offer) {
        self.offer_confined(command, None)
    }

    /// The same, confined so far.
    pub(crate) fn offer_confined(
        &self,
        command: Command,
        confinement: Option<Confinement>,
    ) -> (String, Offer) {
        self.offer_of_kind(action::Kind::Command(command), confinement)
    }

    fn offer_of_kind(
        &self,
        kind: action::Kind,
        confinement: Option<Confinement>,
    ) -> (String, Offer) {
        let number = self.tasks_made.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..12].copy_from_slice(&rand::random::<u32>().to_be_bytes());
        let task_id = TaskId::from_bytes(&bytes).to_string();
        let sealed = SealedOffer {
            task_id: task_id.clone(),
            host_id: HOST.to_owned(),
            action: Some(Action { kind: Some(kind) }),
            not_after: Some((SystemTime::now() + Duration::from_secs(600)).into()),
            confinement,
            ..Default::default()
        };
        let offer = Offer {
            sealed_offer: sealed.encode_to_vec().into(),
            seal: vec![7; 32].into(),
            trace: HashMap::new(),
            secret_env: HashMap::new(),
        };
        (task_id, offer)
    }

    /// Offers a command to the attached host.
    pub(crate) async fn offer(&self, command: Command) -> String {
        let (task_id, offer) = self.offer_of(command);
        self.send(attach_response::Message::Offer(offer)).await;
        task_id
    }

    /// Offers a command that is to be confined so far.
    pub(crate) async fn offer_with(&self, command: Command, confinement: Confinement) -> String {
        let (task_id, offer) = self.offer_confined(command, Some(confinement));
        self.send(attach_response::Message::Offer(offer)).await;
        task_id
    }

    /// Offers to read a file, confined so far.
    pub(crate) async fn offer_read(&self, read: FileRead, confinement: Confinement) -> String {
        let kind = action::Kind::FileRead(read);
        let (task_id, offer) = self.offer_of_kind(kind, Some(confinement));
        self.send(attach_response::Message::Offer(offer)).await;
        task_id
    }

    /// Says something on a task's newest report.
    pub(crate) async fn say(&self, task_id: &str, message: report_response::Message) {
        let task = self.task(task_id, |task| task.down.is_some()).await;
        let message = ReportResponse {
            message: Some(message),
        };
        // Whoever is gone hears nothing.
        let _ = task.down.unwrap().send(Ok(message)).await;
    }

    pub(crate) async fn cancel(&self, task_id: &str, grace: Option<Duration>) {
        let cancel = Cancel {
            task_id: task_id.to_owned(),
            grace: grace.map(|grace| grace.try_into().unwrap()),
            not_after: Some((SystemTime::now() + Duration::from_secs(600)).into()),
        };
        self.send(attach_response::Message::Cancel(cancel)).await;
    }

    /// Puts something into a task, and returns what became of it.
    pub(crate) async fn put(
        &self,
        task_id: &str,
        write_id: &str,
        kind: task_input::Kind,
    ) -> InputStatus {
        let input = Input {
            write_id: write_id.to_owned(),
            input: Some(TaskInput { kind: Some(kind) }),
        };
        let task = self.task(task_id, |task| task.down.is_some()).await;
        let before = task.results.len();
        let message = ReportResponse {
            message: Some(report_response::Message::Input(input)),
        };
        task.down.unwrap().send(Ok(message)).await.unwrap();
        let task = self.task(task_id, |task| task.results.len() > before).await;
        assert_eq!(task.results[before].write_id, write_id);
        task.results[before].status()
    }

    /// Knows nothing of a task any more, as after a restore from a backup.
    pub(crate) fn forget(&self, task_id: &str) {
        self.state
            .seen
            .send_modify(|seen| drop(seen.tasks.remove(task_id)));
    }

    pub(crate) async fn drain(&self) {
        let drain = Drain {
            retry_after: Some(Duration::from_millis(10).try_into().unwrap()),
        };
        self.send(attach_response::Message::Drain(drain)).await;
    }

    pub(crate) async fn send(&self, message: attach_response::Message) {
        let session = self.until("a session", |seen| seen.session.clone()).await;
        let message = AttachResponse {
            message: Some(message),
        };
        session.send(Ok(message)).await.unwrap();
    }

    /// Says something that may be lost with its session.
    pub(crate) async fn offer_again(&self, message: attach_response::Message) {
        let session = self.until("a session", |seen| seen.session.clone()).await;
        let message = AttachResponse {
            message: Some(message),
        };
        let _ = session.send(Ok(message)).await;
    }

    /// The host is gone, and another one comes.
    pub(crate) fn forget_session(&self) {
        self.state.seen.send_modify(|seen| seen.session = None);
    }

    /// Cuts every connection of the host.
    pub(crate) fn cut(&self) {
        self.state.seen.send_modify(|seen| seen.session = None);
        let id = SpiffeId::new("muster.internal", SpiffeKind::Host, HOST);
        self.tls.close(&id);
    }
}

impl Drop for FakeControlPlane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

impl Reported {
    pub(crate) fn state(&self) -> task::State {
        self.ended
            .as_ref()
            .map_or(task::State::Unspecified, task_state::Ended::state)
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}
