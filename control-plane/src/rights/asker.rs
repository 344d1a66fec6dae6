//! Who asks, and what policy lets it do.

use std::{collections::HashSet, sync::Arc};

use muster_proto::{ids::HostId, v1::Reason};
use tokio::sync::watch;

use super::{GONE, Rights, Sight, denied::ASK_FOR_IT, on_record, some_names};
use crate::{
    audit,
    clock::now,
    hosts::{Host, Inventory},
    model::{Kind, Mode, NetworkAccess, Refusal},
    policy::{Circumstances, Judgement, Plan, Resource, Right, Source, Traits, Trip, Verdict, Who},
    store::jobs::Visible,
};

/// Who asks for something: a caller at a door, or the owner of what runs in its name. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Asker {
    /// As "operator/ada".
    pub(crate) principal: Arc<str>,
    /// What policy sees of it.
    pub(crate) who: Who,
    /// The way by which a call comes in.
    pub(crate) source: Source,
    /// Who is asked what it may do.
    pub(crate) rights: Rights,
}

/// The refusal of a principal that went over a limit.
pub(crate) fn suspended(principal: &str, cause: &str) -> Refusal {
    Refusal::new(
        Reason::PrincipalSuspended,
        format!(
            "{principal} is suspended and may only look and cancel: {cause}; \
             whoever may change access lifts it with `muster policy resume {principal}`"
        ),
    )
}

impl Asker {
    /// The caller as it stands now: what policy sees of it may have changed since the call began.
    pub(crate) fn renewed(&self) -> Self {
        Self {
            who: self.rights.access.who(&self.principal),
            ..self.clone()
        }
    }

    /// Moves when what it may do may have changed.
    pub(crate) fn policy_changed(&self) -> watch::Receiver<u64> {
        self.rights.policy.changed()
    }

    /// Refused while it is suspended.
    pub(crate) fn must_be_active(&self) -> Result<(), Refusal> {
        match self.rights.access.suspended(&self.principal) {
            None => Ok(()),
            Some((_, cause)) => Err(suspended(&self.principal, &cause)),
        }
    }

    /// The end of a stream that policy does not allow any more.
    pub(crate) fn no_longer(&self) -> Refusal {
        Refusal::new(
            Reason::PolicyDenied,
            format!(
                "policy has changed: {} may not see this any more; `muster policy explain` says why",
                self.principal
            ),
        )
    }

    fn how(&self) -> Circumstances {
        Circumstances {
            source: self.source,
            ..Circumstances::default()
        }
    }

    /// Whether it may do this to a host that looks so to policy.
    pub(crate) fn may_to(&self, right: Right, id: &str, traits: &Arc<Traits>) -> bool {
        let judged = self
            .rights
            .judge(&self.who, right, Resource::Host(id, traits), self.how());
        judged.verdict == Verdict::Allow
    }

    /// Whether it may do this to a host.
    pub(crate) fn may(&self, right: Right, host: &Host) -> bool {
        let judged = self.rights.judge_host(&self.who, right, host, self.how());
        judged.verdict == Verdict::Allow
    }

    /// Refused unless it may do this to a host that would look so to policy.
    pub(crate) fn need(
        &self,
        right: Right,
        host: &Host,
        how: Circumstances,
    ) -> Result<(), Refusal> {
        let how = Circumstances {
            source: self.source,
            ..how
        };
        let judged = self.rights.judge_host(&self.who, right, host, how);
        audit::decided(on_record(&judged.verdict), &judged.rules);
        if judged.verdict == Verdict::Allow {
            return Ok(());
        }
        let judged = (&judged.verdict, &*judged.rules);
        Err(self
            .rights
            .denied(&self.who, right, &host.name, judged)
            .into())
    }

    /// Refused unless it may do this to the fleet.
    pub(crate) fn need_fleet(&self, right: Right) -> Result<(), Refusal> {
        self.allowed_fleet(right, &self.judged_fleet(right))
    }

    /// What policy says of doing this to the fleet.
    pub(crate) fn judged_fleet(&self, right: Right) -> Arc<Judgement> {
        self.rights
            .judge(&self.who, right, Resource::Fleet, self.how())
    }

    /// Refused unless that allows it.
    pub(crate) fn allowed_fleet(&self, right: Right, judged: &Judgement) -> Result<(), Refusal> {
        if judged.verdict == Verdict::Allow {
            return Ok(());
        }
        let judged = (&judged.verdict, &*judged.rules);
        Err(self.rights.denied(&self.who, right, "", judged).into())
    }

