//! Whether a job may be created, and what it has to wait for.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use muster_proto::{
    ids::HostId,
    v1::{Action, Reason, action},
};
use prost::Message as _;
use tonic::Status;

use super::{JobDoor, check::Checked};
use crate::{
    api::{
        caller::Caller,
        convert,
        rights::{on_record, some_names},
        status::{self, Explain},
    },
    approvals::{self, webhook::About},
    audit,
    clock::now,
    hosts::Host,
    jobs::digest,
    model::{
        Mode, NetworkAccess,
        approval::{Approval, State, Subject},
    },
    policy::{Circumstances, Plan, Right, Verdict},
};

/// Bytes of the names of hosts in one refusal.
const NAMES_MAX: usize = 1024;

/// A job that may be created.
pub(super) struct Permitted {
    /// The hosts that match.
    pub(super) hosts: Vec<Arc<Host>>,
    /// How far it may reach there.
    pub(super) confinement: Bytes,
    /// In which mode, if that is bounded.
    pub(super) mode: Option<Mode>,
    /// What it waits for first, if policy wants that.
    pub(super) awaited: Option<Approval>,
}

/// Somebody has to confirm it.
#[derive(Debug, thiserror::Error)]
#[error(
    "policy wants the person at your client to confirm this: show them the command, the mode {mode} and {}, then ask \
     again with confirmed_digest",
    place(*.count)
)]
struct Unconfirmed {
    digest: [u8; 32],
    count: usize,
    names: String,
    mode: Mode,
    rules: Vec<Arc<str>>,
}

fn place(hosts: usize) -> String {
    match hosts {
        1 => "the host".to_owned(),
        hosts => format!("the {hosts} hosts"),
    }
}

impl Explain for Unconfirmed {
    fn reason(&self) -> Reason {
        Reason::ConfirmationRequired
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![
            ("digest", HEXLOWER.encode(&self.digest)),
            ("host_count", self.count.to_string()),
            ("hosts", self.names.clone()),
            ("mode", self.mode.text().to_owned()),
            ("rule", self.rules.join(",")),
        ]
    }
}

/// How far a confinement of a job lets it reach. One that says nothing says no less than all.
pub(crate) fn reach(confinement: &Bytes) -> (Option<Mode>, Option<NetworkAccess>) {
    let (mode, network) = convert::asked(confinement);
    let mode = mode.unwrap_or(Mode::Unrestricted);
    let network = network.unwrap_or(match mode {
        Mode::ReadOnly | Mode::Disabled => NetworkAccess::None,
        Mode::Edit | Mode::Unrestricted => NetworkAccess::All,
    });
    (Some(mode), Some(network))
}

/// Policies that decided.
pub(crate) fn listed(rules: &[Arc<str>]) -> String {
    rules.join(", ")
}

/// SHA-256 of who asks and exactly what is to happen where: what a person confirms or approves.
pub(crate) fn bound_digest(
    principal: &str,
    hosts: impl Iterator<Item = HostId>,
    action: &Action,
    confinement: &[u8],
) -> [u8; 32] {
    let mut hosts: Vec<String> = hosts.map(|host| host.to_string()).collect();
    hosts.sort_unstable();
    digest(&[
        b"muster-bound-v1",
        principal.as_bytes(),
        hosts.join(",").as_bytes(),
        // Its environment is in one order, whatever order it came in.
        HEXLOWER
            .encode(&digest(&[&action.encode_to_vec()]))
            .as_bytes(),
        confinement,
    ])
}

