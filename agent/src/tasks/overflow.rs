//! What becomes of output that is more than a host keeps until the control plane has it.

use muster_proto::v1::{OutputLimit, output_limit::Policy};

use crate::spool::Keep;

/// Room for what is under way when a task is stopped from writing, bytes.
const UNDER_WAY: u64 = 2 << 20;

/// What a task's output is limited to, and what happens beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow {
    policy: Policy,
    /// Bytes that are kept.
    pub(crate) bytes: u64,
}

impl Overflow {
    /// As is asked for, within what the host keeps for one task.
    pub(crate) fn of(wanted: OutputLimit, host_bytes: u64) -> Self {
        let most = u64::try_from(wanted.max_bytes).unwrap_or(0);
        Self {
            policy: wanted.policy(),
            bytes: match most {
                0 => host_bytes,
                most => most.min(host_bytes),
            },
        }
    }

    /// The process waits until there is room again.
    pub(crate) fn blocks(self) -> bool {
        self.policy == Policy::Block
    }

    /// The task is ended.
    pub(crate) fn fails(self) -> bool {
        self.policy == Policy::Fail
    }

    /// What a spool keeps. Where nothing is dropped, all of it fits the half that is for the beginning.
    pub(crate) fn keep(self) -> Keep {
        match self.policy {
            Policy::Block | Policy::Fail => Keep::from(2 * (self.bytes + UNDER_WAY)),
            Policy::Unspecified | Policy::HeadTail => Keep::from(self.bytes),
            Policy::DropOldest => Keep {
                bytes: self.bytes,
                newest: true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overflow(policy: Policy, max_bytes: i64) -> Overflow {
        let wanted = OutputLimit {
            policy: policy.into(),
            max_bytes,
        };
        Overflow::of(wanted, 1000)
    }

    #[test]
    fn a_task_may_ask_for_less_than_the_host_keeps_and_not_for_more() {
        assert_eq!(overflow(Policy::Fail, 10).bytes, 10);
        assert_eq!(overflow(Policy::Fail, 5000).bytes, 1000);
        assert_eq!(overflow(Policy::Unspecified, 0).bytes, 1000);
        assert_eq!(overflow(Policy::HeadTail, 10).keep(), Keep::from(10));
        assert!(overflow(Policy::DropOldest, 10).keep().newest);
        assert!(overflow(Policy::Block, 10).keep().bytes > 2 * UNDER_WAY);
    }
}
