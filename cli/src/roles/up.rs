//! `muster up`: a whole fleet of one in one process.

mod welcome;

use std::{
    collections::BTreeMap, fs, io, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration,
};

use muster_agent::Agent;
use muster_client::{Client, identity::Identity, join::JoinString};
use muster_control_plane::{JoinKind, Server};
use muster_mcp_gateway::Gateway;
use muster_proto::v1::{WatchHostsRequest, host::Presence};
use muster_runtime::shutdown;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    agent, bind, control_plane, gateway, listen, local_address, not_joined, stop_on_signal,
};
use crate::{failure::Failure, screen};
use welcome::Welcome;

/// Principal of AI clients that come over HTTP with the token of this machine.
const AI_NAME: &str = "local";

/// How long to wait for this machine's agent before saying what there is.
const ONLINE_LIMIT: Duration = Duration::from_secs(10);

#[derive(clap::Args, Debug)]
#[command(
    after_help = "The first start makes an authority, an operator's certificate for you, this machine's identity \
as a host and a token for AI clients, all in the data directory; later starts find them again. For machines \
elsewhere, listen wider: muster up --listen 0.0.0.0:8766"
)]
pub(crate) struct Up {
    /// Run nothing on this machine
    #[arg(long, env = "MUSTER_NO_AGENT")]
    no_agent: bool,
    #[command(flatten)]
    control_plane: muster_control_plane::Config,
    #[command(flatten)]
    gateway: muster_mcp_gateway::Config,
    #[command(flatten)]
    agent: muster_agent::Config,
}

impl Up {
    pub(crate) async fn run(self, data_dir: std::path::PathBuf) -> Result<u8, Failure> {
        let stop = stop_on_signal()?;
        private_directory(&data_dir)?;
        let mcp_socket = bind(self.gateway.mcp_listen, "--mcp-listen")?;
        let mcp_address = local_address(&mcp_socket)?;
        let opened = control_plane::open(self.control_plane, &data_dir).await?;
        let token = data_dir.join("mcp-token");
        let server = opened.server;
        server
            .ensure_ai_token(AI_NAME, &token)
            .await
            .map_err(control_plane::failure)?;
        let operator = Identity::load(&data_dir.join("operator"))
            .map_err(|error| Failure::internal(error.to_string()))?;
        let gateway_join = join_string(&server, JoinKind::Gateway, &data_dir, &operator).await?;
        let agent_join = match self.no_agent {
            true => None,
            false => join_string(&server, JoinKind::Host, &data_dir, &operator).await?,
        };

        let mut roles = Roles::default();
        let listener = opened.listener;
        roles.control_plane = Some(Role::start(|stop| async move {
            server
                .serve(listener, stop)
                .await
                .map_err(control_plane::failure)
        }));
        let gateway = open_gateway(self.gateway, gateway_join, &data_dir).await?;
        let mcp_listener = listen(mcp_socket, "--mcp-listen")?;
        roles.gateway = Some(Role::start(|stop| async move {
            gateway
                .serve(mcp_listener, stop)
                .await
                .map_err(gateway::failure)
        }));
        let (mut host, mut permits) = (None, None);
        if !self.no_agent {
            let config = muster_agent::Config {
                data_dir: data_dir.clone(),
                control_plane: Some(operator.address().to_owned()),
                ..self.agent
            };
            let agent = open_agent(config, agent_join).await?;
            let host_id = agent.host_id().to_owned();
            roles.agent = Some(Role::start(|stop| async move {
                agent.run(stop).await.map_err(agent::failure)
            }));
            host = online(&data_dir.join("operator"), &host_id).await;
            let answer = muster_agent::ask(&data_dir.join("agent")).await;
            permits = answer.ok().flatten().and_then(|answer| answer.permits);
        }
        screen::print(
            &Welcome {
                data_dir: &data_dir,
                token: &token,
                grpc: opened.address,
                mcp: mcp_address,
                host,
                permits,
                no_agent: self.no_agent,
            }
            .render(),
        )?;
        roles.serve(stop).await?;
        Ok(0)
    }
}

/// Opens the gateway of this machine, which joins first if it has not.
async fn open_gateway(
    config: muster_mcp_gateway::Config,
    join: Option<JoinString>,
    data_dir: &Path,
) -> Result<Gateway, Failure> {
    if let Some(join) = join {
        muster_mcp_gateway::join(data_dir, &join)
            .await
            .map_err(gateway::failure)?;
    }
    Gateway::open(config, data_dir)
        .await
        .map_err(gateway::failure)
}

