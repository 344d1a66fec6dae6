//! Whoever asks: the generated clients with a credential, and the verbs that stories use.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use muster_client::identity::{Identity, load_authorities};
use muster_proto::v1::{
    Action, CancelJobRequest, Command, CreateJobRequest, CreateJoinTokenRequest,
    CreateTokenRequest, FileRead, GetHostRequest, GetJobRequest, Host, Job, JoinKind,
    ListHostsRequest, ListTasksRequest, OutputStream, PrincipalKind, ReadOutputRequest, Reason,
    Script, Task, WatchJobRequest, approval_service_client::ApprovalServiceClient,
    authority_service_client::AuthorityServiceClient,
    enrollment_service_client::EnrollmentServiceClient, grant_service_client::GrantServiceClient,
    host::Presence, host_service_client::HostServiceClient, job_event::Event,
    job_service_client::JobServiceClient, policy_service_client::PolicyServiceClient,
    principal_service_client::PrincipalServiceClient, read_output_request, task,
    token_service_client::TokenServiceClient,
};
use muster_runtime::tls::{ClientTls, connect_lazily};
use tonic::{
    Request, Status, metadata::MetadataValue, service::Interceptor,
    service::interceptor::InterceptedService, transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::{PATIENCE, eventually};

/// What a caller shows.
#[derive(Debug, Clone)]
pub enum Credential {
    /// The certificate in this directory.
    Directory(PathBuf),
    /// A bearer token.
    Token {
        /// The token.
        token: String,
        /// File of the authority's certificate.
        ca: PathBuf,
    },
    /// Nothing.
    None {
        /// File of the authority's certificate.
        ca: PathBuf,
    },
}

/// A channel that carries a credential.
pub type Door = InterceptedService<Channel, Bearer>;

/// Adds a bearer token where there is one.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<tonic::metadata::Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The reason that a refused call carries.
pub fn reason(status: &Status) -> Reason {
    let details = status.get_details_error_info();
    let info = details.unwrap_or_else(|| panic!("no reason in {status:?}"));
    assert_eq!(info.domain, muster_proto::ERROR_DOMAIN);
    Reason::from_name(&info.reason).unwrap_or_else(|| panic!("unknown reason in {status:?}"))
}

/// A request id that nobody used before.
pub fn fresh_request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("story-{}-{count}", std::process::id())
}

/// A command that a shell runs.
pub fn script(text: impl Into<String>) -> Action {
    command(Command {
        script: Some(Script {
            text: text.into(),
            shell: String::new(),
        }),
        cwd: "/".to_owned(),
        ..Command::default()
    })
}

/// A command as it is given.
pub fn command(command: Command) -> Action {
    Action {
        kind: Some(muster_proto::v1::action::Kind::Command(command)),
    }
}

/// Reading a file.
pub fn file_read(file: FileRead) -> Action {
    muster_client::files::action(file)
}

/// The request of a job that does this on every host that matches.
pub fn request(selector: &str, action: Action) -> CreateJobRequest {
    CreateJobRequest {
        request_id: fresh_request_id(),
        selector: selector.to_owned(),
        action: Some(action),
        ..CreateJobRequest::default()
    }
}

/// A caller of the control plane.
#[derive(Debug, Clone)]
pub struct Operator {
    channel: Channel,
    bearer: Bearer,
}

impl Operator {
    /// A caller that dials this address.
    pub fn new(address: SocketAddr, credential: Credential) -> Self {
        let anonymous = |ca: PathBuf| ClientTls::new(&load_authorities(&ca).unwrap()).unwrap();
        let (tls, token) = match credential {
            Credential::Directory(directory) => (
                Identity::load(&directory).unwrap().client_tls().unwrap(),
                None,
            ),
            Credential::Token { token, ca } => (anonymous(ca), Some(token)),
            Credential::None { ca } => (anonymous(ca), None),
        };
        Self {
            channel: connect_lazily(&address.to_string(), &tls),
            bearer: Bearer(token.map(|token| format!("Bearer {token}").parse().unwrap())),
        }
    }

