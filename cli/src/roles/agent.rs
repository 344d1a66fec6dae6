//! `muster agent …`: this machine as a host.

use std::{path::PathBuf, time::SystemTime};

use muster_agent::{Agent, AgentError, Config, Join};
use muster_client::identity::{Identity, IdentityError};
use serde_json::json;

use super::{not_joined, stop_on_signal};
use crate::{
    failure::{Failure, exit},
    screen::{self, Fields, clean, say},
    time,
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
    /// Show who this machine is to its control plane
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(command: AgentCommand, data_dir: PathBuf) -> Result<u8, Failure> {
    match command {
        AgentCommand::Join(settings) => join(settings, Config::new(data_dir)).await?,
        AgentCommand::Run(config) => {
            let stop = stop_on_signal()?;
            let agent = Agent::open(Config { data_dir, ..config })
                .await
                .map_err(failure)?;
            agent.run(stop).await.map_err(failure)?;
        }
        AgentCommand::Status { json } => status(&Config::new(data_dir).directory(), json)?,
    }
    Ok(0)
}

pub(super) fn failure(error: AgentError) -> Failure {
    match error {
        AgentError::Identity(IdentityError::Missing(_)) => {
            Failure::new(exit::NOT_ALLOWED, error.to_string())
                .next("join first: MUSTER_JOIN=… muster agent join")
        }
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
    say("serve it with `muster agent run`");
    Ok(())
}

fn status(directory: &std::path::Path, json: bool) -> Result<(), Failure> {
    let identity = Identity::load(directory).map_err(|error| {
        Failure::new(exit::NOT_ALLOWED, error.to_string())
            .next("join first: MUSTER_JOIN=… muster agent join")
    })?;
    let expires = prost_types::Timestamp::from(identity.expires());
    if json {
        screen::print_json(&json!({"agent": {
            "name": identity.name(),
            "host_id": identity.host_id(),
            "control_plane": identity.address(),
            "spiffe_id": identity.spiffe_id().to_string(),
            "certificate_expire_time": time::rfc3339(Some(&expires)),
            "directory": directory,
        }}))?;
        return Ok(());
    }
    let expired = identity.expires() <= SystemTime::now();
    let until = match expired {
        true => format!(
            "{} (expired: `muster agent run` gets a new one)",
            time::local(Some(&expires))
        ),
        false => format!(
            "{} ({})",
            time::local(Some(&expires)),
            time::until(Some(&expires))
        ),
    };
    let mut fields = Fields::new();
    fields
        .add("name", identity.name())
        .add("id", identity.host_id().unwrap_or_default())
        .add("control plane", identity.address())
        .add("certificate until", until)
        .add("directory", directory.display().to_string());
    screen::print(&fields.render())?;
    Ok(())
}
