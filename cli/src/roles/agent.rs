//! `muster agent …`: this machine as a host.

mod status;

use muster_agent::{
    Agent, AgentError, Attempt, Config, InstallArgs, InstallError, Join, SERVICE, UninstallArgs,
};
use muster_client::identity::{Identity, IdentityError};
use muster_runtime::{config::DataDir, service::Layout};

use super::{not_joined, path, service, stop_on_signal};
use crate::{
    audit,
    failure::{Failure, exit},
    screen::{self, clean, say},
};

#[derive(clap::Subcommand, Debug)]
pub(crate) enum AgentCommand {
    /// Join this machine to a control plane, with a join string from `muster token create host`
    #[command(after_help = "Examples:
  MUSTER_JOIN='mst_join_…' muster agent join
  muster agent join --join-file /run/secrets/join
  ssh control 'muster token create host --json' | jq -r .join_string | muster agent join")]
    Join(Join),
    /// Serve this machine until told to stop
    Run(Config),
    /// Run a command here as a task would be, to see what a mode lets it do
    #[command(after_help = "Examples:
  muster agent try --mode read-only -- sh -c 'echo x > /etc/motd'
  sudo muster agent try --mode edit --user deploy -- make test

The program's exit code is this command's; 77 is also that of a refusal, which says why.")]
    Try(Attempt),
    /// Make it a service of systemd, which starts with this machine; again, to upgrade it
    #[command(after_help = "Examples:
  sudo muster agent install --join-file /run/secrets/join
  ssh control 'muster token create host --json' | jq -r .join_string | sudo muster agent install
  muster agent install --user

A machine that has joined already takes its identity, journal and output along. The program is copied to where \
only root can change it, unless it stands in such a place.")]
    Install(InstallArgs),
    /// Take the service away
    Uninstall(UninstallArgs),
    /// Print the heads of the audit log that this machine keeps: lines for `muster audit verify --head`
    Heads,
    /// Show who this machine is to its control plane, and how its agent is
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(command: AgentCommand, data_dir: &DataDir) -> Result<u8, Failure> {
    match command {
        AgentCommand::Join(settings) => join(settings, Config::new(path(data_dir)?)).await?,
        AgentCommand::Run(config) => {
            let stop = stop_on_signal()?;
            let data_dir = path(data_dir)?;
            let agent = Agent::open(Config { data_dir, ..config })
                .await
                .map_err(failure)?;
            muster_agent::serve(agent, stop).await.map_err(failure)?;
        }
        AgentCommand::Try(wanted) => {
            let data_dir = path(data_dir)?;
            let tried =
                tokio::task::spawn_blocking(move || muster_agent::attempt(data_dir, wanted));
            let tried = tried
                .await
                .map_err(|error| Failure::internal(error.to_string()))?;
            return tried.map_err(|error| Failure::new(exit::NOT_ALLOWED, error.to_string()));
        }
        AgentCommand::Install(args) => {
            let done = muster_agent::install(&SERVICE, &args, data_dir).await;
            screen::print(&done.map_err(not_installed)?.to_string())?;
        }
        AgentCommand::Uninstall(args) => {
            let done = muster_agent::uninstall(&SERVICE, &args, data_dir).await;
            screen::print(&done.map_err(not_installed)?.to_string())?;
        }
        AgentCommand::Heads => {
            let layout = Layout::installed(&SERVICE, data_dir)
                .map_err(|error| Failure::usage(error.to_string()))?;
            audit::print_heads(&layout.data_dir.join("agent"))?;
        }
        AgentCommand::Status { json } => status::show(data_dir, json).await?,
    }
    Ok(0)
}

fn not_installed(error: InstallError) -> Failure {
    let next = error.next();
    let failure = match error {
        InstallError::Enrollment(error) => return not_joined(error),
        InstallError::Service(error) => return service::failure(error),
        InstallError::NotJoined(_) => Failure::new(exit::NOT_ALLOWED, error.to_string()),
        InstallError::TasksRun(_) => Failure::new(exit::UNAVAILABLE, error.to_string()),
        _ => Failure::internal(error.to_string()),
    };
    Failure { next, ..failure }
}

pub(super) fn failure(error: AgentError) -> Failure {
    match error {
        AgentError::Identity(IdentityError::Missing(_)) => {
            Failure::new(exit::NOT_ALLOWED, error.to_string())
                .next("join first: MUSTER_JOIN=… muster agent join")
        }
        error if error.is_final() => Failure::new(exit::NOT_ALLOWED, error.to_string()),
        _ => Failure::new(exit::UNAVAILABLE, error.to_string()),
    }
}

async fn join(settings: Join, config: Config) -> Result<(), Failure> {
    if let Ok(identity) = Identity::load(&config.directory()) {
        return Err(Failure::usage(format!(
            "this machine has joined {} already, as {}",
            identity.address(),
            clean(identity.name())
        ))
        .next("serve it with `muster agent run`, or choose another --data-dir"));
    }
    let join_string = settings
        .join_string()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let name = settings.name.unwrap_or_default();
    let identity = muster_agent::join(&config, &join_string, &name)
        .await
        .map_err(not_joined)?;
    screen::print(&format!(
        "joined {} as {} ({})\n",
        identity.address(),
        clean(identity.name()),
        identity.host_id().unwrap_or_default()
    ))?;
    say("serve it with `muster agent run`, or make it a service with `muster agent install`");
    Ok(())
}