    /// The way in, for any generated client.
    pub fn door(&self) -> Door {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    /// The inventory.
    pub fn hosts(&self) -> HostServiceClient<Door> {
        HostServiceClient::new(self.door())
    }

    /// Jobs, tasks and output.
    pub fn jobs(&self) -> JobServiceClient<Door> {
        JobServiceClient::new(self.door())
    }

    /// First trust.
    pub fn enrollment(&self) -> EnrollmentServiceClient<Door> {
        EnrollmentServiceClient::new(self.door())
    }

    /// Principals, and who the caller is.
    pub fn principals(&self) -> PrincipalServiceClient<Door> {
        PrincipalServiceClient::new(self.door())
    }

    /// Bearer tokens.
    pub fn tokens(&self) -> TokenServiceClient<Door> {
        TokenServiceClient::new(self.door())
    }

    /// The authority behind certificates.
    pub fn authorities(&self) -> AuthorityServiceClient<Door> {
        AuthorityServiceClient::new(self.door())
    }

    /// Policies.
    pub fn policy(&self) -> PolicyServiceClient<Door> {
        PolicyServiceClient::new(self.door())
    }

    /// Approvals.
    pub fn approvals(&self) -> ApprovalServiceClient<Door> {
        ApprovalServiceClient::new(self.door())
    }

    /// Grants.
    pub fn grants(&self) -> GrantServiceClient<Door> {
        GrantServiceClient::new(self.door())
    }

    /// A join string for one host.
    pub async fn join_string(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let request = CreateJoinTokenRequest {
            kind: JoinKind::Host.into(),
            name: name.to_owned(),
            labels: labels
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            ..CreateJoinTokenRequest::default()
        };
        let answer = self.enrollment().create_join_token(request).await.unwrap();
        answer.into_inner().join_string
    }

    /// A bearer token.
    pub async fn bearer_token(&self, kind: PrincipalKind, name: &str) -> String {
        let request = CreateTokenRequest {
            kind: kind.into(),
            name: name.to_owned(),
            ..CreateTokenRequest::default()
        };
        let answer = self.tokens().create_token(request).await.unwrap();
        answer.into_inner().bearer_token
    }

    /// A host as it stands now.
    pub async fn host(&self, name: &str) -> Host {
        let host = name.to_owned();
        let answer = self
            .hosts()
            .get_host(GetHostRequest { host })
            .await
            .unwrap();
        answer.into_inner().host.unwrap()
    }

    /// Every host, by name.
    pub async fn all_hosts(&self) -> Vec<Host> {
        let listed = self.hosts().list_hosts(ListHostsRequest::default()).await;
        listed.unwrap().into_inner().hosts
    }

    /// Waits until a host's presence is this.
    pub async fn presence(&self, name: &str, presence: Presence) -> Host {
        let what = format!("{name} is {}", presence.as_str_name());
        eventually(PATIENCE, &what, || async {
            let host = self.host(name).await;
            (host.presence() == presence).then_some(host)
        })
        .await
    }

    /// Waits until a host is online.
    pub async fn online(&self, name: &str) -> Host {
        self.presence(name, Presence::Online).await
    }

    /// Creates a job.
    pub async fn create(&self, request: CreateJobRequest) -> Result<Watched, Status> {
        let job = self
            .jobs()
            .create_job(request)
            .await?
            .into_inner()
            .job
            .unwrap();
        Ok(Watched {
            operator: self.clone(),
            job_id: job.job_id,
        })
    }

    /// Runs a shell script on every host that matches.
    pub async fn run(&self, selector: &str, text: impl Into<String>) -> Watched {
        self.create(request(selector, script(text))).await.unwrap()
    }

    /// A job that exists.
    pub fn job(&self, job_id: &str) -> Watched {
        Watched {
            operator: self.clone(),
            job_id: job_id.to_owned(),
        }
    }
}

/// A job in the eyes of whoever asked for it.
#[derive(Debug, Clone)]
pub struct Watched {
    operator: Operator,
    /// Its id.
    pub job_id: String,
}

impl Watched {
    /// The job as it stands now.
    pub async fn job(&self) -> Job {
        let job_id = self.job_id.clone();
        let answer = self.operator.jobs().get_job(GetJobRequest { job_id }).await;
        answer.unwrap().into_inner().job.unwrap()
    }

