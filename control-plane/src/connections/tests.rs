//! The road of a task against a fake agent that speaks the real protocol over loopback.

mod fake_agent;
mod races;
mod restores;

use std::{
    net::SocketAddr,
    path::Path,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use muster_proto::{
    agent::v1::{
        AttachRequest, AttachResponse, Chunk, Hello, NotHeld, Offer, Open, OutputEnd,
        ReportRequest, ReportResponse, TaskState, UploadRequest, UploadResponse, Welcome,
        agent_service_client::AgentServiceClient,
        agent_service_server::{AgentService, AgentServiceServer},
        attach_request::Message as Up,
        attach_response::Message as Down,
        report_request::Message as ReportUp,
        report_response::Message as ReportDown,
        task_state,
    },
    ids::{HostId, JobId},
    v1::{Action, Command, OutputStream, Reason, action, task},
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use super::{ConnectionSettings, Rooms};
use crate::{
    audit::Audit,
    authority::Authority,
    clock::now,
    hosts::{Inventory, PresenceLimits},
    jobs::{CreateError, Job, Jobs, NewJob, Target, WatchEvent},
    model::{self, Ending, Fence, JobState, Labels, NewHost, Order, State, Task},
    output::{Content, OutputLimits, OutputStore},
    restores::Restores,
    rotation::Rotation,
    seal::Sealer,
    secrets::Secrets,
    sessions::{Dispatcher, Sessions},
    store::{self, Batch, OpenError, Store},
};

use self::fake_agent::{Agent, next, success};

const PATIENCE: Duration = Duration::from_secs(10);

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn host() -> HostId {
    HostId::from_bytes(&[7; 32])
}

/// A control plane without TLS, whose every caller is the one host.
struct Plane {
    rooms: Rooms,
    store: Store,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

struct Door(Rooms);

#[tonic::async_trait]
impl AgentService for Door {
    type AttachStream = Messages<AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let messages = super::attach(self.0.clone(), host(), request.into_inner()).await?;
        Ok(Response::new(Box::pin(messages)))
    }

    type ReportStream = Messages<ReportResponse>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let messages = super::report(self.0.clone(), host(), request.into_inner()).await?;
        Ok(Response::new(Box::pin(messages)))
    }

    type UploadStream = Messages<UploadResponse>;

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let messages = super::upload(self.0.clone(), host(), request.into_inner()).await?;
        Ok(Response::new(Box::pin(messages)))
    }
}

impl Plane {
    async fn open(directory: &Path) -> Self {
        // The one before lets go of the directory when the last of its tasks has ended.
        let opened = async {
            loop {
                match Store::open(directory).await {
                    Err(OpenError::Held(_)) => tokio::task::yield_now().await,
                    opened => return opened.unwrap(),
                }
            }
        };
        let store = timeout(PATIENCE, opened).await.unwrap();
        let inventory = Inventory::load(store.clone(), PresenceLimits::default())
            .await
            .unwrap();
        if inventory.get(host()).is_none() {
            let new = NewHost {
                name: "web-1".into(),
                labels: Labels::new(),
                certificate_expire_time: 1,
            };
            inventory.add(host(), new, Batch::new()).await.unwrap();
        }
        let output = OutputStore::open(&directory.join("output"), OutputLimits::default())
            .await
            .unwrap();
        let fences = store::jobs::load_fences(&store.readers).await.unwrap();
        let connections = Sessions::new(store.starts, fences);
        let sealer = std::sync::Arc::new(Sealer::open(&directory.join("seal.key")).unwrap());
        let syncer = store.writer.syncer().clone();
        let dispatcher = Dispatcher::new(
            connections.clone(),
            inventory.clone(),
            sealer.clone(),
            Secrets::open(directory).unwrap(),
            store.control_plane_id.clone(),
            syncer.clone(),
        );
        let restores = Restores::load(&store, &inventory, sealer).await.unwrap();
        let jobs = Jobs::load(store.clone(), output.clone(), dispatcher)
            .await
            .unwrap();
        let authority = Authority::open(directory, "muster.internal").unwrap();
        let follow = Box::new(|| Ok(()));
        let rotation = Rotation::load(authority.into(), store.clone(), inventory.clone(), follow);
        let rotation = rotation.await.unwrap();
        let rooms = Rooms {
            jobs,
            connections,
            inventory,
            output,
            syncer,
            restores,
            receipts: super::Receipts::new(rotation.clone()),
            rotation,
            audit: Audit::default(),
            head: tokio::sync::watch::channel(None).1,
            written: std::sync::Arc::new(|_, _| {}),
            settings: ConnectionSettings::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(Door(rooms.clone())))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        let serving = tokio::spawn(async move { server.await.unwrap() });
        Self {
            rooms,
            store,
            address,
            stop,
            serving,
        }
    }