/// Opens the agent of this machine, which joins first if it has not.
async fn open_agent(
    config: muster_agent::Config,
    join: Option<JoinString>,
) -> Result<Agent, Failure> {
    if let Some(join) = join {
        muster_agent::join(&config, &join, "")
            .await
            .map_err(not_joined)?;
    }
    Agent::open(config).await.map_err(agent::failure)
}

/// Roles that run, each with its own stop.
#[derive(Default)]
struct Roles {
    control_plane: Option<Role>,
    gateway: Option<Role>,
    agent: Option<Role>,
}

struct Role {
    stop: CancellationToken,
    running: JoinHandle<Result<(), Failure>>,
}

impl Role {
    fn start<F>(serve: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let running = tokio::spawn(serve(stop.clone()));
        Self { stop, running }
    }

    async fn ended(role: &mut Option<Self>) -> Result<(), Failure> {
        let Some(running) = role.as_mut().map(|role| &mut role.running) else {
            return std::future::pending().await;
        };
        let ended = running.await;
        *role = None;
        ended.unwrap_or_else(|error| Err(Failure::internal(error.to_string())))
    }
}

impl Roles {
    /// Serves until told to stop, or until a role ends by itself.
    async fn serve(mut self, stop: CancellationToken) -> Result<(), Failure> {
        let ended = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                ended = Role::ended(&mut self.control_plane) => break ended,
                ended = Role::ended(&mut self.gateway) => break ended,
                // The control plane does not want this host any more; that is no reason for it to end.
                ended = Role::ended(&mut self.agent) => if let Err(failure) = ended {
                    warn!("this machine is no host any more: {}", failure.message);
                },
            }
        };
        // From the inside out: the agent reports its last results, and the gateway its callers' answers, to a
        // control plane that still listens.
        for (what, mut role) in [
            ("the agent", self.agent),
            ("the gateway", self.gateway),
            ("the control plane", self.control_plane),
        ] {
            if let Some(running) = &role {
                running.stop.cancel();
                shutdown::finish(what, Role::ended(&mut role)).await;
            }
        }
        ended
    }
}

/// A join string for a role that has no identity of this control plane yet.
async fn join_string(
    server: &Server,
    kind: JoinKind,
    data_dir: &Path,
    operator: &Identity,
) -> Result<Option<JoinString>, Failure> {
    let (name, directory) = match kind {
        JoinKind::Gateway => ("local", data_dir.join("gateway")),
        JoinKind::Host | JoinKind::Operator => ("", data_dir.join("agent")),
    };
    if let Ok(identity) = Identity::load(&directory) {
        if !server.recognizes(&identity) {
            return Err(Failure::usage(format!(
                "{} holds an identity of another control plane",
                directory.display()
            ))
            .next("move it away to join anew, or choose another --data-dir"));
        }
        if identity.address() != operator.address() {
            // It listens elsewhere than last time.
            let moved = identity.at_address(operator.address());
            moved
                .store()
                .map_err(|error| Failure::internal(error.to_string()))?;
        }
        return Ok(None);
    }
    let text = server
        .create_join_string(kind, name, BTreeMap::new())
        .await
        .map_err(control_plane::failure)?;
    let join = text.parse::<JoinString>();
    join.map(Some)
        .map_err(|error| Failure::internal(error.to_string()))
}

/// The name of this machine's host, once it is online; `None` if that takes too long.
async fn online(operator: &Path, host_id: &str) -> Option<String> {
    let watch = async {
        let client = Client::from_directory(operator).await.ok()?;
        let request = WatchHostsRequest {
            selector: host_id.to_owned(),
        };
        let mut changes = client.hosts().watch_hosts(request).await.ok()?.into_inner();
        while let Ok(Some(change)) = changes.message().await {
            for host in change.hosts {
                if host.presence() == Presence::Online {
                    return Some(host.name);
                }
            }
        }
        None
    };
    tokio::time::timeout(ONLINE_LIMIT, watch).await.ok()?
}

fn private_directory(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error: io::Error| {
        Failure::file(path, &error).next("choose a directory that you may write to with --data-dir")
    })
}
