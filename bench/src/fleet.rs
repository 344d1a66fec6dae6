//! A control plane, a gateway and an agent as separate processes, joined over loopback.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use muster_client::{Client, enrollment, join::JoinString};
use muster_proto::v1::{
    Action, Command, CreateJobRequest, CreateJoinTokenRequest, CreateTokenRequest, GetHostRequest,
    JoinKind, PrincipalKind, action::Kind, host::Presence,
};
use tempfile::TempDir;
use tokio::time;

use crate::{meter::Meter, process::Program, programs::Programs};

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(1);

/// The name of the host that runs.
pub(crate) const HOST: &str = "bench-1";

/// Everything under measurement. Dropping it stops the processes.
pub(crate) struct Fleet {
    // Before the directory, so that they end before it goes.
    pub(crate) agent: Program,
    pub(crate) gateway: Program,
    pub(crate) control_plane: Program,
    /// The operator.
    pub(crate) client: Client,
    /// Where the gateway listens.
    pub(crate) mcp: SocketAddr,
    /// The token of a script, which may do here what the operator may.
    pub(crate) script_token: String,
    /// The token of an AI client, whose tasks are confined.
    pub(crate) ai_token: String,
    _directory: TempDir,
}

impl Fleet {
    /// Starts everything and waits until the host is online and the gateway answers.
    pub(crate) async fn start(programs: &Programs) -> anyhow::Result<Fleet> {
        let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
        let root = directory.path();
        let (control_plane, client) = start_control_plane(programs, root).await?;
        let agent = start_agent(programs, root, &client, HOST).await?;
        online(&client, HOST).await?;

        let join = join_string(&client, JoinKind::Gateway, "bench", 1).await?;
        enrollment::join(&root.join("gateway/gateway"), &join, "").await?;
        let mcp = free_address()?;
        let mut gateway = Program::start(
            &programs.muster,
            &["gateway", "run"],
            &[
                ("MUSTER_DATA_DIR", text(&root.join("gateway"))?),
                ("MUSTER_MCP_LISTEN", &mcp.to_string()),
            ],
            &root.join("gateway.log"),
        )?;
        reachable(&mut gateway, mcp, &root.join("gateway.log")).await?;
        let script_token = token(&client, PrincipalKind::Automation).await?;
        let ai_token = token(&client, PrincipalKind::Ai).await?;
        Ok(Fleet {
            agent,
            gateway,
            control_plane,
            client,
            mcp,
            script_token,
            ai_token,
            _directory: directory,
        })
    }

    /// Measures the CPU of control plane and agent from now on.
    pub(crate) fn meter(&self) -> Meter {
        Meter::start(&self.control_plane, &self.agent)
    }

    /// A directory of this fleet.
    pub(crate) fn directory(&self) -> &Path {
        self._directory.path()
    }
}

/// Starts a control plane in `root` and connects to it as its operator.
pub(crate) async fn start_control_plane(
    programs: &Programs,
    root: &Path,
) -> anyhow::Result<(Program, Client)> {
    start_control_plane_at(programs, root, free_address()?).await
}

/// The same at an address, as one that has stopped and starts again there.
pub(crate) async fn start_control_plane_at(
    programs: &Programs,
    root: &Path,
    address: SocketAddr,
) -> anyhow::Result<(Program, Client)> {
    let data = root.join("control-plane");
    fs::create_dir_all(&data)?;
    let log = root.join("control-plane.log");
    let mut program = Program::start(
        &programs.muster,
        &["control-plane"],
        &[
            ("MUSTER_DATA_DIR", text(&data)?),
            ("MUSTER_LISTEN", &address.to_string()),
        ],
        &log,
    )?;
    // It listens before it has an operator's certificate to hand out.
    let started = Instant::now();
    loop {
        match Client::from_directory(&data.join("operator")).await {
            Ok(client) => return Ok((program, client)),
            Err(error) if program.is_over() || started.elapsed() > PATIENCE => {
                bail!("the control plane does not answer: {error}\n{}", read(&log));
            }
            Err(_) => time::sleep(POLL).await,
        }
    }
}