    async fn close(self) {
        self.rooms.connections.stop();
        self.stop.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
        self.rooms.jobs.close().await;
        self.rooms.output.close().await;
    }

    async fn create(&self, request_id: &str) -> Result<JobId, CreateError> {
        self.create_on(request_id, &[host()]).await
    }

    async fn create_on(&self, request_id: &str, hosts: &[HostId]) -> Result<JobId, CreateError> {
        let action = Action {
            kind: Some(action::Kind::Command(Command {
                argv: vec!["true".into()],
                ..Command::default()
            })),
        };
        let time = now();
        let order = Order {
            job_id: self.rooms.jobs.id_of("operator/ada", request_id),
            principal: "operator/ada".into(),
            request_id: request_id.into(),
            request_digest: [1; 32],
            selector: "all".into(),
            action: model::Action::new(action).0,
            secrets: Default::default(),
            confinement: Default::default(),
            reason: "".into(),
            approval_id: "".into(),
            create_time: time,
            start_deadline_time: time + 600_000,
            lost_after: 86_400_000,
        };
        let new = NewJob {
            order,
            awaits: None,
            targets: hosts
                .iter()
                .map(|host_id| Target {
                    host_id: *host_id,
                    host_name: "web-1".into(),
                })
                .collect(),
            trace: Default::default(),
        };
        let created = self.rooms.jobs.create(new).await?;
        created.durable.wait().await.unwrap();
        Ok(created.job.order.job_id)
    }

    async fn state(&self, job: JobId) -> JobState {
        self.rooms.jobs.get(job).await.unwrap().unwrap().state
    }

    /// Follows a job to its end: its tasks' last states and all output.
    async fn followed(&self, job: JobId, token: &str) -> (Vec<Task>, Vec<u8>) {
        let watch = self.rooms.jobs.watch(job, token, false).await.unwrap();
        let mut watch = watch.unwrap();
        let mut tasks = Vec::new();
        let mut bytes = Vec::new();
        let follow = async {
            while let Some(update) = watch.next().await.unwrap() {
                for event in update.events {
                    match event {
                        WatchEvent::Task(task) => tasks.push(*task),
                        WatchEvent::Output(_, item) => {
                            if let Content::Data(data) = item.content {
                                bytes.extend_from_slice(&data);
                            }
                        }
                        WatchEvent::Job(_) => {}
                    }
                }
            }
        };
        timeout(PATIENCE, follow).await.unwrap();
        (tasks, bytes)
    }

    /// Waits until the task stands there.
    async fn task_becomes(&self, job: JobId, wanted: State) -> Task {
        let job = self.rooms.jobs.watch(job, "", true).await.unwrap().unwrap();
        let mut changed = job.job().changed();
        let reached = async {
            loop {
                changed.mark_unchanged();
                let task = job.job().task(0);
                if task.state == wanted {
                    return task;
                }
                changed.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, reached).await.unwrap()
    }
}

#[tokio::test]
async fn a_task_goes_to_its_host_and_its_result_comes_back() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mut agent = Agent::attach(&plane, "boot", "journal", 0).await;
    let job = plane.create("r-1").await.unwrap();
    assert_eq!(
        plane.create("r-1").await.unwrap(),
        job,
        "a retry is the same job"
    );

    let offer = agent.offer().await;
    let open = agent.open(&offer, true);
    let heard = agent.report(open, success(b"hello\n")).await.unwrap();
    assert!(
        matches!(heard.last(), Some(ReportDown::Settled(_))),
        "{heard:?}"
    );

    let (tasks, output) = plane.followed(job, "").await;
    assert_eq!(output, b"hello\n");
    let last = tasks.last().unwrap();
    assert_eq!((last.state, last.exit_code), (State::Succeeded, Some(0)));
    assert_eq!(plane.state(job).await, JobState::Succeeded);

