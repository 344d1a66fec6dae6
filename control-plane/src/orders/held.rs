//! What an order waits for that is not just allowed: a confirmation, or somebody's approval.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use muster_proto::{
    ids::HostId,
    v1::{Action, Reason},
};
use prost::Message as _;

use super::{Orders, Wanted, actions, permit::Permitted};
use crate::{
    approvals::{self, webhook::About},
    audit,
    clock::now,
    hosts::Host,
    jobs::digest,
    model::{
        Explain, Kind, Mode, Refusal,
        approval::{Approval, State, Subject},
    },
    policy::{Circumstances, Plan, Verdict},
    rights::{Asker, on_record},
};

/// Bytes of the names of hosts in one refusal.
const NAMES_MAX: usize = 1024;

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

impl Orders {
    /// What a job that is not just allowed waits for; refused unless what has to be confirmed is.
    pub(super) fn held_back(
        &self,
        asker: &Asker,
        wanted: &Wanted,
        (hosts, plan, confinement): (&[Arc<Host>], &Plan, &[u8]),
    ) -> Result<Option<Approval>, Refusal> {
        let ids = hosts.iter().map(|host| host.id);
        let digest = bound_digest(&asker.principal, ids, &wanted.action, confinement);
        let asked = (Some(plan.mode), Some(plan.network));
        let with = |approvals, confirmed| {
            let how = Circumstances {
                approvals,
                confirmed,
                ..Circumstances::default()
            };
            asker.plan(hosts, plan.kind, asked, how)
        };
        let enough = match plan.decision.verdict {
            Verdict::NeedsApproval { count, .. } => count,
            _ => 0,
        };
        // Nobody is asked to approve what would have to be confirmed then.
        let approved = with(enough, false);
        let confirmed = approved.decision.verdict == Verdict::NeedsConfirmation;
        if confirmed && wanted.confirmed_digest != digest[..] {
            let decision = approved.decision;
            audit::decided(on_record(&decision.verdict), &decision.rules);
            return Err(Refusal::from(Unconfirmed {
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
                let job_id = self.jobs.id_of(&asker.principal, &wanted.request_id);
                let time = now();
                let approval = Approval {
                    id: approvals::id_of_job(job_id),
                    subject: Subject::Job {
                        job_id,
                        start_deadline: wanted.start_deadline,
                    },
                    state: State::Awaiting,
                    principal: asker.principal.to_string(),
                    owner: asker.who.owner.to_string(),
                    reason: wanted.reason.to_string(),
                    digest,
                    count: *count,
                    from: Arc::clone(from),
                    rules: decision.rules.iter().map(ToString::to_string).collect(),
                    source: asker.source.text().to_owned(),
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
            Verdict::Deny | Verdict::NeedsConfirmation => Err(asker.refuse_plan(hosts, &decided)),
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
pub(super) fn about(wanted: &Wanted, permitted: &Permitted) -> About {
    let hosts = permitted.hosts.iter();
    About {
        action: Kind::of(&wanted.action),
        program: actions::summary(&wanted.action),
        mode: permitted.mode.map_or("", Mode::text),
        hosts: hosts.map(|host| host.name.as_str().into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_proto::v1::{Command, action};

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
