//! How a refusal of policy is told: why, who could grant it, and what to do next.

use std::sync::Arc;

use muster_proto::v1::Reason;

use super::{NAMED_MAX, Rights};
use crate::{
    model::Explain,
    policy::{Circumstances, Resource, Right, Verdict, Who},
};

/// How to ask for a grant.
pub(super) const ASK_FOR_IT: &str =
    "`muster grant request` asks for it for a while, a model asks with grant_request";

/// Why policy refuses a call.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Denied {
    pub(super) reason: Reason,
    pub(super) words: String,
    pub(super) next: String,
    /// The policies that decided; none if nothing permits it.
    pub(super) rules: Vec<Arc<str>>,
    pub(super) grantors: Vec<Arc<str>>,
    pub(super) more: Vec<(&'static str, String)>,
}

impl Explain for Denied {
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

impl Rights {
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
