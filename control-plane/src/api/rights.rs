//! What policy lets a caller do, as doors ask it, and how a refusal is told.

mod answering;
mod granted;

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};

use muster_proto::{ids::HostId, v1::Reason};
use tokio::sync::watch;
use tonic::Status;

use super::{caller::Caller, status};
use crate::{
    access::{Access, AccessError},
    approvals::Grants,
    audit,
    clock::now,
    hosts::{Host, Inventory},
    model::{Kind, Mode, NetworkAccess, Principal, entry},
    policy::{
        Circumstances, Hour, Judgement, Plan, Policy, Resource, Right, Source, Traits, Trip, Usage,
        Verdict, Who, unknown_traits,
    },
    store::jobs::Visible,
};

/// How to ask for a grant.
const ASK_FOR_IT: &str =
    "`muster grant request` asks for it for a while, a model asks with grant_request";

/// Names in a refusal; more are counted.
const NAMED_MAX: usize = 5;

/// What is known of a host that is not there any more.
static GONE: LazyLock<Arc<Traits>> = LazyLock::new(unknown_traits);

/// Who is asked what somebody may do. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rights {
    /// The policies that stand.
    pub(crate) policy: Policy,
    /// Who there is.
    pub(crate) access: Access,
    /// What they did lately.
    pub(crate) usage: Arc<Usage>,
    /// What was granted for a while.
    pub(crate) grants: Grants,
}

/// Why policy refuses a call.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Denied {
    reason: Reason,
    words: String,
    next: String,
    /// The policies that decided; none if nothing permits it.
    rules: Vec<Arc<str>>,
    grantors: Vec<Arc<str>>,
    more: Vec<(&'static str, String)>,
}

impl status::Explain for Denied {
    fn reason(&self) -> Reason {
        self.reason
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            ("rule", self.rules.join(",")),
            ("grantors", self.grantors.join(",")),
            ("next", self.next.clone()),
        ];
        metadata.extend(self.more.iter().cloned());
        metadata
    }
}

/// Which jobs and tasks a caller may see.
pub(crate) enum Sight {
    /// All of them.
    All,
    /// Its own, and what ran on some hosts.
    Some(Visible),
}

impl Sight {
    /// As a filter of the ledger.
    pub(crate) fn filter(self) -> Option<Visible> {
        match self {
            Self::All => None,
            Self::Some(visible) => Some(visible),
        }
    }
}

impl Rights {
    /// What the policies that stand say now.
    pub(crate) fn judge(
        &self,
        who: &Who,
        right: Right,
        about: Resource<'_>,
        how: Circumstances,
    ) -> Arc<Judgement> {
        self.policy
            .judge()
            .judge(who, right, about, how, Hour::of(now()))
    }

    /// Tasks of a principal wrote so many bytes: whoever goes over its limit starts nothing more.
    pub(crate) fn written(&self, principal: &Arc<str>, bytes: u64) {
        let judge = self.policy.judge();
        let limit = judge.set.limits.of(principal);
        if let Err(exceeded) = self.usage.output(principal, &limit, bytes, now())
            && limit.trip == Trip::Suspend
        {
            self.suspend(principal, &exceeded.to_string());
        }
    }

    /// Suspends a principal, and lets what runs in its name know.
    fn suspend(&self, principal: &str, cause: &str) {
        if self.access.suspend(principal, cause) {
            self.policy.touch();
        }
    }

    /// Lifts a suspension; what was counted before counts no more.
    pub(crate) async fn resume(&self, principal: &Principal) -> Result<(), AccessError> {
        self.access.resume(principal).await?;
        self.usage.forget(&principal.to_string());
        self.policy.touch();
        Ok(())
    }

    /// Who could grant what somebody lacks.
    pub(crate) fn grantors(&self) -> Vec<Arc<str>> {
        let may = |who: &Who, action| {
            let judged = self.judge(who, action, Resource::Fleet, Circumstances::default());
            judged.verdict == Verdict::Allow
        };
        let mut all = self.access.operators();
        all.retain(|who| may(who, Right::GrantWrite) || may(who, Right::PolicyWrite));
        let names = all.into_iter().map(|who| who.principal);
        names.take(NAMED_MAX).collect()
    }

