//! `muster host …`: the inventory.

mod instruction;
mod view;
mod watch;

use std::collections::HashMap;

use muster_client::Client;
use muster_proto::v1::{
    GetHostRequest, Host, ListHostsRequest, LockHostRequest, Mode, RemoveHostRequest,
    SetHostModeRequest, UnlockHostRequest, UpdateHostRequest,
};
use prost_types::FieldMask;
use serde_json::json;

use crate::{
    failure::Failure,
    json,
    mode::host_mode,
    operator::Operator,
    screen::{self, clean, say},
};

/// Hosts in one answer.
const PAGE: i32 = 500;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum HostCommand {
    /// List hosts
    #[command(after_help = "Examples:
  muster host list
  muster host list 'env=prod,role in (web,api)'
  muster host list --query postgres")]
    List {
        /// all, names or ids (web-1,web-2), or requirements (env=prod,!retired)
        #[arg(default_value = "all", hide_default_value = true)]
        selector: String,
        /// Keep hosts whose name, labels, facts or instruction contain this text
        #[arg(long, short, value_name = "TEXT")]
        query: Option<String>,
    },
    /// Show one host with its facts and its instruction
    Get {
        /// Name or id
        host: String,
    },
    /// Change a host's name or labels
    #[command(after_help = "Examples:
  muster host set web-1 --label env=prod --label role=web
  muster host set web-1 --remove-label canary
  muster host set web-1 --name web-01")]
    Set {
        /// Name or id
        host: String,
        /// The new name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Set a label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Remove a label; may be repeated
        #[arg(long = "remove-label", value_name = "KEY")]
        removed: Vec<String>,
    },
    /// Lower how far tasks may reach on a host, or disable it; its own policy is never raised
    #[command(after_help = "Examples:
  muster host mode web-1 read-only --note 'release freeze'
  muster host mode web-1 disabled
  muster host mode web-1 own           leave it to the host's own policy again")]
    Mode {
        /// Name or id
        host: String,
        /// read-only, edit, unrestricted, disabled, or own
        #[arg(value_parser = host_mode)]
        mode: Mode,
        /// Why, for those who find it lowered
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Cut a host off within a second; it starts nothing until it is unlocked
    Lock {
        /// Name or id
        host: String,
        /// Why, for those who find it locked
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Let a locked host, or one set aside by an identity conflict, attach again
    Unlock {
        /// Name or id
        host: String,
    },
    /// Remove a host and retire its id for ever
    Remove {
        /// Name or id
        host: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Show hosts, then every change of one, until Ctrl-C
    Watch {
        /// all, names or ids, or requirements
        #[arg(default_value = "all", hide_default_value = true)]
        selector: String,
    },
    /// The text that tells an AI what a host is for and how to treat it
    #[command(subcommand)]
    Instruction(instruction::InstructionCommand),
}

/// A `KEY=VALUE` of the command line.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

pub(crate) async fn run(command: HostCommand, operator: &Operator) -> Result<u8, Failure> {
    let client = operator.connect().await?;
    match command {
        HostCommand::List { selector, query } => {
            list(&client, selector, query.unwrap_or_default(), operator.json).await?;
        }
        HostCommand::Get { host } => {
            let answer = client.hosts().get_host(GetHostRequest { host }).await?;
            show(answer.into_inner().host, operator.json)?;
        }
        HostCommand::Set {
            host,
            name,
            labels,
            removed,
        } => {
            let answer = client
                .hosts()
                .update_host(update(host, name, labels, removed)?)
                .await?;
            show(answer.into_inner().host, operator.json)?;
        }
        HostCommand::Mode { host, mode, note } => {
            let request = SetHostModeRequest {
                host,
                mode: mode.into(),
                note,
            };
            let answer = client.hosts().set_host_mode(request).await?;
            show(answer.into_inner().host, operator.json)?;
        }
        HostCommand::Lock { host, note } => {
            let answer = client
                .hosts()
                .lock_host(LockHostRequest { host, note })
                .await?;
            tell(answer.into_inner().host, "locked", operator.json)?;
        }
        HostCommand::Unlock { host } => {
            let answer = client
                .hosts()
                .unlock_host(UnlockHostRequest { host })
                .await?;
            tell(answer.into_inner().host, "unlocked", operator.json)?;
        }
        HostCommand::Remove { host, yes } => remove(&client, host, yes, operator.json).await?,
        HostCommand::Watch { selector } => watch::run(&client, &selector, operator.json).await?,
        HostCommand::Instruction(command) => {
            instruction::run(command, &client, operator.json).await?;
        }
    }
    Ok(0)
}

async fn list(client: &Client, selector: String, query: String, json: bool) -> Result<(), Failure> {
    let mut hosts: Vec<Host> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListHostsRequest {
            selector: selector.clone(),
            query: query.clone(),
            page_size: PAGE,
            page_token,
        };
        let answer = client.hosts().list_hosts(request).await;
        let answer = answer
            .map_err(|status| Failure::in_selector(status.into(), &selector))?
            .into_inner();
        hosts.extend(answer.hosts);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if json {
        let hosts: Vec<_> = hosts.iter().map(json::document).collect();
        screen::print_json(&json!({"hosts": hosts}))?;
    } else if hosts.is_empty() {
        say("no hosts; `muster token create host` makes the command that adds one");
    } else {
        screen::print(&view::table(&hosts))?;
    }
    Ok(())
}

fn update(
    host: String,
    name: Option<String>,
    labels: Vec<(String, String)>,
    removed: Vec<String>,
) -> Result<UpdateHostRequest, Failure> {
    let labels: HashMap<_, _> = labels.into_iter().collect();
    let mut paths: Vec<String> = labels
        .keys()
        .chain(&removed)
        .map(|key| format!("labels.{key}"))
        .collect();
    if let Some(key) = removed.iter().find(|key| labels.contains_key(*key)) {
        return Err(Failure::usage(format!(
            "label {key} cannot be both set and removed"
        )));
    }
    paths.extend(name.is_some().then(|| "name".to_owned()));
    if paths.is_empty() {
        return Err(Failure::usage("nothing to change")
            .next("say --name NAME, --label KEY=VALUE or --remove-label KEY"));
    }
    Ok(UpdateHostRequest {
        host,
        update_mask: Some(FieldMask { paths }),
        name: name.unwrap_or_default(),
        labels,
    })
}

async fn remove(client: &Client, host: String, yes: bool, json: bool) -> Result<(), Failure> {
    if !yes {
        let shown = clean(&host);
        if !screen::can_ask() {
            return Err(
                Failure::usage(format!("removing {shown} retires its id for ever"))
                    .next("say --yes if that is meant"),
            );
        }
        let question = format!("Remove {shown} and retire its id for ever? [y/N]");
        if !matches!(screen::ask(&question).await?.as_str(), "y" | "yes") {
            return Err(Failure::usage(format!("{shown} was not removed")));
        }
    }
    let request = RemoveHostRequest { host: host.clone() };
    client.hosts().remove_host(request).await?;
    if json {
        screen::print_json(&json!({"removed": host}))?;
    } else {
        screen::print(&format!("{} removed\n", clean(&host)))?;
    }
    Ok(())
}

fn present(host: Option<Host>) -> Result<Host, Failure> {
    host.ok_or_else(|| Failure::internal("the control plane's answer holds no host"))
}

fn show(host: Option<Host>, json: bool) -> Result<(), Failure> {
    let host = present(host)?;
    if json {
        screen::print_json(&json!({"host": json::document(&host)}))?;
    } else {
        screen::print(&view::details(&host))?;
    }
    Ok(())
}

fn tell(host: Option<Host>, what: &str, json: bool) -> Result<(), Failure> {
    let host = present(host)?;
    if json {
        screen::print_json(&json!({"host": json::document(&host)}))?;
    } else {
        screen::print(&format!("{} {what}\n", clean(&host.name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_parsed() {
        assert_eq!(label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(label("a=").unwrap(), ("a".to_owned(), String::new()));
        assert!(label("=b").is_err());
        assert!(label("ab").is_err());
    }

    #[test]
    fn only_what_is_named_changes() {
        let set = |labels: &[(&str, &str)], removed: &[&str], name: Option<&str>| {
            let owned = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
            update(
                "web-1".to_owned(),
                name.map(str::to_owned),
                labels.iter().map(owned).collect(),
                removed.iter().map(ToString::to_string).collect(),
            )
        };
        let request = set(&[("env", "prod")], &["old"], Some("web-2")).unwrap();
        let paths = request.update_mask.unwrap().paths;
        assert_eq!(paths, ["labels.env", "labels.old", "name"]);
        assert_eq!(request.labels["env"], "prod");
        assert!(set(&[], &[], None).is_err());
        assert!(set(&[("a", "b")], &["a"], None).is_err());
    }
}
