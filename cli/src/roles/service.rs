//! Roles with a system user of their own as services: `install`, `uninstall`, `status`.

use std::{path::PathBuf, time::Duration};

use muster_client::{Client, identity::Identity};
use muster_proto::v1::{ListHostsRequest, host::Presence};
use muster_runtime::{
    config::DataDir,
    service::{Ground, Installation, Layout, Manager, Plan, Removal, Scope, Service, ServiceError},
};
use serde_json::{Value, json};

use super::path;
use crate::{
    failure::{Failure, exit},
    screen::{self, Fields},
    time,
};

/// How long a control plane may take to say what hosts it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Hosts that are counted.
const HOSTS_COUNTED: i32 = 1_000;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum ServiceCommand {
    /// Make it a service of systemd, with a system user of its own; again, to upgrade it
    #[command(
        after_help = "State and settings are in /var/lib/muster; the program is copied to where only \
root can change it, unless it stands in such a place."
    )]
    Install {
        /// Print what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Take the service away
    Uninstall {
        /// Remove its state and its system user too
        #[arg(long)]
        purge: bool,
        /// Print what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how it is
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(
    command: ServiceCommand,
    service: &'static Service,
    data_dir: &DataDir,
) -> Result<u8, Failure> {
    match command {
        ServiceCommand::Install { dry_run } => install(service, data_dir, dry_run).await?,
        ServiceCommand::Uninstall { purge, dry_run } => uninstall(service, purge, dry_run).await?,
        ServiceCommand::Status { json } => status(service, data_dir, json).await?,
    }
    Ok(0)
}

/// Why a service is not as somebody wants it.
pub(super) fn failure(error: ServiceError) -> Failure {
    let code = match error {
        ServiceError::NotRoot { .. } | ServiceError::Foreign(_) => exit::NOT_ALLOWED,
        ServiceError::NoSystemd { .. }
        | ServiceError::NoUserManager(_)
        | ServiceError::Command { .. } => exit::UNAVAILABLE,
        _ => exit::USAGE,
    };
    let next = error.next();
    Failure::new(code, error.to_string()).next(next)
}

async fn install(
    service: &'static Service,
    data_dir: &DataDir,
    dry_run: bool,
) -> Result<(), Failure> {
    let layout = Layout::system();
    let program = std::env::current_exe()
        .map_err(|error| Failure::internal(format!("this program is nowhere: {error}")))?;
    let accounts: Vec<&str> = service.account.into_iter().collect();
    let takes_along = joined_elsewhere(service, &layout, data_dir);
    let joins = service.needs_identity && takes_along.is_none();
    if joins && !dry_run && !layout.data_dir.join(service.directories[0]).exists() {
        return Err(Failure::new(
            exit::NOT_ALLOWED,
            "this machine has not joined a control plane as a gateway",
        )
        .next(
            "join first: MUSTER_JOIN=… muster gateway join, or name where you did with --data-dir",
        ));
    }
    let installation = Installation {
        service,
        layout: &layout,
        program: &program,
        run_as: None,
        takes_along,
        command: format!("{} install", service.command),
    };
    let ground = Ground::look(service, &layout, &program, &accounts);
    let plan = installation.plan(&ground).map_err(failure)?;
    if dry_run {
        return Ok(screen::print(&plan.to_string())?);
    }
    let done = steps(&plan);
    carry_out(plan).await?;
    let manager = Manager(Scope::System);
    let standing = manager.standing(service.name).unwrap_or_default();
    screen::print(&format!(
        "{} is installed and runs; {}\n{done}",
        service.name, standing.status
    ))?;
    let settings = layout.data_dir.join("config.toml");
    let mut notes = Fields::new();
    notes
        .add("state", layout.data_dir.display().to_string())
        .add(
            "settings",
            format!(
                "{}, then systemctl restart {}",
                settings.display(),
                service.name
            ),
        );
    if service.directories.contains(&"operator") {
        notes.add(
            "operate",
            format!(
                "as root: muster --data-dir {} host list",
                layout.data_dir.display()
            ),
        );
    }
    notes
        .add(
            "look",
            format!(
                "{} status, {}",
                service.command,
                manager.journal(service.name)
            ),
        )
        .add(
            "upgrade",
            format!("{} install, with the new program", service.command),
        )
        .add("undo", format!("{} uninstall", service.command));
    Ok(screen::print(&notes.render())?)
}

/// The identity of a gateway that has joined in another directory. A control plane is not moved: it may be part
/// of a fleet of one that stays.
fn joined_elsewhere(
    service: &Service,
    layout: &Layout,
    data_dir: &DataDir,
) -> Option<(PathBuf, PathBuf)> {
    let directory = service
        .needs_identity
        .then_some(service.directories.first()?)?;
    let (from, to) = (
        data_dir.path().ok()?.join(directory),
        layout.data_dir.join(directory),
    );
    let joined = from != to && Identity::load(&from).is_ok() && Identity::load(&to).is_err();
    joined.then_some((from, to))
}

async fn uninstall(service: &'static Service, purge: bool, dry_run: bool) -> Result<(), Failure> {
    let layout = Layout::system();
    let removal = Removal {
        service,
        layout: &layout,
        purge,
        end: false,
        groups: Vec::new(),
        command: format!("{} uninstall", service.command),
    };
    let plan = removal.plan(&Ground::look(service, &layout, &layout.data_dir, &[]));
    if dry_run {
        return Ok(screen::print(&plan.to_string())?);
    }
    let done = steps(&plan);
    let headline = match done.is_empty() {
        true => format!("{} is not installed here\n", service.name),
        false => format!("{} is not installed any more\n", service.name),
    };
    carry_out(plan).await?;
    screen::print(&format!("{headline}{done}"))?;
    if !purge {
        let kept: Vec<String> = service
            .directories
            .iter()
            .map(|name| layout.data_dir.join(name))
            .filter(|path| path.exists())
            .map(|path| path.display().to_string())
            .collect();
        let mut notes = Fields::new();
        notes.add("kept", kept.join(", "));
        screen::print(&notes.render())?;
    }
    Ok(())
}

fn steps(plan: &Plan) -> String {
    plan.steps().map(|step| format!("  {step}\n")).collect()
}

async fn carry_out(plan: Plan) -> Result<(), Failure> {
    tokio::task::spawn_blocking(|| plan.carry_out())
        .await
        .map_err(|error| Failure::internal(error.to_string()))?
        .map_err(failure)
}

async fn status(service: &Service, data_dir: &DataDir, json: bool) -> Result<(), Failure> {
    // A system user's service is never a user's own; what else runs in a directory is a command in a shell.
    let layout = Layout::system();
    let directory = match data_dir.given() {
        None if layout.unit(service).exists() => layout.data_dir,
        _ => path(data_dir)?,
    };
    let standing = Manager(Scope::System).standing(service.name);
    let serves_operators = service.directories.contains(&"operator");
    let answer = match serves_operators {
        true => hosts(&directory.join("operator")).await,
        false => Ok(Value::Null),
    };
    if json {
        let name = service.name.trim_start_matches("muster-").replace('-', "_");
        let (hosts, error) = match &answer {
            Ok(hosts) => (hosts.clone(), None),
            Err(failure) => (Value::Null, Some(failure.message.clone())),
        };
        return Ok(screen::print_json(&json!({name: {
            "service": standing.as_ref().map(standing_json),
            "directory": directory,
            "hosts": hosts,
            "error": error,
        }}))?);
    }
    let mut fields = Fields::new();
    let described = standing
        .as_ref()
        .map_or("no systemd here".to_owned(), |standing| standing.describe());
    fields
        .add("service", described)
        .add(
            "says",
            standing.map(|standing| standing.status).unwrap_or_default(),
        )
        .add("directory", directory.display().to_string());
    if serves_operators {
        if let Ok(operator) = Identity::load(&directory.join("operator")) {
            let expires = prost_types::Timestamp::from(operator.expires());
            fields
                .add("address", operator.address())
                .add("operator until", time::local(Some(&expires)));
        }
        match &answer {
            Ok(hosts) => fields.add(
                "hosts",
                format!("{}, {} online", hosts["known"], hosts["online"]),
            ),
            Err(failure) => fields.add("hosts", format!("unknown: {}", failure.message)),
        };
    }
    Ok(screen::print(&fields.render())?)
}

/// What is known of a unit, for JSON.
pub(super) fn standing_json(standing: &muster_runtime::service::Standing) -> Value {
    json!({
        "installed": standing.loaded,
        "active": standing.active,
        "sub": standing.sub,
        "enabled": standing.enabled,
        "status": standing.status,
        "restarts": standing.restarts,
        "result": standing.result,
        "process_id": standing.process_id,
    })
}

/// How many hosts there are, by the operator's own certificate: it shows that the control plane answers, too.
async fn hosts(operator: &std::path::Path) -> Result<Value, Failure> {
    let asked = async {
        let client = Client::from_directory(operator).await?;
        let request = ListHostsRequest {
            page_size: HOSTS_COUNTED,
            ..ListHostsRequest::default()
        };
        let answer = client.hosts().list_hosts(request).await?.into_inner();
        let online = answer
            .hosts
            .iter()
            .filter(|host| host.presence() == Presence::Online)
            .count();
        Ok(json!({
            "known": answer.hosts.len(),
            "online": online,
            "more": !answer.next_page_token.is_empty(),
        }))
    };
    tokio::time::timeout(ANSWER_LIMIT, asked)
        .await
        .unwrap_or_else(|_| {
            Err(Failure::new(
                exit::UNAVAILABLE,
                "the control plane does not answer",
            ))
        })
}

#[cfg(test)]
mod tests {
    use crate::roles::{control_plane, gateway};

    /// What is not in a unit, and what hardening needs.
    #[test]
    fn the_units_of_roles_without_tasks_are_closed() {
        for service in [&control_plane::SERVICE, &gateway::SERVICE] {
            for line in [
                "Type=notify",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "CapabilityBoundingSet=",
                "MemoryDenyWriteExecute=yes",
                "SystemCallFilter=@system-service",
                "UMask=0077",
            ] {
                let there = service.template.lines().any(|each| each == line);
                assert!(there, "{}: {line}", service.name);
            }
            let account = service.account.unwrap();
            assert!(service.template.contains(&format!("\nUser={account}\n")));
            let directories: Vec<String> = service
                .directories
                .iter()
                .map(|name| format!("muster/{name}"))
                .collect();
            let line = format!("\nStateDirectory={}\n", directories.join(" "));
            assert!(service.template.contains(&line), "{}", service.name);
        }
    }
}
