//! `muster grant …`: temporary permits.

use std::time::Duration;

use muster_proto::v1::{Grant, ListGrantsRequest, Mode, RequestGrantRequest, RevokeGrantRequest};
use serde_json::json;

use crate::{
    failure::Failure,
    json,
    operator::Operator,
    screen::{self, Rows, clean, say},
    time,
};

#[derive(clap::Subcommand, Debug)]
pub(crate) enum GrantCommand {
    /// Ask for a temporary permit; it begins once somebody else has approved it
    #[command(after_help = "Examples:
  muster grant request env=dev --mode unrestricted --ttl 30m --reason 'the deploy needs root'
  muster grant request web-1 --mode read-only --action file.read --reason 'to see its log'")]
    Request {
        /// Which hosts: all, names, or requirements over labels
        selector: String,
        /// In which mode at most
        #[arg(long)]
        mode: GrantMode,
        /// Why; whoever approves it reads it
        #[arg(long)]
        reason: String,
        /// What: command.run, file.read, job.input or job.cancel; may be repeated [default: command.run]
        #[arg(long = "action", value_name = "ACTION")]
        actions: Vec<String>,
        /// For how long from its approval; at most 7d
        #[arg(long, value_parser = humantime::parse_duration, default_value = "1h")]
        ttl: Duration,
        /// Names this request: asked again with the same id, it is the same
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// List the grants that permit something now
    List {
        /// Those that ended, too
        #[arg(long)]
        ended: bool,
    },
    /// End a grant at once; what was started under it goes on
    Revoke {
        /// As `muster grant list` shows it
        grant_id: String,
    },
}

/// How far the tasks of a grant may reach.
#[derive(clap::ValueEnum, Debug, Clone, Copy)]
pub(crate) enum GrantMode {
    /// Writes nothing
    ReadOnly,
    /// Writes beneath the host's roots
    Edit,
    /// Whatever the agent's user may
    Unrestricted,
}

/// What a grant permits, in one line.
pub(crate) fn what(grant: &Grant) -> String {
    let span = time::span(grant.ttl.as_ref()).map_or_else(String::new, time::short);
    format!(
        "{} on {} in {} for {span}",
        grant.actions.join(", "),
        grant.selector,
        grant.mode().text()
    )
}

pub(crate) async fn run(command: GrantCommand, operator: &Operator) -> Result<u8, Failure> {
    let client = operator.connect().await?;
    match command {
        GrantCommand::Request {
            selector,
            mode,
            reason,
            actions,
            ttl,
            request_id,
        } => {
            let mode = match mode {
                GrantMode::ReadOnly => Mode::ReadOnly,
                GrantMode::Edit => Mode::Edit,
                GrantMode::Unrestricted => Mode::Unrestricted,
            };
            let request = RequestGrantRequest {
                reason,
                selector,
                mode: mode.into(),
                actions,
                ttl: time::wire(ttl),
                request_id: request_id.unwrap_or_else(muster_client::draw_request_id),
            };
            let answer = client.grants().request_grant(request).await?.into_inner();
            let id = answer.approval.unwrap_or_default().approval_id;
            if operator.json {
                screen::print_json(&json!({"approval_id": id}))?;
            } else {
                let id = clean(&id);
                screen::print(&format!("{id}\n"))?;
                say(&format!(
                    "it begins once somebody else approves it: muster approval approve {id}"
                ));
            }
        }
        GrantCommand::List { ended } => {
            let request = ListGrantsRequest { ended };
            let grants = client
                .grants()
                .list_grants(request)
                .await?
                .into_inner()
                .grants;
            if operator.json {
                let grants: Vec<_> = grants.iter().map(json::document).collect();
                screen::print_json(&json!({"grants": grants}))?;
            } else if grants.is_empty() {
                say("no grants");
            } else {
                let mut rows = Rows::new(&["GRANT", "FOR", "WHAT", "APPROVED BY", "EXPIRES"]);
                for grant in &grants {
                    rows.add([
                        grant.grant_id.clone(),
                        grant.principal.clone(),
                        what(grant),
                        grant.approvers.join(", "),
                        time::until(grant.expire_time.as_ref()),
                    ]);
                }
                screen::print(&rows.render())?;
            }
        }
        GrantCommand::Revoke { grant_id } => {
            let id = grant_id.clone();
            let request = RevokeGrantRequest { grant_id };
            client.grants().revoke_grant(request).await?;
            if operator.json {
                screen::print_json(&json!({"revoked": id}))?;
            } else {
                screen::print(&format!("{} revoked\n", clean(&id)))?;
            }
        }
    }
    Ok(0)
}