    /// The refusal of an action.
    pub(crate) fn denied(
        &self,
        who: &Who,
        right: Right,
        on: &str,
        judged: (&Verdict, &[Arc<str>]),
    ) -> Denied {
        let (verdict, rules) = judged;
        let grantors = self.grantors();
        let what = right.text();
        let principal = &who.principal;
        let on = if on.is_empty() {
            String::new()
        } else {
            format!(" on {on}")
        };
        let why = match (verdict, self.text_of(rules)) {
            (Verdict::NeedsApproval { count, from }, _) => {
                format!(
                    "it needs {count} approval{} by {from}",
                    if *count == 1 { "" } else { "s" }
                )
            }
            (Verdict::NeedsConfirmation, _) => {
                "it needs the confirmation of a person at the client".to_owned()
            }
            (_, Some(text)) => text,
            (_, None) => "no policy permits it".to_owned(),
        };
        let asked = if grantors.is_empty() {
            "whoever keeps the policies can grant it".to_owned()
        } else {
            format!("{} can grant it", grantors.join(", "))
        };
        let grant = match right.is_grantable() {
            true => format!("{ASK_FOR_IT}; "),
            false => String::new(),
        };
        Denied {
            reason: Reason::PolicyDenied,
            words: format!("{principal} may not {what}{on}: {why}"),
            next: format!("{asked}; {grant}`muster policy explain {principal} {what}` says more"),
            rules: rules.to_vec(),
            grantors,
            more: Vec::new(),
        }
    }

    /// The policies that decided, with their words.
    fn text_of(&self, rules: &[Arc<str>]) -> Option<String> {
        let judge = self.policy.judge();
        let texts = rules.iter().map(|id| match judge.set.rule(id) {
            Some(rule) if !rule.text.is_empty() => format!("{id} ({})", rule.text),
            _ => id.to_string(),
        });
        let texts: Vec<String> = texts.collect();
        (!texts.is_empty()).then(|| format!("forbidden by {}", texts.join(", ")))
    }
}

/// Some hosts for a refusal: their names, and how many there are beyond those.
pub(crate) fn some_names<'a>(mut names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = names.len();
    let first: Vec<&str> = names.by_ref().take(NAMED_MAX).collect();
    let more = count - first.len();
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// A verdict as the audit log has it.
pub(super) fn on_record(verdict: &Verdict) -> entry::Verdict {
    match verdict {
        Verdict::Allow => entry::Verdict::Allow,
        Verdict::Deny => entry::Verdict::Deny,
        Verdict::NeedsApproval { .. } => entry::Verdict::NeedsApproval,
        Verdict::NeedsConfirmation => entry::Verdict::NeedsConfirmation,
    }
}

impl Caller {
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
    pub(crate) fn must_be_active(&self) -> Result<(), Status> {
        match self.rights.access.suspended(&self.principal) {
            None => Ok(()),
            Some((_, cause)) => Err(super::caller::suspended(&self.principal, &cause)),
        }
    }

    /// The end of a stream that policy does not allow any more.
    pub(crate) fn no_longer(&self) -> Status {
        status::refuse(
            Reason::PolicyDenied,
            &format!(
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
    pub(crate) fn need(&self, right: Right, host: &Host, how: Circumstances) -> Result<(), Status> {
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
        Err(status::of(
            &self.rights.denied(&self.who, right, &host.name, judged),
        ))
    }

    /// Refused unless it may do this to the fleet.
    pub(crate) fn need_fleet(&self, right: Right) -> Result<(), Status> {
        self.allowed_fleet(right, &self.judged_fleet(right))
    }

    /// What policy says of doing this to the fleet.
    pub(super) fn judged_fleet(&self, right: Right) -> Arc<Judgement> {
        self.rights
            .judge(&self.who, right, Resource::Fleet, self.how())
    }

    /// Refused unless that allows it.
    pub(super) fn allowed_fleet(&self, right: Right, judged: &Judgement) -> Result<(), Status> {
        if judged.verdict == Verdict::Allow {
            return Ok(());
        }
        let judged = (&judged.verdict, &*judged.rules);
        Err(status::of(
            &self.rights.denied(&self.who, right, "", judged),
        ))
    }

    /// Counts a job on so many hosts; `open` says how many tasks of the caller are not final. Whoever goes over a
    /// limit is refused, and suspended where its limits say so.
    pub(crate) fn count_job(
        &self,
        hosts: usize,
        open: impl FnOnce() -> usize,
    ) -> Result<(), Status> {
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
                Err(super::caller::suspended(
                    &self.principal,
                    &exceeded.to_string(),
                ))
            }
            Trip::Refuse => Err(status::refuse(
                Reason::RateLimited,
                &format!(
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
    pub(crate) fn refuse_plan(&self, hosts: &[Arc<Host>], plan: &Plan) -> Status {
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
        status::of(&refusal)
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

    /// How a call comes in, as policies see it.
    pub(super) fn source_of(proven: &crate::access::Caller) -> Source {
        match proven.credential {
            crate::access::Credential::Exchanged => Source::Mcp,
            crate::access::Credential::Certificate(_) | crate::access::Credential::Token => {
                Source::Grpc
            }
        }
    }
}