    /// Its tasks as they stand now.
    pub async fn tasks(&self) -> Vec<Task> {
        let request = ListTasksRequest {
            job_id: self.job_id.clone(),
            ..ListTasksRequest::default()
        };
        self.operator
            .jobs()
            .list_tasks(request)
            .await
            .unwrap()
            .into_inner()
            .tasks
    }

    /// Its only task as it stands now.
    pub async fn task(&self) -> Task {
        let mut tasks = self.tasks().await;
        assert_eq!(tasks.len(), 1, "one task");
        tasks.remove(0)
    }

    /// Waits until its only task is in this state.
    pub async fn reaches(&self, state: task::State) -> Task {
        let what = format!("the task is {}", state.as_str_name());
        eventually(PATIENCE, &what, || async {
            let task = self.task().await;
            if task.state() != state {
                let open = [
                    task::State::AwaitingApproval,
                    task::State::Pending,
                    task::State::Running,
                ];
                assert!(open.contains(&task.state()), "{what}, but it is {task:?}");
                return None;
            }
            Some(task)
        })
        .await
    }

    /// Waits until its only task succeeded with all its output.
    pub async fn succeeds(&self) -> Task {
        self.reaches(task::State::Succeeded).await;
        self.complete().await
    }

    /// Waits until the output of its only task is complete.
    pub async fn complete(&self) -> Task {
        eventually(PATIENCE, "the output is complete", || async {
            let task = self.task().await;
            task.output_complete.then_some(task)
        })
        .await
    }

    /// Cancels it, with this grace.
    pub async fn cancel(&self, grace: Duration) {
        let request = CancelJobRequest {
            job_id: self.job_id.clone(),
            selector: String::new(),
            grace: Some(grace.try_into().unwrap()),
        };
        self.operator.jobs().cancel_job(request).await.unwrap();
    }

    /// Reads the kept output of its only task, all of it, by cursor.
    pub async fn output(&self, stream: OutputStream) -> Vec<u8> {
        let task_id = self.task().await.task_id;
        self.output_of(&task_id, stream).await
    }

    /// Reads the kept output of a task, all of it, by cursor.
    pub async fn output_of(&self, task_id: &str, stream: OutputStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.pages_of(task_id, stream, |data| bytes.extend_from_slice(data))
            .await;
        bytes
    }

    /// The same of its only task, for output that is not to be held in memory.
    pub async fn output_into(&self, stream: OutputStream, take: impl FnMut(&[u8])) {
        let task_id = self.task().await.task_id;
        self.pages_of(&task_id, stream, take).await;
    }

