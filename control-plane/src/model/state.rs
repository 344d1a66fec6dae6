//! Where a task stands, and what moves it. Pure.
//!
//! | from \ event       | Approved | Started | Ended(s)                      | Withdrawn(w) | GaveUp |
//! | ------------------ | -------- | ------- | ----------------------------- | ------------ | ------ |
//! | AwaitingApproval   | Pending  | –       | –                             | w            | –      |
//! | Pending, unoffered | same     | –       | –                             | w            | –      |
//! | Pending, offered   | same     | Running | s                             | –            | Lost   |
//! | Running            | same     | same    | s, unless it says "never ran" | –            | Lost   |
//! | Lost               | same     | same    | same (kept beside it)         | –            | same   |
//! | other final        | same     | same    | same if equal                 | –            | same   |
//!
//! `Started` and `Ended` are what the agent's journal says. `Withdrawn` is the control plane's own
//! word, and holds only for a task that never left it. `Approved` is what lets a task leave at all: nothing
//! else moves one that awaits approval but being taken back. "–" cannot happen and is refused.

use muster_proto::v1::task;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Waits for somebody's approval.
    AwaitingApproval,
    /// Not started, as far as anyone has proved.
    Pending,
    /// Its process runs.
    Running,
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal, or it could not be started.
    Failed,
    /// Refused by policy; never ran.
    Rejected,
    /// Its start deadline passed; never ran.
    Expired,
    /// Ran longer than its timeout and was ended.
    TimedOut,
    /// Ended on request, or never ran because of it.
    Cancelled,
    /// What became of it cannot be proved.
    Lost,
}

/// What the control plane alone may make of a task that it never offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Withdrawal {
    /// Its start deadline passed.
    Expired,
    /// Cancelled on request.
    Cancelled,
    /// It needed an approval, and did not get it.
    Rejected,
}

/// What happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Those whose approval it needs have given it.
    Approved,
    /// The host's journal says that the process runs.
    Started,
    /// The host's journal says how it ended.
    Ended(State),
    /// The control plane takes it back before any offer.
    Withdrawn(Withdrawal),
    /// Its fate cannot be proved any more.
    GaveUp,
}

/// An event that cannot follow on a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {from} cannot take {event:?}")]
pub(crate) struct NotAllowed {
    /// The state.
    pub(crate) from: State,
    /// The event.
    pub(crate) event: Event,
}

impl From<State> for task::State {
    fn from(state: State) -> Self {
        match state {
            State::AwaitingApproval => task::State::AwaitingApproval,
            State::Pending => task::State::Pending,
            State::Running => task::State::Running,
            State::Succeeded => task::State::Succeeded,
            State::Failed => task::State::Failed,
            State::Rejected => task::State::Rejected,
            State::Expired => task::State::Expired,
            State::TimedOut => task::State::TimedOut,
            State::Cancelled => task::State::Cancelled,
            State::Lost => task::State::Lost,
        }
    }
}

impl State {
    /// Every state with its name in the ledger.
    pub(crate) const ALL: [(State, &'static str); 10] = [
        (State::AwaitingApproval, "awaiting_approval"),
        (State::Pending, "pending"),
        (State::Running, "running"),
        (State::Succeeded, "succeeded"),
        (State::Failed, "failed"),
        (State::Rejected, "rejected"),
        (State::Expired, "expired"),
        (State::TimedOut, "timed_out"),
        (State::Cancelled, "cancelled"),
        (State::Lost, "lost"),
    ];

    /// The name in the ledger.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The state of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(state, _)| *state)
    }

    /// Nothing moves it any more.
    pub(crate) fn is_final(self) -> bool {
        !matches!(
            self,
            State::AwaitingApproval | State::Pending | State::Running
        )
    }

