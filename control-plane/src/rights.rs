//! What policy lets somebody do, and how a refusal is told.

mod answering;
mod asker;
mod denied;
mod granted;

use std::sync::{Arc, LazyLock};

pub(crate) use self::asker::{Asker, suspended};
use crate::{
    access::{Access, AccessError},
    approvals::Grants,
    clock::now,
    model::{Principal, entry},
    policy::{
        Circumstances, Hour, Judgement, Policy, Resource, Right, Traits, Trip, Usage, Verdict, Who,
        unknown_traits,
    },
    store::jobs::Visible,
};

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
    /// How much principals have used lately.
    pub(crate) usage: Arc<Usage>,
    /// What was granted for a while.
    pub(crate) grants: Grants,
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
pub(crate) fn on_record(verdict: &Verdict) -> entry::Verdict {
    match verdict {
        Verdict::Allow => entry::Verdict::Allow,
        Verdict::Deny => entry::Verdict::Deny,
        Verdict::NeedsApproval { .. } => entry::Verdict::NeedsApproval,
        Verdict::NeedsConfirmation => entry::Verdict::NeedsConfirmation,
    }
}
