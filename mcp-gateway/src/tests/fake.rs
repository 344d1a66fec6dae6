//! A control plane that speaks the real contract and does what the command says: `echo TEXT`,
//! `lines N`, `name`, `hang`, `missing`, `break`, `repl`; or reads one of a few files.

pub(super) mod files;
mod services;

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt as _};
use muster_proto::{
    ERROR_DOMAIN,
    ids::JobId,
    v1::{
        host_service_server::*, job_event::Event, job_service_server::*, token_service_server::*, *,
    },
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

#[derive(Clone)]
pub(super) struct Fake {
    pub(super) state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) hosts: Vec<Host>,
    pub(super) jobs: Vec<FakeJob>,
    /// Tokens that were presented for exchange.
    pub(super) exchanges: Vec<String>,
    /// What calls carried: authorization and traceparent.
    pub(super) calls: Vec<(String, String)>,
    pub(super) cancelled: Vec<String>,
    /// Streams that are open.
    pub(super) watchers: usize,
    /// How often a stream broke off.
    pub(super) broken: usize,
    pub(super) down: bool,
    /// The next input finds no room.
    pub(super) full: bool,
}

pub(super) struct FakeJob {
    pub(super) job: Job,
    tasks: Vec<Task>,
    output: HashMap<String, Vec<u8>>,
}

pub(super) fn error(code: Code, reason: Reason, message: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason.name(), ERROR_DOMAIN, []);
    Status::with_error_details(code, message, details)
}

fn timestamp() -> prost_types::Timestamp {
    SystemTime::now().into()
}

impl Fake {
    pub(super) async fn start() -> (Self, SocketAddr) {
        let fake = Self {
            state: Arc::default(),
            changed: watch::channel(0).0,
        };
        let presence = |name: &str| match name {
            "off-1" => host::Presence::Offline,
            _ => host::Presence::Online,
        };
        fake.state.lock().hosts = ["web-1", "web-2", "web-3", "db-1", "off-1"]
            .into_iter()
            .enumerate()
            .map(|(n, name)| Host {
                host_id: format!("h-0000000000000000000{n}"),
                name: name.into(),
                labels: HashMap::from([("role".to_owned(), name[..2].to_owned())]),
                facts: Some(Facts {
                    os: "linux".into(),
                    arch: "x86_64".into(),
                    ..Facts::default()
                }),
                presence: presence(name).into(),
                ..Host::default()
            })
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TokenServiceServer::new(fake.clone()))
            .add_service(HostServiceServer::new(fake.clone()))
            .add_service(JobServiceServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        (fake, address)
    }