    /// Counts a job on so many hosts; `open` says how many tasks of the caller are not final. Whoever goes over a
    /// limit is refused, and suspended where its limits say so.
    pub(crate) fn count_job(
        &self,
        hosts: usize,
        open: impl FnOnce() -> usize,
    ) -> Result<(), Refusal> {
        let judge = self.rights.policy.judge();
        let limit = judge.set.limits.of(&self.principal);
        let counted = self
            .rights
            .usage
            .job(&self.principal, &limit, hosts, open, now());
        let Err(exceeded) = counted else {
            return Ok(());
        };
        match limit.trip {
            Trip::Suspend => {
                self.rights.suspend(&self.principal, &exceeded.to_string());
                Err(suspended(&self.principal, &exceeded.to_string()))
            }
            Trip::Refuse => Err(Refusal::new(
                Reason::RateLimited,
                format!(
                    "{}: {exceeded}; try again after a while, or ask for a higher limit \
                     (`muster policy show limits.toml`)",
                    self.principal
                ),
            )),
        }
    }

    /// Decides about a job of a kind on these hosts.
    pub(crate) fn plan(
        &self,
        hosts: &[Arc<Host>],
        kind: Kind,
        asked: (Option<Mode>, Option<NetworkAccess>),
        how: Circumstances,
    ) -> Plan {
        let how = Circumstances {
            source: self.source,
            ..how
        };
        self.rights.plan(&self.who, hosts, kind, asked, how)
    }

    /// The refusal of a job that was planned.
    pub(crate) fn refuse_plan(&self, hosts: &[Arc<Host>], plan: &Plan) -> Refusal {
        let denied = plan.denied.iter().filter_map(|place| hosts.get(*place));
        let names: Vec<&str> = denied.map(|host| host.name.as_str()).collect();
        let decision = &plan.decision;
        let mut refusal = self.rights.denied(
            &self.who,
            Right::Run(plan.kind),
            &some_names(names.into_iter()),
            (&decision.verdict, &decision.rules),
        );
        let at_most = decision.mode_at_most;
        if decision.verdict == Verdict::Deny && at_most != Mode::Disabled && at_most < plan.mode {
            refusal.reason = Reason::ModeTooHigh;
            refusal.words = format!(
                "{} may run this in the mode {at_most} at most, not {}",
                self.principal, plan.mode
            );
            let ask = match refusal.grantors.as_slice() {
                [] => "ask whoever keeps the policies".to_owned(),
                grantors => format!("ask {}", grantors.join(", ")),
            };
            refusal.next = format!("run it with --mode {at_most}, or {ask} for more; {ASK_FOR_IT}");
            refusal
                .more
                .push(("mode_at_most", at_most.text().to_owned()));
        }
        refusal.into()
    }

    /// Whether a job of this principal is its own, or of an ai that it owns.
    pub(crate) fn owns(&self, principal: &str) -> bool {
        self.rights.access.owns(&self.principal, principal)
    }

    /// Whether it may see what others ran on a host.
    pub(crate) fn sees_tasks_on(&self, inventory: &Inventory, host: HostId) -> bool {
        match inventory.get(host) {
            Some(host) => self.sees_tasks_of(&host.id_text, &host.traits),
            None => self.sees_tasks_of(&host.to_string(), &GONE),
        }
    }

    fn sees_tasks_of(&self, id: &str, traits: &Arc<Traits>) -> bool {
        self.may_to(Right::HostRead, id, traits) && self.may_to(Right::JobRead, id, traits)
    }

    /// Which jobs and tasks it may see.
    pub(crate) fn sight(&self, inventory: &Inventory) -> Sight {
        let hosts = inventory.everything();
        let judge = self.rights.policy.judge();
        let mut known: HashSet<*const Traits> = HashSet::new();
        let mut all = self.sees_tasks_of("", &GONE);
        for host in &hosts {
            let alike =
                known.contains(&Arc::as_ptr(&host.traits)) && !judge.set.names(&host.id_text);
            if all && !alike {
                all = self.sees_tasks_of(&host.id_text, &host.traits);
                known.insert(Arc::as_ptr(&host.traits));
            }
        }
        if all {
            return Sight::All;
        }
        let seen = hosts
            .iter()
            .filter(|host| self.sees_tasks_of(&host.id_text, &host.traits));
        Sight::Some(Visible {
            principals: self.rights.access.household(&self.principal),
            hosts: seen.map(|host| host.id).collect(),
        })
    }
}