    /// The state after `event`, or why that cannot happen. `offered`: the task may have left the
    /// control plane.
    pub(crate) fn after(self, offered: bool, event: Event) -> Result<State, NotAllowed> {
        use State::{AwaitingApproval, Expired, Lost, Pending, Rejected, Running};
        let refused = NotAllowed { from: self, event };
        match (self, event) {
            (_, Event::Ended(end)) if !end.is_final() => Err(refused),
            (AwaitingApproval, Event::Approved) if !offered => Ok(Pending),
            (AwaitingApproval, Event::Approved) => Err(refused),
            (state, Event::Approved) => Ok(state),
            (AwaitingApproval | Pending, Event::Withdrawn(withdrawal)) if !offered => {
                Ok(withdrawal.into())
            }
            (Pending, Event::Started) if offered => Ok(Running),
            (Pending, Event::Ended(end)) if offered => Ok(end),
            (Pending, Event::GaveUp) if offered => Ok(Lost),
            (Running, Event::Started) => Ok(Running),
            (Running, Event::Ended(Rejected | Expired)) => Err(refused),
            (Running, Event::Ended(end)) => Ok(end),
            (Running, Event::GaveUp) => Ok(Lost),
            (Lost, Event::Ended(_)) => Ok(Lost),
            (end, Event::Ended(again)) if end == again => Ok(end),
            (end, Event::Started | Event::GaveUp) if end.is_final() => Ok(end),
            _ => Err(refused),
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Withdrawal> for State {
    fn from(withdrawal: Withdrawal) -> Self {
        match withdrawal {
            Withdrawal::Expired => State::Expired,
            Withdrawal::Cancelled => State::Cancelled,
            Withdrawal::Rejected => State::Rejected,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn states() -> impl Strategy<Value = State> {
        proptest::sample::select(State::ALL.map(|(state, _)| state).to_vec())
    }

    fn withdrawals() -> impl Strategy<Value = Withdrawal> {
        proptest::sample::select(vec![
            Withdrawal::Expired,
            Withdrawal::Cancelled,
            Withdrawal::Rejected,
        ])
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Approved),
            Just(Event::Started),
            states().prop_map(Event::Ended),
            withdrawals().prop_map(Event::Withdrawn),
            Just(Event::GaveUp),
        ]
    }

    proptest! {
        #[test]
        fn a_final_state_never_changes(state in states(), offered: bool, event in events()) {
            prop_assume!(state.is_final());
            if let Ok(after) = state.after(offered, event) {
                prop_assert_eq!(after, state);
            }
        }

        #[test]
        fn an_offered_task_is_ended_by_its_host_or_lost(history in prop::collection::vec(events(), 0..8)) {
            let mut state = State::Pending;
            for event in history {
                let Ok(after) = state.after(true, event) else { continue };
                if after.is_final() && !state.is_final() {
                    let proved = matches!(event, Event::Ended(_)) || after == State::Lost;
                    prop_assert!(proved, "{:?} made it {}", event, after);
                }
                state = after;
            }
        }

        #[test]
        fn an_unoffered_task_never_runs(history in prop::collection::vec(events(), 0..8)) {
            let mut state = State::Pending;
            for event in history {
                state = state.after(false, event).unwrap_or(state);
                prop_assert!(!matches!(
                    state,
                    State::Running | State::Succeeded | State::Failed | State::TimedOut | State::Lost
                ));
            }
        }

        #[test]
        fn without_an_approval_a_task_waits_or_is_taken_back(
            offered: bool, history in prop::collection::vec(events(), 0..8)
        ) {
            let mut state = State::AwaitingApproval;
            for event in history.into_iter().filter(|event| *event != Event::Approved) {
                let before = state;
                state = state.after(offered, event).unwrap_or(state);
                let taken_back = !offered && matches!(event, Event::Withdrawn(_));
                prop_assert!(before != State::AwaitingApproval || state == before || taken_back);
                prop_assert!(!matches!(state, State::Pending | State::Running | State::Succeeded | State::Failed));
            }
        }

        #[test]
        fn an_approval_moves_only_what_awaits_it(state in states(), offered: bool) {
            match state.after(offered, Event::Approved) {
                Ok(after) if state == State::AwaitingApproval => {
                    prop_assert!(!offered && after == State::Pending);
                }
                Ok(after) => prop_assert_eq!(after, state),
                Err(_) => prop_assert!(offered && state == State::AwaitingApproval),
            }
        }

        #[test]
        fn reports_may_come_twice(state in states(), event in events()) {
            if let Ok(after) = state.after(true, event)
                && matches!(event, Event::Started | Event::Ended(_))
            {
                prop_assert_eq!(after.after(true, event), Ok(after));
            }
        }
    }

    #[test]
    fn names_read_back() {
        for (state, name) in State::ALL {
            assert_eq!(state.name(), name);
            assert_eq!(State::from_name(name), Some(state));
        }
    }
}
