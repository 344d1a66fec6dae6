//! The fleet: one control plane, the hosts that joined it, and an operator who asks.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_client::identity::Identity;
use muster_proto::v1::{GetCallerRequest, host::Presence};
use muster_runtime::tls::{ConnectError, connect};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    PATIENCE,
    cut::Cut,
    eventually,
    operator::{Credential, Operator},
    process::{self, Ended, MARK, Process, Start},
};

/// How long processes may take to go away once they were told to.
const GRACE: Duration = Duration::from_secs(20);

/// Settings that a story changes: variables of the environment.
type Settings = Vec<(&'static str, String)>;

/// A control plane, its hosts and its operator. Dropping it ends them all, and fails the story if anything
/// of them is left.
#[derive(Debug)]
pub struct Fleet {
    directory: TempDir,
    mark: String,
    address: SocketAddr,
    mcp_address: SocketAddr,
    role: &'static str,
    settings: Settings,
    agent_settings: Settings,
    control_plane: Mutex<Option<Process>>,
    agents: Mutex<Vec<Weak<Agent>>>,
    sequence: AtomicU64,
}

/// A fleet before its start.
#[derive(Debug, Default)]
pub struct Plan {
    settings: Settings,
    agent_settings: Settings,
}

impl Plan {
    /// Sets a variable of the control plane's environment, as `MUSTER_CERTIFICATE_LIFETIME`.
    pub fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }

    /// Sets a variable of every agent's environment.
    pub fn set_agents(mut self, name: &'static str, value: impl ToString) -> Self {
        self.agent_settings.push((name, value.to_string()));
        self
    }

    /// Starts a control plane.
    pub async fn start(self) -> Fleet {
        self.start_role("control-plane").await
    }

    /// Starts `muster up`: control plane, gateway and an agent for this machine in one process.
    pub async fn start_up(self) -> Fleet {
        let fleet = self.start_role("up").await;
        fleet.up_is_whole().await;
        fleet
    }

    async fn start_role(self, role: &'static str) -> Fleet {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let directory = tempfile::Builder::new()
            .prefix("muster-")
            .tempdir()
            .unwrap();
        for name in ["home", "logs", "control-plane"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let fleet = Fleet {
            mark: format!(
                "{}-{}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            ),
            directory,
            address: free_address(),
            mcp_address: free_address(),
            role,
            settings: self.settings,
            agent_settings: self.agent_settings,
            control_plane: Mutex::new(None),
            agents: Mutex::new(Vec::new()),
            sequence: AtomicU64::new(0),
        };
        fleet.start_control_plane().await;
        fleet
    }
}

/// An address that nobody listens on. Below the range that the system hands out by itself, so that it
/// stays free until the control plane binds it, and again after each kill.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 1_000) as u16 * 20;
    loop {
        let port = 10_000 + (start - 10_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

impl Fleet {
    /// A fleet with settings of its own.
    pub fn plan() -> Plan {
        Plan::default()
    }

    /// A control plane, and nothing else yet.
    pub async fn start() -> Self {
        Self::plan().start().await
    }

    /// A control plane and one host, which is online.
    pub async fn with_host(name: &str) -> (Self, Arc<Agent>) {
        let fleet = Self::start().await;
        let host = fleet.host(name).await;
        (fleet, host)
    }

    /// A mark that the fleet's processes carry in their environment.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// A directory of this fleet for a story's own files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where logs of its programs go.
    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    /// The control plane's data directory, which is the operator's too.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("control-plane")
    }

    /// Where the control plane listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the gateway of `up` listens.
    pub fn mcp_address(&self) -> SocketAddr {
        self.mcp_address
    }

    /// The token that `up` made for MCP clients.
    pub fn mcp_token(&self) -> String {
        let token = fs::read_to_string(self.data_dir().join("mcp-token")).unwrap();
        token.trim().to_owned()
    }

    /// Waits until `up` serves MCP and its host is online.
    pub async fn up_is_whole(&self) {
        let operator = self.operator();
        eventually(PATIENCE, "up is whole", || async {
            let hosts = operator.all_hosts().await;
            let online = hosts.iter().any(|host| host.presence() == Presence::Online);
            let served = tokio::net::TcpStream::connect(self.mcp_address)
                .await
                .is_ok();
            (online && served).then_some(())
        })
        .await;
    }

    /// What the control plane has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.logs().join("control-plane.log")).unwrap_or_default()
    }

    /// `muster` with these arguments, as the operator would call it on the control plane's machine.
    pub fn muster(&self, args: &[&str]) -> Start {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.program(format!("muster-{number}"), &process::muster())
            .env("MUSTER_DATA_DIR", self.data_dir())
            .args(args)
    }

    /// Runs `muster` with these arguments to its end.
    pub async fn cli(&self, args: &[&str]) -> Ended {
        self.muster(args).run(&self.logs()).await
    }

    /// `muster-agent`, without settings yet.
    pub fn agent_program(&self, name: &str) -> Start {
        self.program(name.to_owned(), &process::muster_agent())
    }

    /// A program of the fleet: with its home directory, and marked as part of it.
    fn program(&self, name: String, program: &Path) -> Start {
        Start::new(name, program, &self.directory.path().join("home")).env(MARK, &self.mark)
    }

    /// Starts the control plane, or starts it again.
    pub async fn start_control_plane(&self) {
        self.start_control_plane_with(&[]).await;
    }

    /// Starts the control plane with more settings, and waits until it answers.
    pub async fn start_control_plane_with(&self, more: &[(&'static str, &str)]) {
        self.spawn_control_plane(more);
        eventually(PATIENCE, "the control plane answers", || async {
            let over = self
                .control_plane
                .lock()
                .as_ref()
                .is_none_or(Process::is_over);
            assert!(!over, "the control plane ended:\n{}", self.log());
            // It listens before it has an authority, so that a port that is taken costs nothing.
            Identity::load(&self.data_dir().join("operator")).ok()?;
            let caller = self
                .operator()
                .principals()
                .get_caller(GetCallerRequest {})
                .await;
            caller.is_ok().then_some(())
        })
        .await;
    }

    /// Starts the control plane and does not wait.
    pub fn spawn_control_plane(&self, more: &[(&'static str, &str)]) {
        let mut start = self
            .program("control-plane".to_owned(), Path::new("/bin/sh"))
            .env("MUSTER_DATA_DIR", self.data_dir())
            .env("MUSTER_LISTEN", self.address.to_string())
            .env("MUSTER_MCP_LISTEN", self.mcp_address.to_string())
            // So that a limit on file sizes fails writes, as a full disk does, instead of killing it.
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .args([process::muster().as_os_str(), self.role.as_ref()]);
        for (name, value) in &self.settings {
            start = start.env(name, value);
        }
        for (name, value) in more {
            start = start.env(name, value);
        }
        *self.control_plane.lock() = Some(start.spawn(&self.logs()));
    }

    /// Kills the control plane the hard way.
    pub fn kill_control_plane(&self) {
        let process = self.control_plane.lock().take();
        process.expect("it runs").kill();
    }

    /// The process id of the control plane.
    pub fn control_plane_pid(&self) -> Pid {
        self.control_plane.lock().as_ref().expect("it runs").pid()
    }

    /// Asks the control plane to stop and waits for it.
    pub async fn stop_control_plane(&self) -> Ended {
        let process = self.control_plane.lock().take();
        process.expect("it runs").stop().await
    }

    /// Lets no file of the control plane grow beyond `bytes`, as a full disk would; `None` lets them again.
    pub async fn limit_files(&self, bytes: Option<u64>) {
        let pid = self.control_plane.lock().as_ref().expect("it runs").pid();
        let limit = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
        let ended = self
            .program("prlimit".to_owned(), Path::new("/usr/bin/prlimit"))
            .args([format!("--pid={pid}"), format!("--fsize={limit}:unlimited")])
            .run(&self.logs())
            .await;
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
    }

    /// Waits until the control plane holds at its failpoint.
    pub async fn held_at(&self, place: &str) {
        let said = format!("holding at failpoint {place}");
        eventually(PATIENCE, &said, || async {
            self.log().contains(&said).then_some(())
        })
        .await;
    }

    /// The operator, by certificate, on connections of its own.
    pub fn operator(&self) -> Operator {
        Operator::new(self.address, self.credential_directory("operator"))
    }

    /// The operator's way in over a wire of its own.
    pub fn operator_at(&self, address: SocketAddr) -> Operator {
        Operator::new(address, self.credential_directory("operator"))
    }

    /// Whoever holds this token.
    pub fn bearer(&self, token: &str) -> Operator {
        let ca = self.data_dir().join("operator/ca.pem");
        let token = token.to_owned();
        Operator::new(self.address, Credential::Token { token, ca })
    }

    /// A caller without a credential.
    pub fn nobody(&self) -> Operator {
        let ca = self.data_dir().join("operator/ca.pem");
        Operator::new(self.address, Credential::None { ca })
    }

    fn credential_directory(&self, name: &str) -> Credential {
        Credential::Directory(self.data_dir().join(name))
    }

    /// Joins a host, starts its agent and waits until it is online.
    pub async fn host(&self, name: &str) -> Arc<Agent> {
        let host = self.joined(name, &[]).await;
        host.start(self);
        self.operator().online(name).await;
        host
    }

    /// Joins a host with labels; its agent does not run yet.
    pub async fn joined(&self, name: &str, labels: &[(&str, &str)]) -> Arc<Agent> {
        let join = self.operator().join_string(name, labels).await;
        let host = self.agent(name).await;
        let ended = host.join(self, &join).await;
        assert_eq!(ended.code(), 0, "{name} does not join: {}", ended.stderr);
        host
    }

    /// A host that has not joined, behind a wire of its own.
    pub async fn agent(&self, name: &str) -> Arc<Agent> {
        let directory = self.directory.path().join(name);
        fs::create_dir(&directory).unwrap();
        let agent = Arc::new(Agent {
            name: name.to_owned(),
            directory,
            wire: Cut::to(self.address).await,
            process: Mutex::new(None),
        });
        self.agents.lock().push(Arc::downgrade(&agent));
        agent
    }

    /// Processes of this fleet, its hosts' tasks among them, whose command line contains `text`.
    pub fn processes(&self, text: &str) -> Vec<String> {
        process::marked(&self.mark)
            .into_iter()
            .map(|(_, command)| command)
            .filter(|command| command.contains(text))
            .collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- control plane\n{}", tail(&self.log()));
            for agent in self.agents.lock().iter().filter_map(Weak::upgrade) {
                eprintln!("--- {}\n{}", agent.name, tail(&agent.log(self)));
            }
        }
        for agent in self.agents.lock().iter().filter_map(Weak::upgrade) {
            agent.process.lock().take();
        }
        self.control_plane.lock().take();
        process::end_tasks(&self.mark);
        let left = process::reap(&self.mark, GRACE);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left running: {left:?}");
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A host: its agent's directory, its wire to the control plane, and the agent while it runs.
#[derive(Debug)]
pub struct Agent {
    name: String,
    directory: PathBuf,
    wire: Cut,
    process: Mutex<Option<Process>>,
}

impl Agent {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files of its journal.
    pub fn journal(&self) -> Vec<PathBuf> {
        let journal = self.directory.join("agent/journal");
        if journal.is_dir() {
            let entries = fs::read_dir(journal).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        } else {
            vec![journal]
        }
    }

    /// Its wire to the control plane.
    pub fn wire(&self) -> &Cut {
        &self.wire
    }

    /// All that the host's agent has logged.
    pub fn log(&self, fleet: &Fleet) -> String {
        let log = fleet.logs().join(format!("{}.log", self.name));
        fs::read_to_string(log).unwrap_or_default()
    }

    /// Joins with this string, over the host's own wire.
    pub async fn join(&self, fleet: &Fleet, join: &str) -> Ended {
        fleet
            .agent_program(&format!("{}-join", self.name))
            .env("MUSTER_DATA_DIR", &self.directory)
            .env("MUSTER_JOIN", over(join, self.wire.address()))
            .args(["join"])
            .run(&fleet.logs())
            .await
    }

    /// Starts its agent.
    pub fn start(&self, fleet: &Fleet) {
        self.start_with(fleet, &[]);
    }

    /// Starts its agent with more settings.
    pub fn start_with(&self, fleet: &Fleet, more: &[(&'static str, &str)]) {
        self.start_program(fleet, &process::muster_agent(), more);
    }

    /// Starts another build of its agent.
    pub fn start_build(&self, fleet: &Fleet, build: &Path) {
        self.start_program(fleet, build, &[]);
    }

    fn start_program(&self, fleet: &Fleet, program: &Path, more: &[(&'static str, &str)]) {
        let mut start = fleet
            .program(self.name.clone(), program)
            .env("MUSTER_DATA_DIR", &self.directory)
            .args(["run"]);
        for (name, value) in &fleet.agent_settings {
            start = start.env(name, value);
        }
        for (name, value) in more {
            start = start.env(name, value);
        }
        *self.process.lock() = Some(start.spawn(&fleet.logs()));
    }

    /// Waits until its agent holds at its failpoint.
    pub async fn held_at(&self, fleet: &Fleet, place: &str) {
        let said = format!("holding at failpoint {place}");
        eventually(PATIENCE, &said, || async {
            self.log(fleet).contains(&said).then_some(())
        })
        .await;
    }

    /// The supervisors of its tasks, idle or not.
    pub fn supervisors(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir(self.directory.join("agent/supervisors")) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name();
                let (pid, _) = name.to_str()?.split_once('-')?;
                pid.parse().ok().map(Pid::from_raw)
            })
            .collect()
    }

    /// A connection to `address` with this host's certificate.
    pub async fn dial(&self, address: SocketAddr) -> Result<Channel, ConnectError> {
        let identity = Identity::load(&self.directory.join("agent")).unwrap();
        connect(&address.to_string(), &identity.client_tls().unwrap()).await
    }

    /// Kills its agent the hard way.
    pub fn kill(&self) {
        let process = self.process.lock().take();
        process.expect("it runs").kill();
    }

    /// The process id of its agent.
    pub fn pid(&self) -> Pid {
        self.process.lock().as_ref().expect("it runs").pid()
    }

    /// Asks its agent to stop and waits for it.
    pub async fn stop(&self) -> Ended {
        let process = self.process.lock().take();
        process.expect("it runs").stop().await
    }

    /// Waits for its agent to end by itself.
    pub async fn ended(&self) -> Ended {
        let process = self.process.lock().take();
        process.expect("it runs").ended(PATIENCE).await
    }
}

/// The same join string with another address to dial: the control plane is known by its pin, not by where it is.
fn over(join: &str, address: SocketAddr) -> String {
    let (secret, rest) = join.split_once('@').expect("SECRET@HOST:PORT#PIN");
    let (_, pin) = rest.split_once('#').expect("SECRET@HOST:PORT#PIN");
    format!("{secret}@{address}#{pin}")
}

/// Copies a directory with all it holds.
pub fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
