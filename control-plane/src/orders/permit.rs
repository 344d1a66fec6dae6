//! Whether a job may be created, and what it has to wait for.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::v1::Reason;

use super::{Orders, Wanted, actions, reach};
use crate::{
    audit,
    hosts::Host,
    model::{Kind, Mode, Refusal, approval::Approval},
    policy::{Circumstances, Plan, Right, Verdict},
    rights::{Asker, on_record, some_names},
};

/// A job that may be created.
pub(super) struct Permitted {
    /// The hosts that match.
    pub(super) hosts: Vec<Arc<Host>>,
    /// How far it may reach there.
    pub(super) confinement: Bytes,
    /// In which mode, if that is bounded.
    pub(super) mode: Option<Mode>,
    /// The approval that the job waits for first, if policy wants one.
    pub(super) awaited: Option<Approval>,
}

impl Orders {
    /// What the asker may create of what it asks for, and what that has to wait for.
    pub(super) fn permitted(&self, asker: &Asker, wanted: &Wanted) -> Result<Permitted, Refusal> {
        let kind = actions::check(&wanted.action)?;
        let hosts = self.targets(asker, &wanted.selector)?;
        let plan = self.planned(asker, wanted, kind, &hosts);
        let decision = &plan.decision;
        audit::decided(on_record(&decision.verdict), &decision.rules);
        audit::effect("action", kind.name());
        if decision.verdict == Verdict::Deny {
            return Err(asker.refuse_plan(&hosts, &plan));
        }
        if hosts.iter().all(|host| host.mode() == Some(Mode::Disabled)) {
            let names = some_names(hosts.iter().map(|host| host.name.as_str()));
            return Err(Refusal::new(
                Reason::ModeDisabled,
                format!("nothing runs on {names}: disabled; `muster host get` says by whom"),
            ));
        }
        let confinement = reach::confinement(&wanted.confinement, &plan);
        let awaited = match decision.verdict {
            Verdict::Allow => None,
            _ => self.held_back(asker, wanted, (&hosts, &plan, &confinement))?,
        };
        asker.count_job(hosts.len(), || self.jobs.open_tasks(&asker.principal))?;
        for grant in asker
            .rights
            .grants_in(&asker.who, &decision.rules, Right::Run(kind))
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

    fn planned(&self, asker: &Asker, wanted: &Wanted, kind: Kind, hosts: &[Arc<Host>]) -> Plan {
        let how = Circumstances::default();
        let (mode, network) = reach::asked(&wanted.confinement);
        let plan = asker.plan(hosts, kind, (mode, network), how);
        // Where nothing was asked for, what no host of them permits is not asked of any.
        let reach = hosts
            .iter()
            .map(|host| host.mode())
            .max_by_key(|mode| mode.unwrap_or(Mode::Unrestricted));
        if plan.decision.verdict != Verdict::Deny
            && let (None, false, Some(Some(reach))) = (mode, plan.is_unbounded, reach)
            && (Mode::ReadOnly..plan.mode).contains(&reach)
        {
            let lower = asker.plan(hosts, kind, (Some(reach), network), how);
            if lower.decision.verdict == plan.decision.verdict {
                return lower;
            }
        }
        plan
    }
}