    drop(agent);
    plane.close().await;
    let again = Plane::open(directory.path()).await;
    assert_eq!(again.state(job).await, JobState::Succeeded);
    let (_, output) = again.followed(job, "").await;
    assert_eq!(output, b"hello\n");
    assert_eq!(again.create("r-1").await.unwrap(), job);
}

#[tokio::test]
async fn a_waiting_task_is_offered_at_attach_and_again_only_under_the_same_fence() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let job = plane.create("r-1").await.unwrap();
    let mut agent = Agent::attach(&plane, "boot", "journal", 5).await;
    assert!(agent.welcome.expected_task_ids.is_empty());
    let first = agent.offer().await;
    drop(agent);
    plane.close().await;

    let plane = Plane::open(directory.path()).await;
    let mut agent = Agent::attach(&plane, "boot", "journal", 5).await;
    assert_eq!(agent.welcome.expected_task_ids.len(), 1);
    agent.says_not_held().await;
    let again = agent.offer().await;
    assert_eq!(again.sealed_offer, first.sealed_offer);
    plane
        .rooms
        .connections
        .end(host(), crate::sessions::End::Silent);
    drop(agent);

    let agent = Agent::attach(&plane, "boot", "another journal", 1).await;
    agent.says_not_held().await;
    let task = plane.task_becomes(job, State::Lost).await;
    assert_eq!(task.reason, Reason::HostRolledBack);
    assert_eq!(plane.state(job).await, JobState::Failed);
}

#[tokio::test]
async fn a_task_that_the_ledger_lost_is_adopted_and_a_forged_one_is_not() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mut agent = Agent::attach(&plane, "boot", "journal", 0).await;
    let job = plane.create("r-1").await.unwrap();
    let offer = agent.offer().await;
    drop(agent);
    plane.rooms.jobs.durable().await.unwrap();
    let gone = store::jobs::delete(&[job.to_string()]);
    plane.store.writer.commit(gone).await.unwrap();
    plane.close().await;

    let plane = Plane::open(directory.path()).await;
    assert!(plane.rooms.jobs.get(job).await.unwrap().is_none());
    let mut agent = Agent::attach(&plane, "boot", "journal", 2).await;
    let forged = Open {
        seal: Bytes::from_static(&[0; 32]),
        ..agent.open(&offer, false)
    };
    let refused = agent.report(forged, Vec::new()).await.unwrap_err();
    let reason = refused.get_details_error_info().unwrap().reason;
    assert_eq!(reason, Reason::SealInvalid.name());

    let open = agent.open(&offer, false);
    let heard = agent.report(open, success(b"x")).await.unwrap();
    assert!(matches!(heard.first(), Some(ReportDown::Resume(_))));
    assert!(matches!(heard.last(), Some(ReportDown::Settled(_))));
    let summary = plane.rooms.jobs.get(job).await.unwrap().unwrap();
    assert_eq!(summary.state, JobState::Succeeded);
    assert!(summary.note.contains("adopted from host web-1"));
}

#[tokio::test]
async fn a_job_that_the_ledger_has_forgotten_holds_up_no_other() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mut agent = Agent::attach(&plane, "boot", "journal", 0).await;
    let forgotten = plane.create("r-1").await.unwrap();
    let offer = agent.offer().await;
    plane.rooms.jobs.durable().await.unwrap();
    let gone = store::jobs::delete(&[forgotten.to_string()]);
    plane.store.writer.commit(gone).await.unwrap();

    let other = plane.create("r-2").await.unwrap();
    let others = agent.offer().await;
    for offer in [offer, others] {
        let open = agent.open(&offer, true);
        let heard = agent.report(open, success(b"x")).await.unwrap();
        assert!(matches!(heard.last(), Some(ReportDown::Settled(_))));
    }
    let stored = store::jobs::load_one(&plane.store.readers, other).await;
    let stored = Job::from(stored.unwrap().unwrap());
    assert_eq!(stored.summary().state, JobState::Succeeded);
    let stored = store::jobs::load_one(&plane.store.readers, forgotten).await;
    assert!(stored.unwrap().is_none());
}

