//! Whether what waits for an answer is still what was asked for.

use std::sync::Arc;

use prost::Message as _;

use super::{Orders, held::bound_digest, reach::reach};
use crate::{
    approvals::Check,
    hosts::Host,
    jobs::Job,
    model::approval::Approval,
    policy::{Circumstances, Source, Verdict},
    rights::some_names,
    selector::Selector,
};

impl Orders {
    /// Whether a job is what it was, and policy lets it go with so many approvals.
    pub(crate) fn check_job(
        &self,
        approval: &Approval,
        job: Option<&Job>,
        approvals: u32,
    ) -> Check {
        match job {
            None => Check::Drifted("its job is not there any more".to_owned()),
            Some(job) => match self.drift(approval, job, approvals) {
                None => Check::Same,
                Some(cause) => Check::Drifted(cause),
            },
        }
    }

    /// How a job is not what was asked for any more; `None` if it is, and policy lets it go with so many approvals.
    fn drift(&self, approval: &Approval, job: &Job, approvals: u32) -> Option<String> {
        let order = &job.order;
        if let Some(cause) = self.rights.access.barred(&order.principal) {
            return Some(cause);
        }
        let Some(action) = self.approvals.action_of(order) else {
            return Some("a secret in its action is gone".to_owned());
        };
        let tasks = job.tasks(|_| true);
        let ids = tasks.iter().map(|(_, task)| task.host_id);
        let confinement = order.confinement.encode_to_vec();
        let digest = bound_digest(&order.principal, ids, &action, &confinement);
        if digest != approval.digest {
            return Some("its hosts, command or mode are not those that were asked for".to_owned());
        }
        let Ok(selector) = Selector::parse(&order.selector) else {
            return Some("its selector cannot be read".to_owned());
        };
        let mut hosts: Vec<Arc<Host>> = Vec::with_capacity(tasks.len());
        let mut left = Vec::new();
        for (_, task) in &tasks {
            match self.inventory.get(task.host_id) {
                Some(host) if selector.matches(&*host) => hosts.push(host),
                Some(_) => left.push(&*task.host_name),
                None => return Some(format!("host {} was removed meanwhile", task.host_name)),
            }
        }
        if !left.is_empty() {
            let names = some_names(left.into_iter());
            return Some(format!(
                "{:?} does not choose {names} any more: labels, names or facts are others by now",
                order.selector
            ));
        }
        self.policy_drift(approval, job, &hosts, approvals)
    }

    /// What policy says by now that keeps a job from going with so many approvals.
    fn policy_drift(
        &self,
        approval: &Approval,
        job: &Job,
        hosts: &[Arc<Host>],
        approvals: u32,
    ) -> Option<String> {
        let order = &job.order;
        let Some(kind) = order.kind() else {
            return Some("this version does not know its kind of action".to_owned());
        };
        let who = self.rights.access.who(&order.principal);
        let asked = reach(&order.confinement.encode_to_vec().into());
        let with = |approvals| {
            let how = Circumstances {
                source: Source::from_text(&approval.source),
                confirmed: approval.confirmed,
                approvals,
                ..Circumstances::default()
            };
            self.rights.plan(&who, hosts, kind, asked, how).decision
        };
        // With nobody's approval, and then with all that it was to have: the first that is enough may not be the last.
        let wanted = with(0);
        match &wanted.verdict {
            Verdict::NeedsApproval { count, from }
                if *from != approval.from || *count > approval.count =>
            {
                return Some(format!(
                    "policy wants {count} by {from} by now, and not {} by {}",
                    approval.count, approval.from
                ));
            }
            _ => {}
        }
        let decided = with(approval.count.max(approvals));
        match &decided.verdict {
            Verdict::Allow => None,
            Verdict::NeedsApproval { .. } => Some("policy wants more approvals by now".to_owned()),
            Verdict::NeedsConfirmation => Some("policy wants a confirmation by now".to_owned()),
            Verdict::Deny => Some(match listed(&decided.rules) {
                rules if rules.is_empty() => "policy does not permit it any more".to_owned(),
                rules => format!("policy forbids it by now ({rules})"),
            }),
        }
    }
}

/// Policies that decided.
fn listed(rules: &[Arc<str>]) -> String {
    rules.join(", ")
}
