//! `muster control-plane`: the control plane as a role of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use muster_control_plane::{Config, Server, ServerError};
use muster_runtime::{
    config::DataDir,
    service::{Notifier, Service},
};
use tokio::net::TcpListener;

use super::{
    backup::{Backup, Restore},
    bind, listen, local_address, path,
    service::{self, ServiceCommand},
    stop_on_signal,
};
use crate::{
    failure::{Failure, exit},
    screen::say,
};

/// The control plane as a service.
pub(super) const SERVICE: Service = Service {
    name: "muster-control-plane",
    command: "muster control-plane",
    arguments: &["control-plane"],
    template: include_str!("../../../deploy/systemd/muster-control-plane.service"),
    account: Some("muster"),
    directories: &["control-plane", "operator"],
    needs_identity: false,
};

/// Serves without a command.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ControlPlane {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    pub(crate) command: Option<ControlPlaneCommand>,
}

#[derive(clap::Subcommand, Debug)]
pub(crate) enum ControlPlaneCommand {
    Backup(Backup),
    Restore(Restore),
    #[command(flatten)]
    Service(ServiceCommand),
}

impl ControlPlane {
    pub(crate) async fn run(self, data_dir: &DataDir) -> Result<u8, Failure> {
        match self.command {
            None => serve(self.config, path(data_dir)?).await,
            Some(ControlPlaneCommand::Backup(backup)) => backup.run(&path(data_dir)?).await,
            Some(ControlPlaneCommand::Restore(restore)) => restore.run(&path(data_dir)?).await,
            Some(ControlPlaneCommand::Service(command)) => {
                service::run(command, &SERVICE, data_dir).await
            }
        }
    }
}

async fn serve(config: Config, data_dir: PathBuf) -> Result<u8, Failure> {
    let stop = stop_on_signal()?;
    let opened = open(config, &data_dir).await?;
    say(&format!(
        "control plane at {}; operator certificate in {}",
        opened.address,
        data_dir.join("operator").display()
    ));
    let serving = opened.server.serve(opened.listener, stop.clone());
    let served = Notifier::from_environment()
        .serve(&format!("listening on {}", opened.address), &stop, serving)
        .await;
    served.map_err(failure)?;
    Ok(0)
}

/// A control plane that is ready to serve, with its operator's certificate.
pub(super) struct Opened {
    pub(super) server: Server,
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
}

/// Takes the port first: one that is taken is found before anything is made. Listens last: who can connect
/// finds everything ready.
pub(super) async fn open(config: Config, data_dir: &Path) -> Result<Opened, Failure> {
    config.check().map_err(Failure::usage)?;
    let socket = bind(config.listen, "--listen")?;
    let address = local_address(&socket)?;
    let config = Config {
        directory: data_dir.join("control-plane"),
        listen: address,
        ..config
    };
    let server = Server::open(config).await.map_err(failure)?;
    server
        .bootstrap_operator(&operator_name(), &data_dir.join("operator"))
        .await
        .map_err(failure)?;
    Ok(Opened {
        server,
        listener: listen(socket, "--listen")?,
        address,
    })
}

pub(super) fn failure(error: ServerError) -> Failure {
    Failure::new(exit::UNAVAILABLE, error.to_string())
}

/// The user's login name, as far as a principal can have it.
fn operator_name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    let login = match user {
        Ok(Some(user)) => user.name,
        // No account, as in some containers.
        _ => std::env::var("USER").unwrap_or_default(),
    };
    principal_name(&login)
}

fn principal_name(login: &str) -> String {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let name: String = login
        .to_lowercase()
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(63)
        .collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "operator" } else { name }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_becomes_a_principal() {
        for (login, name) in [
            ("ada", "ada"),
            ("Ada.Lovelace", "ada.lovelace"),
            ("DOMAIN\\ada_l", "domain-ada-l"),
            ("_apt", "apt"),
            ("", "operator"),
        ] {
            assert_eq!(principal_name(login), name);
        }
    }
}
