//! Grants, where nothing permits it: they count as a permit of their own, and lift nothing that forbids.

use std::sync::Arc;

use super::Rights;
use crate::{
    approvals::Grant,
    clock::now,
    hosts::Host,
    model::{Kind, Mode, NetworkAccess},
    policy::{
        BY_GRANT, Circumstances, Hour, Judgement, Plan, Resource, Right, Source, Target, Verdict,
        Who, candidates, plan,
    },
};

/// A grant, with those who gave it as they are now.
struct Given {
    grant: Arc<Grant>,
    by: Vec<Who>,
}

impl Rights {
    /// What policy and grants say of doing this to a host.
    pub(super) fn judge_host(
        &self,
        who: &Who,
        right: Right,
        host: &Host,
        how: Circumstances,
    ) -> Arc<Judgement> {
        let about = || Resource::Host(&host.id_text, &host.traits);
        let judged = self.judge(who, right, about(), how);
        if judged.verdict != Verdict::Deny {
            return judged;
        }
        let given = self.given(who, right);
        if !given.iter().any(|one| self.gives(one, right, host, how)) {
            return judged;
        }
        let granted = Circumstances {
            granted: true,
            ..how
        };
        self.judge(who, right, about(), granted)
    }

    /// Decides about a job of a kind on these hosts, as policies and grants stand now. What is possible without a grant
    /// needs none.
    pub(crate) fn plan(
        &self,
        who: &Who,
        hosts: &[Arc<Host>],
        kind: Kind,
        asked: (Option<Mode>, Option<NetworkAccess>),
        how: Circumstances,
    ) -> Plan {
        let refused = self.plan_with(who, hosts, kind, asked, how, |_| false);
        if refused.decision.verdict != Verdict::Deny {
            return refused;
        }
        let right = Right::Run(kind);
        let given = self.given(who, right);
        if given.is_empty() {
            return refused;
        }
        let mut best = None;
        for (mode, network) in candidates(kind, asked) {
            let of_host = Circumstances {
                mode: Some(mode),
                network: Some(network),
                hosts: u32::try_from(hosts.len()).unwrap_or(u32::MAX),
                ..how
            };
            let granted = |host: &Host| {
                given
                    .iter()
                    .any(|one| self.gives(one, right, host, of_host))
            };
            let found = self.plan_with(who, hosts, kind, (Some(mode), Some(network)), how, granted);
            match found.decision.verdict {
                Verdict::Allow => return found,
                Verdict::Deny => {}
                Verdict::NeedsApproval { .. } | Verdict::NeedsConfirmation => {
                    best.get_or_insert(found);
                }
            }
        }
        best.unwrap_or(refused)
    }

    fn plan_with(
        &self,
        who: &Who,
        hosts: &[Arc<Host>],
        kind: Kind,
        asked: (Option<Mode>, Option<NetworkAccess>),
        how: Circumstances,
        granted: impl Fn(&Host) -> bool,
    ) -> Plan {
        let targets = hosts.iter().map(|host| Target {
            id: &host.id_text,
            traits: &host.traits,
            granted: granted(host),
        });
        let targets: Vec<Target<'_>> = targets.collect();
        let judge = self.policy.judge();
        plan(&judge, who, &targets, kind, asked, how, Hour::of(now()))
    }

    /// The grants of somebody for an action. One lasts no longer than those who gave it may give it.
    fn given(&self, who: &Who, right: Right) -> Vec<Given> {
        let grants = self.grants.of(&who.principal, right.text(), now());
        let counts = |by: &Who| {
            let judged = self.judge(
                by,
                Right::GrantWrite,
                Resource::Fleet,
                Circumstances::default(),
            );
            judged.verdict == Verdict::Allow && self.access.barred(&by.principal).is_none()
        };
        let given = grants.into_iter().map(|grant| Given {
            by: grant
                .approvers
                .iter()
                .map(|by| self.access.who(&by.as_str().into()))
                .collect(),
            grant,
        });
        given
            .filter(|given| !given.by.is_empty() && given.by.iter().all(counts))
            .collect()
    }

    /// Those of somebody's grants that may have decided; none if no grant did.
    pub(crate) fn grants_in(&self, who: &Who, rules: &[Arc<str>], right: Right) -> Vec<Arc<Grant>> {
        match rules.iter().any(|rule| &**rule == BY_GRANT) {
            true => self.grants.of(&who.principal, right.text(), now()),
            false => Vec::new(),
        }
    }

    /// Whether a grant permits this on a host: it chooses the host, and whoever gave it may do the same there.
    fn gives(&self, given: &Given, right: Right, host: &Host, how: Circumstances) -> bool {
        let reaches = how.mode.is_none_or(|mode| mode <= given.grant.mode);
        reaches
            && given.grant.selector.matches(host)
            && (given.by.iter()).all(|by| self.may_themselves(by, right, host, how))
    }

    /// Whether somebody may do it without anybody's approval.
    fn may_themselves(&self, who: &Who, right: Right, host: &Host, how: Circumstances) -> bool {
        let how = Circumstances {
            source: Source::Grpc,
            // They confirm it by giving it.
            confirmed: true,
            approvals: 0,
            own: false,
            granted: false,
            ..how
        };
        let about = Resource::Host(&host.id_text, &host.traits);
        self.judge(who, right, about, how).verdict == Verdict::Allow
    }

    /// The first of these hosts on which somebody may not give this away.
    pub(crate) fn may_not_give<'a>(
        &self,
        principal: &str,
        right: Right,
        mode: Mode,
        hosts: &'a [Arc<Host>],
    ) -> Option<&'a Arc<Host>> {
        let who = self.access.who(&principal.into());
        let ways = match right.kind() {
            None => vec![Circumstances::default()],
            Some(kind) => candidates(kind, (Some(mode), None))
                .into_iter()
                .map(|(mode, network)| Circumstances {
                    mode: Some(mode),
                    network: Some(network),
                    ..Circumstances::default()
                })
                .collect(),
        };
        hosts.iter().find(|host| {
            let may = |how: &Circumstances| self.may_themselves(&who, right, host, *how);
            !ways.iter().any(may)
        })
    }
}
