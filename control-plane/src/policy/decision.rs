//! What policy answers.

use crate::model::{Mode, NetworkAccess, approval::ROLES};
use std::sync::Arc;

/// Whether somebody may do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They may.
    Allow,
    /// They may not: nothing permits it, or something forbids it.
    Deny,
    /// They may once so many others have approved it.
    NeedsApproval {
        /// How many.
        count: u32,
        /// The role whose principals may approve; where several policies want one, all of them, as "admin+dba".
        from: Arc<str>,
    },
    /// They may once the person at their client has confirmed it.
    NeedsConfirmation,
}

impl Verdict {
    /// What is needed where both of these are: who approves then has the roles of both. What has to be confirmed too is
    /// asked for once it is approved.
    pub(crate) fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Deny, _) | (_, Self::Deny) => Self::Deny,
            (
                Self::NeedsApproval { count, from },
                Self::NeedsApproval {
                    count: other,
                    from: also,
                },
            ) => Self::NeedsApproval {
                count: count.max(*other),
                from: both(&from, also),
            },
            (needs @ Self::NeedsApproval { .. }, _) => needs,
            (_, needs @ Self::NeedsApproval { .. }) => needs.clone(),
            (Self::NeedsConfirmation, _) | (_, Self::NeedsConfirmation) => Self::NeedsConfirmation,
            (Self::Allow, Self::Allow) => Self::Allow,
        }
    }
}

/// The roles of both, each once: "admin+dba".
fn both(from: &Arc<str>, also: &Arc<str>) -> Arc<str> {
    if from == also {
        return Arc::clone(from);
    }
    let mut roles: Vec<&str> = from.split(ROLES).chain(also.split(ROLES)).collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(ROLES).into()
}

/// A verdict with its grounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The answer.
    pub(crate) verdict: Verdict,
    /// The ids of the policies that decided: those that forbid, else those that permit; none if nothing permits.
    pub(crate) rules: Vec<Arc<str>>,
    /// The highest mode in which the verdict would not be a denial; `Disabled` if there is none.
    pub(crate) mode_at_most: Mode,
    /// The widest network with which it would not be.
    pub(crate) network_at_most: NetworkAccess,
    /// The version of the policy set that answered; 0 for the one that is shipped.
    pub(crate) policy_version: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approval(count: u32, from: &str) -> Verdict {
        Verdict::NeedsApproval {
            count,
            from: from.into(),
        }
    }

    #[test]
    fn what_several_policies_want_is_all_wanted() {
        let both = approval(2, "dba").and(&approval(1, "admin"));
        assert_eq!(both, approval(2, "admin+dba"));
        assert_eq!(both.and(&approval(3, "dba")), approval(3, "admin+dba"));
        for (one, other, all) in [
            (Verdict::Allow, Verdict::Allow, Verdict::Allow),
            (
                Verdict::Allow,
                Verdict::NeedsConfirmation,
                Verdict::NeedsConfirmation,
            ),
            (
                Verdict::NeedsConfirmation,
                approval(1, "a"),
                approval(1, "a"),
            ),
            (approval(1, "a"), Verdict::Deny, Verdict::Deny),
        ] {
            assert_eq!(one.clone().and(&other), all);
            assert_eq!(other.and(&one), all);
        }
    }
}