    fn called(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let text = |key| {
            let value: Option<&str> = metadata.get(key).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let mut state = self.state.lock();
        if state.down {
            return Err(Status::unavailable("down"));
        }
        let bearer = text("authorization");
        state.calls.push((bearer.clone(), text("traceparent")));
        if bearer.starts_with("Bearer mst_x_") {
            Ok(())
        } else {
            Err(error(
                Code::Unauthenticated,
                Reason::CredentialInvalid,
                "not one of our tokens",
            ))
        }
    }

    fn select(&self, selector: &str) -> Result<Vec<Host>, Status> {
        let hosts = self.state.lock().hosts.clone();
        match selector {
            "" | "all" => Ok(hosts),
            "web" => Ok(hosts
                .into_iter()
                .filter(|h| h.name.starts_with("web"))
                .collect()),
            names => names
                .split(',')
                .map(|name| {
                    let found = hosts.iter().find(|h| h.name == name || h.host_id == name);
                    found.cloned().ok_or_else(|| {
                        let message = format!("no host is named {name:?}");
                        error(Code::NotFound, Reason::HostNotFound, &message)
                    })
                })
                .collect(),
        }
    }

    fn create(&self, create: CreateJobRequest, principal: &str) -> Result<String, Status> {
        let hosts = self.select(&create.selector)?;
        let mut state = self.state.lock();
        let same = |job: &&FakeJob| {
            job.job.request_id == create.request_id && job.job.principal == principal
        };
        if let Some(known) = state.jobs.iter().find(same) {
            if known.job.action != create.action {
                return Err(error(
                    Code::AlreadyExists,
                    Reason::RequestIdReused,
                    "the request id was used before",
                ));
            }
            return Ok(known.job.job_id.clone());
        }
        let mut number = [0; 32];
        number[0] = state.jobs.len() as u8 + 1;
        let job_id = JobId::from_bytes(&number).to_string();
        let Some(kind) = create.action.clone().unwrap_or_default().kind else {
            return Err(Status::invalid_argument("no action"));
        };
        let mut output = HashMap::new();
        let mut tasks = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            let mut task = Task {
                task_id: format!("t-{}-{n}", state.jobs.len()),
                job_id: job_id.clone(),
                host_id: host.host_id.clone(),
                host_name: host.name.clone(),
                start_time: Some(timestamp()),
                ..Task::default()
            };
            let bytes = match &kind {
                action::Kind::Command(command) => run(command, &host.name, &mut task),
                action::Kind::FileRead(file) if file.path == "/srv/slow" => {
                    task.set_state(task::State::Running);
                    Vec::new()
                }
                action::Kind::FileRead(file) => files::read(file, &host.name, &mut task),
            };
            task.output_size = Some(OutputSize {
                stdout_bytes: bytes.len() as i64,
                ..OutputSize::default()
            });
            if host.presence() == host::Presence::Offline {
                task = Task {
                    task_id: task.task_id,
                    job_id: task.job_id,
                    host_id: task.host_id,
                    host_name: task.host_name,
                    ..Task::default()
                };
                task.set_state(task::State::Pending);
                task.set_wait(task::Wait::ForHost);
            }
            output.insert(task.task_id.clone(), bytes);
            tasks.push(task);
        }
        let job = Job {
            job_id: job_id.clone(),
            request_id: create.request_id,
            principal: principal.to_owned(),
            selector: create.selector,
            action: create.action,
            mode: create.mode,
            create_time: Some(timestamp()),
            start_deadline_time: Some(timestamp()),
            ..Job::default()
        };
        state.jobs.push(FakeJob { job, tasks, output });
        drop(state);
        Ok(job_id)
    }