impl JobDoor {
    /// What the caller may create of what it asks for, and what that has to wait for.
    pub(super) fn permitted(
        &self,
        caller: &Caller,
        checked: &Checked,
    ) -> Result<Permitted, Status> {
        let hosts = self.targets(caller, &checked.selector)?;
        let plan = self.planned(caller, checked, &hosts);
        let decision = &plan.decision;
        audit::decided(on_record(&decision.verdict), &decision.rules);
        audit::effect("action", plan.kind.name());
        if decision.verdict == Verdict::Deny {
            return Err(caller.refuse_plan(&hosts, &plan));
        }
        if hosts.iter().all(|host| host.mode() == Some(Mode::Disabled)) {
            let names = some_names(hosts.iter().map(|host| host.name.as_str()));
            return Err(status::refuse(
                Reason::ModeDisabled,
                &format!("nothing runs on {names}: disabled; `muster host get` says by whom"),
            ));
        }
        let confinement = convert::confinement(&checked.confinement, &plan);
        let awaited = match decision.verdict {
            Verdict::Allow => None,
            _ => self.held_back(caller, checked, (&hosts, &plan, &confinement))?,
        };
        caller.count_job(hosts.len(), || self.jobs.open_tasks(&caller.principal))?;
        for grant in caller
            .rights
            .grants_in(&caller.who, &decision.rules, Right::Run(plan.kind))
        {
            audit::effect("grant", grant.id);
        }
        Ok(Permitted {
            mode: (!plan.is_unbounded).then_some(plan.mode),
            hosts,
            confinement,
            awaited,
        })
    }

    fn planned(&self, caller: &Caller, checked: &Checked, hosts: &[Arc<Host>]) -> Plan {
        let (mode, network) = convert::asked(&checked.confinement);
        let how = Circumstances::default();
        let plan = caller.plan(hosts, checked.kind, (mode, network), how);
        // Where nothing was asked for, what no host of them permits is not asked of any.
        let reach = hosts
            .iter()
            .map(|host| host.mode())
            .max_by_key(|mode| mode.unwrap_or(Mode::Unrestricted));
        if plan.decision.verdict != Verdict::Deny
            && let (None, false, Some(Some(reach))) = (mode, plan.is_unbounded, reach)
            && (Mode::ReadOnly..plan.mode).contains(&reach)
        {
            let lower = caller.plan(hosts, checked.kind, (Some(reach), network), how);
            if lower.decision.verdict == plan.decision.verdict {
                return lower;
            }
        }
        plan
    }

    /// What a job that is not just allowed waits for; refused unless what has to be confirmed is.
    fn held_back(
        &self,
        caller: &Caller,
        checked: &Checked,
        (hosts, plan, confinement): (&[Arc<Host>], &Plan, &[u8]),
    ) -> Result<Option<Approval>, Status> {
        let ids = hosts.iter().map(|host| host.id);
        let digest = bound_digest(&caller.principal, ids, &checked.wire, confinement);
        let asked = (Some(plan.mode), Some(plan.network));
        let with = |approvals, confirmed| {
            let how = Circumstances {
                approvals,
                confirmed,
                ..Circumstances::default()
            };
            caller.plan(hosts, plan.kind, asked, how)
        };
        let enough = match plan.decision.verdict {
            Verdict::NeedsApproval { count, .. } => count,
            _ => 0,
        };
        // Nobody is asked to approve what would have to be confirmed then.
        let approved = with(enough, false);
        let confirmed = approved.decision.verdict == Verdict::NeedsConfirmation;
        if confirmed && checked.confirmed_digest != digest[..] {
            let decision = approved.decision;
            audit::decided(on_record(&decision.verdict), &decision.rules);
            return Err(status::of(&Unconfirmed {
                digest,
                count: hosts.len(),
                names: names(hosts),
                mode: plan.mode,
                rules: decision.rules,
            }));
        }
        let decided = with(0, confirmed);
        let decision = &decided.decision;
        audit::decided(on_record(&decision.verdict), &decision.rules);
        if confirmed {
            audit::effect("confirmed", HEXLOWER.encode(&digest));
        }
        match &decision.verdict {
            Verdict::Allow => Ok(None),
            Verdict::NeedsApproval { count, from } => {
                let job_id = self.jobs.id_of(&caller.principal, &checked.request_id);
                let time = now();
                let approval = Approval {
                    id: approvals::id_of_job(job_id),
                    subject: Subject::Job {
                        job_id,
                        start_deadline: checked.start_deadline,
                    },
                    state: State::Awaiting,
                    principal: caller.principal.to_string(),
                    owner: caller.who.owner.to_string(),
                    reason: checked.reason.to_string(),
                    digest,
                    count: *count,
                    from: Arc::clone(from),
                    rules: decision.rules.iter().map(ToString::to_string).collect(),
                    source: caller.source.text().to_owned(),
                    confirmed,
                    create_time: time,
                    expire_time: time + self.approvals.expires_after(),
                    end_time: None,
                    cause: String::new(),
                    answers: Vec::new(),
                };
                audit::effect("approval", approval.id);
                audit::effect("job", job_id);
                Ok(Some(approval))
            }
            Verdict::Deny | Verdict::NeedsConfirmation => Err(caller.refuse_plan(hosts, &decided)),
        }
    }
}