#[tokio::test]
async fn a_job_whose_host_still_owes_output_is_not_forgotten() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mut agent = Agent::attach(&plane, "boot", "journal", 0).await;
    let job = plane.create("r-1").await.unwrap();
    let offer = agent.offer().await;
    let open = ReportUp::Open(agent.open(&offer, true));
    let mut messages = [vec![open], success(b"x")].concat();
    let end = messages.pop();
    let (up, report) = mpsc::channel(16);
    for message in messages {
        let message = Some(message);
        up.send(ReportRequest { message }).await.unwrap();
    }
    let report = agent.client.report(ReceiverStream::new(report)).await;
    let mut report = report.unwrap().into_inner();
    plane.task_becomes(job, State::Succeeded).await;
    let forget = async || {
        plane.rooms.jobs.durable().await.unwrap();
        let forgotten = plane.rooms.jobs.forget_before(i64::MAX, 10).await;
        forgotten.unwrap()
    };
    assert_eq!(forget().await, 0);

    // Nor does it hold up one that ended later, though only one is looked at.
    let later = plane.create("r-2").await.unwrap();
    let offer = agent.offer().await;
    let open = agent.open(&offer, true);
    agent.report(open, success(b"x")).await.unwrap();
    let gone = async {
        while plane.rooms.jobs.forget_before(i64::MAX, 1).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    assert!(plane.rooms.jobs.get(later).await.unwrap().is_none());
    assert!(plane.rooms.jobs.get(job).await.unwrap().is_some());

    up.send(ReportRequest { message: end }).await.unwrap();
    while timeout(PATIENCE, report.message())
        .await
        .unwrap()
        .unwrap()
        .is_some()
    {}
    // It is in memory as long as its report.
    let over = async {
        while forget().await == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, over).await.unwrap();
}

#[tokio::test]
async fn a_task_that_never_left_is_cancelled_at_once() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let job = plane.create("r-1").await.unwrap();
    let by = || "operator/ada".into();
    let summary = plane.rooms.jobs.cancel(job, None, None, by()).await;
    assert_eq!(summary.unwrap().unwrap().state, JobState::Cancelled);

    let mut agent = Agent::attach(&plane, "boot", "journal", 0).await;
    let job = plane.create("r-2").await.unwrap();
    let offer = agent.offer().await;
    let summary = plane.rooms.jobs.cancel(job, None, Some(0), by()).await;
    assert_eq!(summary.unwrap().unwrap().state, JobState::Pending);
    let Some(Down::Cancel(cancel)) = next(&mut agent.down).await else {
        panic!("expected a cancel");
    };
    assert_eq!(cancel.task_id, agent.open(&offer, true).task_id);
}

#[tokio::test]
async fn a_newer_attach_takes_over_and_two_hosts_with_one_identity_are_set_aside() {
    let directory = TempDir::new().unwrap();
    let plane = Plane::open(directory.path()).await;
    let mut first = Agent::attach(&plane, "boot", "journal", 0).await;
    let second = Agent::attach(&plane, "boot", "journal", 0).await;
    assert!(second.welcome.session_epoch > first.welcome.session_epoch);
    let ended = timeout(PATIENCE, first.down.message())
        .await
        .unwrap()
        .unwrap_err();
    let reason = ended.get_details_error_info().unwrap().reason;
    assert_eq!(reason, Reason::SessionSuperseded.name());

    let alive = second.up.clone();
    let beats = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            let beat = Some(Up::Heartbeat(Default::default()));
            if alive.send(AttachRequest { message: beat }).await.is_err() {
                return;
            }
        }
    });
    let (up, messages) = mpsc::channel(1);
    let hello = Hello {
        boot_id: "other boot".into(),
        journal_id: "journal".into(),
        instance_id: "i".into(),
        ..Hello::default()
    };
    let message = Some(Up::Hello(hello));
    up.send(AttachRequest { message }).await.unwrap();
    let mut client = second.client.clone();
    let refused = timeout(PATIENCE, client.attach(ReceiverStream::new(messages)));
    let refused = refused.await.unwrap().unwrap_err();
    let reason = refused.get_details_error_info().unwrap().reason;
    assert_eq!(reason, Reason::IdentityConflict.name());
    assert!(plane.rooms.inventory.bar(host()).is_some());
    beats.abort();
}
