//! The server of the relay: passes on what a caller asks to the agent, and what the agent says to the caller. Frozen with
//! the rest of the relay.

mod door;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_client::identity::Identity;
use muster_proto::{
    agent::v1::{
        AttachRequest, AttachResponse, Input, Offer, ReportRequest, ReportResponse, SealedOffer,
        Settled, Welcome, attach_response, report_request::Message as Up,
        report_response::Message as Down, task_state,
    },
    v1::{
        AttachInputResult, AttachTaskRequest, AttachTaskResponse, Attached, Job, JobEvent,
        JobUpdate, OutputChunk, RunJobRequest, RunJobResponse, Task, TaskUpdate, Writer,
        attach_task_request::Message as FromCaller, attach_task_response::Message as ToCaller,
        job_event::Event, task::State as TaskState,
    },
};
use muster_runtime::tls::{AcceptLimits, Admission, ServerTls, SpiffeId, listen};
use prost::Message as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::QUEUE;

/// As Muster's server has them.
const STREAM_WINDOW: u32 = 1 << 20;
const STREAMS_MAX: u32 = 200;
const CONNECTION_WINDOW: u32 = (STREAMS_MAX + 1) * STREAM_WINDOW;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Inputs that a caller may send before the first of them is answered.
const UNANSWERED_MAX: i32 = 64;

type Sender<T> = mpsc::Sender<Result<T, Status>>;
type Answers<T> = Result<Response<ReceiverStream<Result<T, Status>>>, Status>;

/// Serves at the address of the identity in `directory` until the process is stopped.
pub(super) async fn run(directory: &Path) -> anyhow::Result<()> {
    let identity = Identity::load(directory)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key().serialize_der()));
    let tls = ServerTls::new(
        identity.chain().to_vec(),
        key,
        identity.authorities(),
        Arc::new(Everybody),
    )?;
    let listener = listen(identity.address().parse()?)?;
    let incoming = tls.incoming(listener, AcceptLimits::default(), CancellationToken::new());
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .serve_with_incoming(door::Door(Relay::default()), incoming)
        .await?;
    Ok(())
}

/// Lets in everybody with a certificate of the authority.
struct Everybody;

impl Admission for Everybody {
    fn admits(&self, _: &SpiffeId) -> bool {
        true
    }
}

/// The agent, and the tasks that are under way.
#[derive(Clone, Default)]
struct Relay(Arc<State>);

#[derive(Default)]
struct State {
    agent: Mutex<Option<Sender<AttachResponse>>>,
    tasks: Mutex<HashMap<String, Arc<Told>>>,
    count: AtomicU64,
}

