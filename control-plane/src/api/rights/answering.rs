//! Who may answer an approval, as they are now.

use super::{NAMED_MAX, Rights};
use crate::{
    model::{
        Principal, PrincipalKind,
        approval::{Approval, ROLES, Subject},
    },
    policy::{Circumstances, Resource, Right, Verdict, Who},
};

impl Rights {
    /// Whether somebody is one of those who may answer, whoever asked.
    pub(crate) fn is_among(&self, who: &Who, approval: &Approval) -> bool {
        let kind = who.principal.parse().map(|one: Principal| one.kind);
        let may = |action| {
            let judged = self.judge(who, action, Resource::Fleet, Circumstances::default());
            judged.verdict == Verdict::Allow
        };
        matches!(
            kind,
            Ok(PrincipalKind::Operator | PrincipalKind::Automation)
        ) && self.access.barred(&who.principal).is_none()
            && may(Right::ApprovalAnswer)
            && match approval.subject {
                Subject::Job { .. } => {
                    let own = who.all_roles();
                    approval.from.split(ROLES).all(|role| own.contains(&role))
                }
                Subject::Grant(_) => may(Right::GrantWrite),
            }
    }

    /// Whether somebody counts among those who may answer, as they are now.
    pub(crate) fn is_among_now(&self, principal: &str, approval: &Approval) -> bool {
        self.is_among(&self.access.who(&principal.into()), approval)
    }

    /// Some who may answer.
    pub(crate) fn answerers(&self, approval: &Approval) -> Vec<String> {
        let all = self.access.operators().into_iter();
        all.filter(|who| !approval.is_by(&who.principal) && self.is_among(who, approval))
            .take(NAMED_MAX)
            .map(|who| who.principal.to_string())
            .collect()
    }
}
