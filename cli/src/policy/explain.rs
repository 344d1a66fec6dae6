//! `muster policy explain`: why somebody may do something, or not.

use std::path::PathBuf;

use muster_proto::v1::{
    ExplainAccessRequest, ExplainAccessResponse, Mode, Network, Verdict,
    explain_access_response::Answer, network::Access,
};
use serde_json::json;

use super::{files, place, rule};
use crate::{
    failure::{Failure, exit},
    mode,
    operator::Operator,
    screen::{self, clean},
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster policy explain ai/claude command.run --host web-1 --mode unrestricted
  muster policy explain ai/claude file.read --host env=prod
  muster policy explain operator/ada host.update --host all
  muster policy explain operator/ada policy.write --files policies/

Ends with 0 where it is allowed on every host, with 1 where it is not.")]
pub(crate) struct Explain {
    /// Who, as ai/claude; "me" is whoever asks
    principal: String,
    /// What, as command.run or file.read; a wrong word lists them all
    action: String,
    /// On which hosts: all, names or ids, or requirements
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    host: String,
    /// For a job: in which mode [default: the one that a job gets which asks for none]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// For a job: with which network: none, list or all [default: likewise]
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// As if the job were the principal's own
    #[arg(long)]
    own: bool,
    /// As if it came through MCP
    #[arg(long)]
    mcp: bool,
    /// Ask these files, or directories of them, instead of the policies that stand; may be repeated
    #[arg(long, value_name = "PATH")]
    files: Vec<PathBuf>,
}

impl Explain {
    pub(super) async fn run(self, operator: &Operator) -> Result<u8, Failure> {
        let network = match self.network.as_deref() {
            None => None,
            Some("none") => Some(Access::None),
            Some("list") => Some(Access::List),
            Some("all") => Some(Access::All),
            Some(_) => return Err(Failure::usage("--network is none, list or all")),
        };
        let request = ExplainAccessRequest {
            principal: match self.principal.as_str() {
                "me" => String::new(),
                other => other.to_owned(),
            },
            action: self.action.clone(),
            selector: self.host.clone(),
            mode: mode::asked(self.mode.as_deref())?.into(),
            network: network.map(|access| Network {
                access: access.into(),
                allow: Vec::new(),
            }),
            own: self.own,
            mcp: self.mcp,
            files: files::read(&self.files)?.into_iter().collect(),
        };
        let client = operator.connect().await?;
        let answer = client.policy().explain_access(request).await?.into_inner();
        let allowed = answer
            .answers
            .iter()
            .all(|answer| answer.verdict() == Verdict::Allow);
        if operator.json {
            screen::print_json(&document(&self.action, &answer))?;
        } else {
            screen::print(&told(&self.action, &answer))?;
        }
        Ok(if allowed { 0 } else { exit::SOME_FAILED })
    }
}

fn told(action: &str, answer: &ExplainAccessResponse) -> String {
    let mut text = String::new();
    let who = clean(&answer.principal);
    let roles = match answer.roles.as_slice() {
        [] => "no role".to_owned(),
        roles => clean(&roles.join(", ")).into_owned(),
    };
    for one in &answer.answers {
        let on = match (one.host_count, one.hosts.as_slice()) {
            (0, _) => String::new(),
            (count, hosts) => {
                let more = usize::try_from(count)
                    .unwrap_or(0)
                    .saturating_sub(hosts.len());
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                format!(" on {}{more}", clean(&hosts.join(", ")))
            }
        };
        let mode = match answer.mode() {
            Mode::Unspecified => String::new(),
            mode => format!(" in the mode {}", mode.text()),
        };
        text.push_str(&format!(
            "{who} ({roles}) {} {action}{on}{mode}\n",
            verdict(one.verdict())
        ));
        text.push_str(&why(one));
    }
    if !answer.suspended.is_empty() {
        text.push_str(&format!(
            "{who} is suspended, and may only look and cancel: {}\n  next: muster policy resume {who}\n",
            clean(&answer.suspended)
        ));
    }
    let denied = answer
        .answers
        .iter()
        .any(|answer| answer.verdict() != Verdict::Allow);
    if denied {
        let at_most = answer.mode_at_most();
        if !matches!(at_most, Mode::Unspecified | Mode::Disabled) && at_most != answer.mode() {
            text.push_str(&format!("  possible: --mode {}\n", at_most.text()));
        }
        let grantors = match answer.grantors.as_slice() {
            [] => "whoever keeps the policies".to_owned(),
            grantors => clean(&grantors.join(", ")).into_owned(),
        };
        text.push_str(&format!("  could grant it: {grantors}\n"));
    }
    text
}

fn why(answer: &Answer) -> String {
    if answer.rules.is_empty() {
        return "  no policy permits it\n".to_owned();
    }
    let lines = answer.rules.iter().map(|rule| {
        let text = match rule.text.as_str() {
            "" => String::new(),
            text => format!(": {}", clean(text)),
        };
        format!("  by {} ({}){text}\n", clean(&rule.id), clean(&place(rule)))
    });
    lines.collect()
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "may",
        Verdict::NeedsApproval => "may, once it is approved,",
        Verdict::NeedsConfirmation => "may, once a person confirms it,",
        Verdict::Deny | Verdict::Unspecified => "may not",
    }
}

fn document(action: &str, answer: &ExplainAccessResponse) -> serde_json::Value {
    let answers = answer.answers.iter().map(|one| {
        json!({
            "verdict": one.verdict().as_str_name().trim_start_matches("VERDICT_").to_lowercase(),
            "rules": one.rules.iter().map(rule).collect::<Vec<_>>(),
            "hosts": one.hosts,
            "host_count": one.host_count,
        })
    });
    json!({
        "principal": answer.principal,
        "roles": answer.roles,
        "action": action,
        "policy_version": answer.policy_version,
        "answers": answers.collect::<Vec<_>>(),
        "mode": answer.mode().text(),
        "mode_at_most": answer.mode_at_most().text(),
        "grantors": answer.grantors,
        "suspended": answer.suspended,
    })
}