/// A task: how it stands, the callers who are told, and the way to its process.
struct Told {
    task: Mutex<Task>,
    caller: Mutex<Option<Sender<RunJobResponse>>>,
    attached: Mutex<Option<Sender<AttachTaskResponse>>>,
    process: Mutex<Option<Sender<ReportResponse>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// An agent: offers go to the one that came last.
    async fn attach(self, request: Request<Streaming<AttachRequest>>) -> Answers<AttachResponse> {
        let (down, answers) = mpsc::channel(QUEUE);
        let welcome = attach_response::Message::Welcome(Welcome::default());
        let message = Some(welcome);
        let _ = down.try_send(Ok(AttachResponse { message }));
        *lock(&self.0.agent) = Some(down);
        let mut said = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = said.message().await {} });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    /// A caller: its job becomes one task, and an offer to the agent.
    async fn run_job(self, request: Request<RunJobRequest>) -> Answers<RunJobResponse> {
        let create = request.into_inner().create.unwrap_or_default();
        let number = self.0.count.fetch_add(1, Ordering::Relaxed);
        let task = Task {
            task_id: format!("t-{number}"),
            job_id: format!("j-{number}"),
            host_name: create.selector.clone(),
            state: TaskState::Pending.into(),
            ..Task::default()
        };
        let sealed = SealedOffer {
            task_id: task.task_id.clone(),
            job_id: task.job_id.clone(),
            host_name: task.host_name.clone(),
            action: create.action.clone(),
            ..SealedOffer::default()
        };
        let job = Job {
            job_id: task.job_id.clone(),
            request_id: create.request_id,
            selector: create.selector,
            action: create.action,
            ..Job::default()
        };
        let agent = lock(&self.0.agent).clone();
        let agent = agent.ok_or_else(|| Status::unavailable("no agent is there"))?;
        let (caller, answers) = mpsc::channel(QUEUE);
        let _ = caller.try_send(Ok(updated([Event::Job(job), Event::Task(task.clone())])));
        let told = Told {
            task: Mutex::new(task),
            caller: Mutex::new(Some(caller)),
            attached: Mutex::default(),
            process: Mutex::default(),
        };
        lock(&self.0.tasks).insert(sealed.task_id.clone(), Arc::new(told));
        let offer = attach_response::Message::Offer(Offer {
            sealed_offer: sealed.encode_to_vec().into(),
            ..Offer::default()
        });
        let message = Some(offer);
        let offered = agent.send(Ok(AttachResponse { message })).await;
        offered.map_err(|_| Status::unavailable("the agent is gone"))?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    /// The agent, of one task.
    async fn report(self, request: Request<Streaming<ReportRequest>>) -> Answers<ReportResponse> {
        let (down, answers) = mpsc::channel(QUEUE);
        let mut said = request.into_inner();
        let Some(Up::Open(open)) = said.message().await?.and_then(|said| said.message) else {
            return Err(Status::invalid_argument("a report begins with its task"));
        };
        let told = self.told(&open.task_id)?;
        *lock(&told.process) = Some(down.clone());
        tokio::spawn(async move {
            while let Ok(Some(said)) = said.message().await {
                if let Some(message) = said.message {
                    told.hear(message).await;
                }
                if lock(&told.caller).is_none() {
                    lock(&self.0.tasks).remove(&open.task_id);
                    let message = Some(Down::Settled(Settled::default()));
                    let _ = down.send(Ok(ReportResponse { message })).await;
                }
            }
            *lock(&told.process) = None;
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    /// A caller who writes to a task.
    async fn attach_task(
        self,
        request: Request<Streaming<AttachTaskRequest>>,
    ) -> Answers<AttachTaskResponse> {
        let (down, answers) = mpsc::channel(QUEUE);
        let mut said = request.into_inner();
        let Some(FromCaller::Open(open)) = said.message().await?.and_then(|said| said.message)
        else {
            return Err(Status::invalid_argument("one attaches to a task"));
        };
        let told = self.told(&open.task_id)?;
        let attached = ToCaller::Attached(Attached {
            task: Some(lock(&told.task).clone()),
            writer: Some(Writer {
                you: true,
                ..Writer::default()
            }),
            max_unanswered: UNANSWERED_MAX,
            ..Attached::default()
        });
        let message = Some(attached);
        let _ = down.try_send(Ok(AttachTaskResponse { message }));
        *lock(&told.attached) = Some(down);
        tokio::spawn(async move {
            while let Ok(Some(said)) = said.message().await {
                if let Some(FromCaller::Input(input)) = said.message {
                    let (write_id, input) = (input.write_id, input.input);
                    let message = Some(Down::Input(Input { write_id, input }));
                    send(&told.process, ReportResponse { message }).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    fn told(&self, task_id: &str) -> Result<Arc<Told>, Status> {
        let told = lock(&self.0.tasks).get(task_id).cloned();
        told.ok_or_else(|| Status::not_found("no such task is under way"))
    }
}

impl Told {
    /// Passes on what the agent says. The end of the task is the end of what it is told to.
    async fn hear(&self, message: Up) {
        match message {
            Up::State(state) => {
                let task = match state.event {
                    Some(task_state::Event::Started(_)) => self.changed(TaskState::Running, None),
                    Some(task_state::Event::Ended(ended)) => {
                        self.changed(ended.state(), ended.exit_code)
                    }
                    None => return,
                };
                let is_over = task.output_complete;
                self.tell(Event::Task(task)).await;
                if is_over {
                    *lock(&self.caller) = None;
                    *lock(&self.attached) = None;
                }
            }
            Up::Chunk(chunk) => {
                let output = OutputChunk {
                    task_id: lock(&self.task).task_id.clone(),
                    sequence: chunk.sequence,
                    stream: chunk.stream,
                    offset: chunk.offset,
                    data: chunk.data,
                    ..OutputChunk::default()
                };
                self.tell(Event::Output(output)).await;
            }
            Up::OutputEnd(_) => lock(&self.task).output_complete = true,
            Up::InputResult(result) => {
                let message = Some(ToCaller::InputResult(AttachInputResult {
                    write_id: result.write_id,
                    status: result.status,
                    ..AttachInputResult::default()
                }));
                send(&self.attached, AttachTaskResponse { message }).await;
            }
            Up::Open(_) | Up::Gap(_) | Up::Kept(_) => {}
        }
    }

    fn changed(&self, state: TaskState, exit_code: Option<i32>) -> Task {
        let mut task = lock(&self.task);
        task.state = state.into();
        task.exit_code = exit_code;
        task.clone()
    }

    async fn tell(&self, event: Event) {
        let attached = lock(&self.attached).clone();
        if let Some(attached) = attached {
            let events = vec![happened(event.clone())];
            let message = Some(ToCaller::Update(TaskUpdate { events }));
            let _ = attached.send(Ok(AttachTaskResponse { message })).await;
        }
        send(&self.caller, updated([event])).await;
    }
}

/// Sends a message, unless the other end has left.
async fn send<T>(way: &Mutex<Option<Sender<T>>>, message: T) {
    let way = lock(way).clone();
    if let Some(way) = way {
        let _ = way.send(Ok(message)).await;
    }
}

fn updated<const N: usize>(events: [Event; N]) -> RunJobResponse {
    RunJobResponse {
        update: Some(JobUpdate {
            events: events.map(happened).to_vec(),
            ..JobUpdate::default()
        }),
    }
}

fn happened(event: Event) -> JobEvent {
    JobEvent { event: Some(event) }
}
