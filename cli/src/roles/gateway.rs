//! `muster gateway …`: MCP over HTTP as a role of its own.

use std::path::{Path, PathBuf};

use muster_agent::Join;
use muster_mcp_gateway::{Config, Gateway, GatewayError, PATH};
use muster_runtime::{
    config::DataDir,
    service::{Notifier, Service},
};

use super::{
    bind, listen, local_address, not_joined, path,
    service::{self, ServiceCommand},
    stop_on_signal,
};
use crate::{
    failure::{Failure, exit},
    screen::{self, say},
};

/// The gateway as a service.
pub(super) const SERVICE: Service = Service {
    name: "muster-gateway",
    command: "muster gateway",
    arguments: &["gateway", "run"],
    template: include_str!("../../../deploy/systemd/muster-gateway.service"),
    account: Some("muster-gateway"),
    directories: &["gateway"],
    needs_identity: true,
};

#[derive(clap::Subcommand, Debug)]
pub(crate) enum GatewayCommand {
    /// Join as a gateway, with a join string from `muster token create gateway`
    Join {
        /// File that holds the join string; without it, MUSTER_JOIN or standard input does
        #[arg(long, value_name = "FILE")]
        join_file: Option<PathBuf>,
    },
    /// Serve MCP over HTTP until told to stop
    Run(Config),
    #[command(flatten)]
    Service(ServiceCommand),
}

pub(crate) async fn run(command: GatewayCommand, data_dir: &DataDir) -> Result<u8, Failure> {
    match command {
        GatewayCommand::Join { join_file } => {
            let data_dir = path(data_dir)?;
            if muster_mcp_gateway::has_joined(&data_dir) {
                return Err(Failure::usage("this gateway has joined already")
                    .next("serve it with `muster gateway run`, or choose another --data-dir"));
            }
            let source = Join {
                join_file,
                name: None,
            };
            let join_string = source
                .join_string()
                .map_err(|error| Failure::usage(error.to_string()))?;
            muster_mcp_gateway::join(&data_dir, &join_string)
                .await
                .map_err(failure)?;
            screen::print(&format!("joined {}\n", join_string.address()))?;
            say("serve it with `muster gateway run`");
        }
        GatewayCommand::Run(config) => serve(config, &path(data_dir)?).await?,
        GatewayCommand::Service(command) => {
            return service::run(command, &SERVICE, data_dir).await;
        }
    }
    Ok(0)
}

async fn serve(config: Config, data_dir: &Path) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let socket = bind(config.mcp_listen, "--mcp-listen")?;
    let address = local_address(&socket)?;
    let gateway = Gateway::open(config, data_dir).await.map_err(failure)?;
    let listener = listen(socket, "--mcp-listen")?;
    say(&format!("MCP over HTTP at http://{address}{PATH}"));
    let serving = gateway.serve(listener, stop.clone());
    let served = Notifier::from_environment()
        .serve(
            &format!("MCP over HTTP at http://{address}{PATH}"),
            &stop,
            serving,
        )
        .await;
    served.map_err(failure)
}

pub(super) fn failure(error: GatewayError) -> Failure {
    match error {
        GatewayError::Enrollment(error) => not_joined(error),
        GatewayError::Identity(_) => Failure::new(exit::NOT_ALLOWED, error.to_string()),
        _ => Failure::new(exit::UNAVAILABLE, error.to_string()),
    }
}
