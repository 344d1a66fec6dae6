//! What policy answers.

use std::sync::Arc;

use super::{Mode, NetworkAccess};

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
        /// The role whose principals may approve.
        from: Arc<str>,
    },
    /// They may once the person at their client has confirmed it.
    NeedsConfirmation,
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