    /// Ends what runs, with one more line.
    pub(super) fn finish(&self, job_id: &str) {
        let mut state = self.state.lock();
        let job = state
            .jobs
            .iter_mut()
            .find(|job| job.job.job_id == job_id)
            .unwrap();
        for task in &mut job.tasks {
            if task.state() == task::State::Running {
                let output = job.output.get_mut(&task.task_id).unwrap();
                output.extend_from_slice(b"finished\n");
                task.output_size = Some(OutputSize {
                    stdout_bytes: output.len() as i64,
                    ..OutputSize::default()
                });
                end(task, 0);
            }
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// A read-eval-print loop: shows what is typed, says it in capitals, and asks for more. "quit" ends it, "full" has no
    /// room the first time.
    fn typed(&self, task_id: &str, kind: task_input::Kind) -> InputStatus {
        let mut state = self.state.lock();
        let full = std::mem::take(&mut state.full);
        let (task, output) = state
            .jobs
            .iter_mut()
            .find_map(|job| {
                let task = job.tasks.iter_mut().find(|task| task.task_id == task_id)?;
                Some((task, job.output.get_mut(task_id).unwrap()))
            })
            .unwrap();
        if task.state() != task::State::Running {
            return InputStatus::Closed;
        }
        if full {
            return InputStatus::Full;
        }
        let typed = match kind {
            task_input::Kind::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
            task_input::Kind::CloseStdin(_) => "quit\n".to_owned(),
            task_input::Kind::Signal(name) => name,
            task_input::Kind::Resize(_) => String::new(),
        };
        for line in typed.split_inclusive(['\n', '\r']) {
            let bare = line.trim_end();
            output.extend_from_slice(bare.as_bytes());
            if bare == "quit" {
                end(task, 0);
                break;
            }
            if bare != line {
                let said = format!("\r\n\x1b[32m{}\x1b[0m\r\n>>> ", bare.to_uppercase());
                output.extend_from_slice(said.as_bytes());
            }
        }
        task.output_size = Some(OutputSize {
            stdout_bytes: output.len() as i64,
            ..OutputSize::default()
        });
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        InputStatus::Accepted
    }

    /// Waits for output beyond a position, or the end of the task.
    async fn more(&self, task_id: &str, from: usize, wait: Duration) {
        let mut changed = self.changed.subscribe();
        let there = |_: &u64| {
            let state = self.state.lock();
            let job = state
                .jobs
                .iter()
                .find(|job| job.output.contains_key(task_id));
            job.is_none_or(|job| {
                let over = job
                    .tasks
                    .iter()
                    .any(|task| task.task_id == task_id && task.output_complete);
                over || job.output[task_id].len() > from
            })
        };
        let _ = tokio::time::timeout(wait, changed.wait_for(there)).await;
    }

    fn find<T>(&self, job_id: &str, look: impl FnOnce(&mut FakeJob) -> T) -> Result<T, Status> {
        let mut state = self.state.lock();
        let job = state.jobs.iter_mut().find(|job| job.job.job_id == job_id);
        job.map(look)
            .ok_or_else(|| error(Code::NotFound, Reason::JobNotFound, "there is no such job"))
    }

    /// Everything after a token, which is the number of bytes seen per task; then again at each change.
    fn watch(&self, job_id: String, token: String, states_only: bool) -> Updates {
        let fake = self.clone();
        fake.state.lock().watchers += 1;
        let guard = Watching(fake.clone());
        let mut seen: HashMap<String, usize> = token
            .split(';')
            .filter_map(|part| part.split_once('='))
            .map(|(task, bytes)| (task.to_owned(), bytes.parse().unwrap()))
            .collect();
        let updates = WatchStream::new(fake.changed.subscribe()).map(move |_| {
            let _guard = &guard;
            fake.find(&job_id, |job| {
                let mut events = vec![Event::Job(job.job.clone())];
                for task in &job.tasks {
                    if !states_only {
                        let output = &job.output[&task.task_id];
                        let from = seen.insert(task.task_id.clone(), output.len()).unwrap_or(0);
                        for (n, data) in output[from..].chunks(1_000).enumerate() {
                            events.push(Event::Output(chunk(task, data, from + n * 1_000)));
                        }
                    }
                    events.push(Event::Task(task.clone()));
                }
                let over = job.tasks.iter().all(|task| task.output_complete);
                let token: Vec<String> = seen
                    .iter()
                    .map(|(task, bytes)| format!("{task}={bytes}"))
                    .collect();
                let events = events
                    .into_iter()
                    .map(|event| JobEvent { event: Some(event) });
                (
                    JobUpdate {
                        events: events.collect(),
                        resume_token: token.join(";"),
                    },
                    over,
                )
            })
        });
        let mut ended = false;
        Box::pin(
            updates
                .take_while(move |update| {
                    let go_on = !ended;
                    ended = matches!(update, Ok((_, true)));
                    std::future::ready(go_on)
                })
                .map(|update| update.map(|(update, _)| update)),
        )
    }
}

/// What a command writes, and where its task stands.
fn run(command: &Command, host: &str, task: &mut Task) -> Vec<u8> {
    let text = match &command.script {
        Some(script) => script.text.clone(),
        None => command.argv.join(" "),
    };
    let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
    match word {
        "missing" => {
            task.set_state(task::State::Failed);
            task.set_reason(Reason::CommandNotFound);
            task.output_complete = true;
        }
        "hang" | "break" | "repl" => task.set_state(task::State::Running),
        _ => end(task, 0),
    }
    match word {
        "echo" => format!("{rest}\n").into_bytes(),
        "name" => format!("{host}\n").into_bytes(),
        "lines" => (0..rest.parse::<u32>().unwrap())
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect(),
        "hang" | "break" => b"started\n".to_vec(),
        "repl" => b"\x1b[?2004h>>> ".to_vec(),
        _ => Vec::new(),
    }
}

struct Watching(Fake);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.state.lock().watchers -= 1;
    }
}

fn end(task: &mut Task, code: i32) {
    task.set_state(task::State::Succeeded);
    task.exit_code = Some(code);
    task.output_complete = true;
    task.run_time = Some(prost_types::Duration {
        seconds: 0,
        nanos: 3_000_000,
    });
}

fn chunk(task: &Task, data: &[u8], position: usize) -> OutputChunk {
    OutputChunk {
        task_id: task.task_id.clone(),
        stream: OutputStream::Stdout.into(),
        offset: position as i64,
        position: position as i64,
        data: data.to_vec().into(),
        ..OutputChunk::default()
    }
}

type Updates = Pin<Box<dyn Stream<Item = Result<JobUpdate, Status>> + Send>>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