/// Joins a host and starts its agent.
pub(crate) async fn start_agent(
    programs: &Programs,
    root: &Path,
    client: &Client,
    name: &str,
) -> anyhow::Result<Program> {
    let data = root.join(name);
    fs::create_dir_all(&data)?;
    let request = join_request(JoinKind::Host, name, 1);
    let answer = client.enrollment().create_join_token(request).await?;
    let variables = [
        ("MUSTER_DATA_DIR", text(&data)?),
        ("MUSTER_JOIN", &answer.into_inner().join_string),
    ];
    let log = root.join(format!("{name}.log"));
    Program::start(&programs.agent, &["join"], &variables, &log)?
        .finish()
        .with_context(|| format!("{name} does not join:\n{}", read(&log)))?;
    run_agent(programs, root, name)
}

/// Starts the agent of a host that has joined.
pub(crate) fn run_agent(programs: &Programs, root: &Path, name: &str) -> anyhow::Result<Program> {
    let data = root.join(name);
    Program::start(
        &programs.agent,
        &["run"],
        &[
            ("MUSTER_DATA_DIR", text(&data)?),
            // Output is measured whole, on a disk that is nearly full too.
            ("MUSTER_SPOOL_FREE", "0"),
        ],
        &root.join(format!("{name}.log")),
    )
}

/// A join string.
pub(crate) async fn join_string(
    client: &Client,
    kind: JoinKind,
    name: &str,
    uses: i32,
) -> anyhow::Result<JoinString> {
    let request = join_request(kind, name, uses);
    let answer = client.enrollment().create_join_token(request).await?;
    Ok(answer.into_inner().join_string.parse()?)
}

fn join_request(kind: JoinKind, name: &str, uses: i32) -> CreateJoinTokenRequest {
    CreateJoinTokenRequest {
        kind: kind.into(),
        name: name.to_owned(),
        max_uses: uses,
        ..CreateJoinTokenRequest::default()
    }
}

/// Waits until a host is online.
pub(crate) async fn online(client: &Client, name: &str) -> anyhow::Result<()> {
    let is_online = await_presence(client, name, |presence| presence == Presence::Online).await;
    ensure!(is_online, "{name} does not come online");
    Ok(())
}

/// Waits until a host is online no more.
pub(crate) async fn away(client: &Client, name: &str) -> anyhow::Result<()> {
    let is_away = await_presence(client, name, |presence| presence != Presence::Online).await;
    ensure!(is_away, "{name} stays online without an agent");
    Ok(())
}

async fn await_presence(client: &Client, name: &str, wanted: impl Fn(Presence) -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let host = name.to_owned();
        let answer = client.hosts().get_host(GetHostRequest { host }).await;
        let host = answer.ok().and_then(|answer| answer.into_inner().host);
        if host.is_some_and(|host| wanted(host.presence())) {
            return true;
        }
        time::sleep(POLL).await;
    }
    false
}

async fn reachable(program: &mut Program, address: SocketAddr, log: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    while !program.is_over() && started.elapsed() < PATIENCE {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        time::sleep(POLL).await;
    }
    bail!("nobody listens on {address}:\n{}", read(log))
}

/// A request to run a program on hosts.
pub(crate) fn command(selector: &str, argv: &[&str]) -> CreateJobRequest {
    CreateJobRequest {
        selector: selector.to_owned(),
        action: Some(Action {
            kind: Some(Kind::Command(Command {
                argv: argv.iter().map(|word| (*word).to_owned()).collect(),
                ..Command::default()
            })),
        }),
        ..CreateJobRequest::default()
    }
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .context("the temporary directory has no name in UTF-8")
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

async fn token(client: &Client, kind: PrincipalKind) -> anyhow::Result<String> {
    let request = CreateTokenRequest {
        kind: kind.into(),
        name: "bench".to_owned(),
        ..CreateTokenRequest::default()
    };
    let token = client.tokens().create_token(request).await?.into_inner();
    Ok(token.bearer_token)
}
