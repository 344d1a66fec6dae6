//! A bare relay: a yardstick to hold Muster against. **Its code is frozen. It must not be tuned**, neither made faster nor
//! slower, or no figure that was ever measured beside it means anything any more.
//!
//! It is the least that has Muster's shape: a server and an agent that dialled in, each a process of its own with one
//! thread, joined by tonic over Muster's TLS, speaking the messages of `RunJob`, `AttachTask`, `Attach` and `Report`. The
//! caller is Muster's own client. A command becomes an offer, the agent starts the program, and its output and end go
//! back. Nothing is stored, judged, signed, sealed, confined or written down, and nothing survives an error.

mod agent;
mod keys;
mod server;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use muster_client::Client;
use muster_proto::v1::RunJobRequest;
use tempfile::TempDir;
use tokio::{runtime::Builder, time};

use crate::{fleet::command, process::Program};

/// The name of the relay's host.
pub(crate) const HOST: &str = "relay-1";

/// Messages that may wait for the network; a sender of more waits with them.
const QUEUE: usize = 64;

/// How long the relay may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The part that a process of the relay plays.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Takes in an agent and callers
    Server {
        /// Folder of the server's identity
        directory: PathBuf,
    },
    /// Dials in and starts programs
    Agent {
        /// Folder of the agent's identity
        directory: PathBuf,
    },
}

impl Role {
    /// Plays it until the process is stopped.
    pub(crate) fn play(self) -> anyhow::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        match self {
            Role::Server { directory } => runtime.block_on(server::run(&directory)),
            Role::Agent { directory } => runtime.block_on(agent::run(&directory)),
        }
    }
}

/// A relay that runs, and a caller. Dropping it stops the processes.
pub(crate) struct Relay {
    pub(crate) agent: Program,
    pub(crate) server: Program,
    pub(crate) client: Client,
    _directory: TempDir,
}

impl Relay {
    /// Starts both processes and waits until a program was run.
    pub(crate) async fn start() -> anyhow::Result<Relay> {
        let directory = tempfile::Builder::new().prefix("muster-relay-").tempdir()?;
        let root = directory.path();
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        keys::make(root, &address.to_string())?;
        let server = process(root, "server")?;
        let operator = root.join("operator");
        let client = repeated(|| Client::from_directory(&operator)).await?;
        let agent = process(root, "agent")?;
        let request = RunJobRequest {
            create: Some(command(HOST, &["true"])),
        };
        repeated(|| {
            let (mut jobs, request) = (client.jobs(), request.clone());
            async move { jobs.run_job(request).await }
        })
        .await?;
        Ok(Relay {
            agent,
            server,
            client,
            _directory: directory,
        })
    }
}

fn process(root: &Path, role: &str) -> anyhow::Result<Program> {
    let directory = root.join(role);
    let directory = directory.to_str().context("a path is not in UTF-8")?;
    let log = root.join(format!("{role}.log"));
    let program = std::env::current_exe()?;
    Program::start(&program, &["relay", role, directory], &[], &log)
}

/// Tries until it works.
async fn repeated<T, E: std::error::Error, Attempt>(
    attempt: impl Fn() -> Attempt,
) -> anyhow::Result<T>
where
    Attempt: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => ensure!(
                started.elapsed() < PATIENCE,
                "the relay does not come up: {error}"
            ),
        }
        time::sleep(Duration::from_millis(1)).await;
    }
}
