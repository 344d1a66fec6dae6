//! What becomes of a task that a host was offered and its journal has never seen. Pure.

use crate::model::{Fence, State};
use muster_proto::v1::Reason;

/// What becomes of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is final: nothing.
    Nothing,
    /// It is proved that it never arrived: it waits again, and may be offered again.
    Waits,
    /// Nothing can be proved.
    Lost(Reason),
}

/// Judges a task that the host does not hold. `offered`: under what it may have been offered; `now`:
/// what the host attached with; `rolled_back`: its journal has fewer entries than were ever heard of.
pub(crate) fn not_held(
    state: State,
    offered: Option<&Fence>,
    now: &Fence,
    rolled_back: bool,
) -> Verdict {
    let Some(offered) = offered.filter(|_| !state.is_final()) else {
        return Verdict::Nothing;
    };
    if offered.journal_id != now.journal_id {
        return Verdict::Lost(Reason::HostRolledBack);
    }
    if offered.boot_id != now.boot_id {
        // A power cut may have taken the journal's last entries, with the process long gone.
        return Verdict::Lost(Reason::HostRebooted);
    }
    if rolled_back {
        return Verdict::Lost(Reason::HostRolledBack);
    }
    match state {
        // The journal is written before the process starts, so what it lacks has not started.
        State::Pending | State::AwaitingApproval => Verdict::Waits,
        // It once said that it runs: a journal that forgets was set back.
        _ => Verdict::Lost(Reason::HostRolledBack),
    }
}

/// What to tell people about it.
pub(crate) fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::HostRebooted => {
            "the host was restarted after the task was offered, and its journal does not know it: \
             it may have run; check before running it again"
        }
        _ => {
            "the agent's journal is new or older than what was heard from it, and does not know the task: \
             it may have run; check before running it again"
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fences() -> impl Strategy<Value = Fence> {
        ("[ab]", "[cd]").prop_map(|(boot, journal)| Fence {
            boot_id: boot.as_str().into(),
            journal_id: journal.as_str().into(),
        })
    }

    #[test]
    fn a_power_cut_that_took_entries_is_no_older_copy() {
        let fence = |boot: &str| Fence {
            boot_id: boot.into(),
            journal_id: "journal".into(),
        };
        let lost = |now: &str| not_held(State::Running, Some(&fence("boot")), &fence(now), true);
        assert_eq!(lost("another"), Verdict::Lost(Reason::HostRebooted));
        assert_eq!(lost("boot"), Verdict::Lost(Reason::HostRolledBack));
    }

    proptest! {
        #[test]
        fn nothing_runs_twice(
            state in proptest::sample::select(State::ALL.map(|(state, _)| state).to_vec()),
            offered in proptest::option::of(fences()), now in fences(), rolled_back: bool,
        ) {
            match not_held(state, offered.as_ref(), &now, rolled_back) {
                Verdict::Waits => {
                    prop_assert_eq!(offered, Some(now));
                    prop_assert!(!rolled_back && state != State::Running && !state.is_final());
                }
                Verdict::Lost(_) => prop_assert!(!state.is_final()),
                Verdict::Nothing => prop_assert!(state.is_final() || offered.is_none()),
            }
        }
    }
}