    async fn pages_of(&self, task_id: &str, stream: OutputStream, mut take: impl FnMut(&[u8])) {
        let mut page_token = String::new();
        loop {
            let request = ReadOutputRequest {
                task_id: task_id.to_owned(),
                stream: stream.into(),
                part: Some(read_output_request::Part::Range(
                    read_output_request::Range::default(),
                )),
                max_bytes: 1 << 20,
                page_token,
                ..ReadOutputRequest::default()
            };
            let page = self
                .operator
                .jobs()
                .read_output(request)
                .await
                .unwrap()
                .into_inner();
            assert!(page.gaps.is_empty(), "{:?}", page.gaps);
            for chunk in &page.chunks {
                take(&chunk.data);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() || page.chunks.iter().all(|chunk| chunk.data.is_empty()) {
                return;
            }
        }
    }

    /// Watches it to its end, resuming where the connection breaks; checks that nothing is missing or repeated.
    pub async fn watch(&self) -> Seen {
        let mut seen = Seen::default();
        self.watch_into(&mut seen).await;
        seen
    }

    /// Goes on watching from where `seen` ends, to the job's end.
    pub async fn watch_into(&self, seen: &mut Seen) {
        let watching = async {
            while !self.watch_once(seen).await {
                tokio::task::yield_now().await;
            }
        };
        let limit = PATIENCE * 2;
        if tokio::time::timeout(limit, watching).await.is_err() {
            panic!(
                "not within {limit:?}: the watch ends; tasks: {:?}",
                self.tasks().await
            );
        }
    }

    /// Watches until the stream ends, and says whether it ended by itself.
    pub async fn watch_once(&self, seen: &mut Seen) -> bool {
        let request = WatchJobRequest {
            job_id: self.job_id.clone(),
            resume_token: seen.resume_token.clone(),
            states_only: false,
        };
        let mut stream = match self.operator.jobs().watch_job(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                broken(&status);
                return false;
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(answer)) => seen.take(answer.update.unwrap()),
                Ok(None) => return true,
                Err(status) => {
                    broken(&status);
                    return false;
                }
            }
        }
    }
}

/// Only a broken connection or a stop may end a watch early.
fn broken(status: &Status) {
    let expected = [
        tonic::Code::Unavailable,
        tonic::Code::Unknown,
        tonic::Code::Cancelled,
        tonic::Code::Internal,
    ];
    assert!(expected.contains(&status.code()), "{status:?}");
}

/// What a watcher has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// The place where a watch continues.
    pub resume_token: String,
    /// Each task as it was last seen.
    pub tasks: BTreeMap<String, Task>,
    /// The states that each task went through, as seen.
    pub states: BTreeMap<String, Vec<task::State>>,
    /// Output by task and stream.
    pub output: BTreeMap<(String, OutputStream), Vec<u8>>,
    /// Bytes that were said to be missing.
    pub missing: i64,
    sequences: BTreeMap<String, i64>,
}

impl Seen {
    /// Output of the only task.
    pub fn stdout(&self) -> &[u8] {
        let mut streams = self
            .output
            .iter()
            .filter(|((_, stream), _)| *stream == OutputStream::Stdout);
        let first = streams.next();
        assert!(streams.next().is_none(), "one task");
        first.map_or(&[], |(_, bytes)| bytes)
    }

    /// Takes an update in.
    pub fn take(&mut self, update: muster_proto::v1::JobUpdate) {
        for event in update.events {
            match event.event.unwrap() {
                Event::Job(_) => {}
                Event::Task(task) => {
                    let states = self.states.entry(task.task_id.clone()).or_default();
                    if states.last() != Some(&task.state()) {
                        states.push(task.state());
                    }
                    self.tasks.insert(task.task_id.clone(), task);
                }
                Event::Output(chunk) => {
                    self.follows(&chunk.task_id, chunk.sequence);
                    let stream = chunk.stream();
                    let bytes = self.output.entry((chunk.task_id, stream)).or_default();
                    if self.missing == 0 {
                        assert_eq!(chunk.offset, bytes.len() as i64, "a gap or a repeat");
                    }
                    bytes.extend_from_slice(&chunk.data);
                }
                Event::Gap(gap) => {
                    self.follows(&gap.task_id, gap.sequence);
                    self.missing += gap.length;
                }
            }
        }
        self.resume_token = update.resume_token;
    }

    fn follows(&mut self, task_id: &str, sequence: i64) {
        let last = self.sequences.entry(task_id.to_owned()).or_default();
        assert!(sequence > *last, "sequence {sequence} after {last}");
        *last = sequence;
    }
}