/// The names of hosts, as many as fit.
fn names(hosts: &[Arc<Host>]) -> String {
    let mut text = String::new();
    for host in hosts {
        if text.len() + host.name.len() >= NAMES_MAX {
            text.push_str(", …");
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&host.name);
    }
    text
}

/// What a notice says of a job.
pub(super) fn about(checked: &Checked, permitted: &Permitted) -> About {
    let program = match &checked.wire.kind {
        Some(action::Kind::Command(command)) => match (&command.script, command.argv.first()) {
            (Some(_), _) => "a shell script".to_owned(),
            (None, Some(program)) => program.chars().take(200).collect(),
            (None, None) => String::new(),
        },
        _ => String::new(),
    };
    let hosts = permitted.hosts.iter();
    About {
        action: Some(checked.kind),
        program,
        mode: permitted.mode.map_or("", Mode::text),
        hosts: hosts.map(|host| host.name.as_str().into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_proto::v1::Command;

    use super::*;

    fn command(argv: &[&str], env: &[(&str, &str)]) -> Action {
        let env: BTreeMap<String, String> = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        Action {
            kind: Some(action::Kind::Command(Command {
                argv: argv.iter().map(ToString::to_string).collect(),
                env,
                ..Command::default()
            })),
        }
    }

    fn host(number: u8) -> HostId {
        HostId::from_bytes(&[number; 32])
    }

    #[test]
    fn what_is_bound_is_who_what_where_and_how_far() {
        let of = |who: &str, hosts: &[u8], action: &Action, reach: &[u8]| {
            bound_digest(who, hosts.iter().map(|n| host(*n)), action, reach)
        };
        let plain = command(&["ls", "-l"], &[]);
        let first = of("ai/claude", &[1, 2], &plain, b"");
        assert_eq!(first, of("ai/claude", &[2, 1], &plain, b""));
        for other in [
            of("ai/other", &[1, 2], &plain, b""),
            of("ai/claude", &[1], &plain, b""),
            of("ai/claude", &[1, 3], &plain, b""),
            of("ai/claude", &[1, 2], &command(&["ls -l"], &[]), b""),
            of(
                "ai/claude",
                &[1, 2],
                &command(&["ls", "-l"], &[("A", "1")]),
                b"",
            ),
            of("ai/claude", &[1, 2], &plain, b"\x08\x02"),
        ] {
            assert_ne!(first, other);
        }
        let of_env = |env: &[(&str, &str)]| of("ai/claude", &[1], &command(&["env"], env), b"");
        let one = of_env(&[("A", "1"), ("B", "2"), ("C", "3")]);
        assert_eq!(one, of_env(&[("C", "3"), ("A", "1"), ("B", "2")]));
        assert_ne!(one, of_env(&[("A", "1\0B=2"), ("C", "3")]));
    }
}
