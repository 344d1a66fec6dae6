//! Pending task and host: what is to be done about the two. Pure.

use super::{Hold, State, Task, Withdrawal};

/// Why a pending task has not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Its host is not attached.
    Host,
    /// It may have left, and its host has not answered.
    Answer,
    /// Its host is locked or set aside.
    Unlock,
    /// It is next in line.
    Dispatch,
    /// The control plane was restored, and an operator has to release it.
    Release,
    /// The control plane was restored, and its host has to upload what it knows first.
    Upload,
}

/// What decides about a task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskView {
    /// The task's state.
    pub(crate) state: State,
    /// It may have left the control plane.
    pub(crate) offered: bool,
    /// Somebody asked to cancel it.
    pub(crate) cancelled: bool,
    /// Its start deadline has passed.
    pub(crate) overdue: bool,
    /// Whether a restore holds it back.
    pub(crate) hold: Hold,
}

impl TaskView {
    /// How a task looks at `now`. Its job's deadline is asked for before: a look at the task holds the job's lock.
    pub(crate) fn of(start_deadline_time: i64, task: &Task, now: i64) -> Self {
        Self {
            state: task.state,
            offered: task.offered.is_some(),
            cancelled: task.cancel_time.is_some(),
            overdue: now >= start_deadline_time,
            hold: task.hold,
        }
    }
}

impl TaskView {
    /// How a task that is only shown looks: what time makes of it, the sweeper writes.
    pub(crate) fn waiting(task: &Task) -> Self {
        Self {
            state: task.state,
            offered: task.offered.is_some(),
            cancelled: false,
            overdue: false,
            hold: task.hold,
        }
    }
}

/// How a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostView {
    /// It was removed.
    Gone,
    /// It is locked or set aside.
    Barred,
    /// Its agent is not attached.
    Away,
    /// Its agent is attached, and uploads what it knows since before a restore.
    Uploading,
    /// Its agent is attached.
    Attached,
}

/// What to do with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing: it is not pending.
    Nothing,
    /// It waits.
    Wait(Wait),
    /// It goes to its host now.
    Offer,
    /// The control plane takes it back; it never left.
    Withdraw(Withdrawal),
    /// Its host was removed before it was offered.
    WithdrawFromGone,
}

/// Decides about one task. `ledger_works`: what is written now can be made durable.
pub(crate) fn decide(task: TaskView, host: HostView, ledger_works: bool) -> Decision {
    if task.state != State::Pending {
        return Decision::Nothing;
    }
    if task.offered {
        return Decision::Wait(Wait::Answer);
    }
    if task.cancelled {
        return Decision::Withdraw(Withdrawal::Cancelled);
    }
    if host == HostView::Gone {
        return Decision::WithdrawFromGone;
    }
    if task.overdue {
        return Decision::Withdraw(Withdrawal::Expired);
    }
    if task.hold == Hold::Held {
        return Decision::Wait(Wait::Release);
    }
    match host {
        HostView::Gone => Decision::WithdrawFromGone,
        HostView::Barred => Decision::Wait(Wait::Unlock),
        HostView::Away => Decision::Wait(Wait::Host),
        HostView::Uploading if task.hold == Hold::Released => Decision::Wait(Wait::Upload),
        HostView::Attached | HostView::Uploading if ledger_works => Decision::Offer,
        HostView::Attached | HostView::Uploading => Decision::Wait(Wait::Dispatch),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_what_never_left_is_taken_back_or_sent(
            state in proptest::sample::select(State::ALL.map(|(state, _)| state).to_vec()),
            offered: bool, cancelled: bool, overdue: bool, works: bool,
            hold in proptest::sample::select(vec![Hold::None, Hold::Held, Hold::Released]),
            host in proptest::sample::select(vec![
                HostView::Gone, HostView::Barred, HostView::Away, HostView::Uploading, HostView::Attached
            ]),
        ) {
            let task = TaskView { state, offered, cancelled, overdue, hold };
            let decision = decide(task, host, works);
            match decision {
                Decision::Nothing => prop_assert_ne!(state, State::Pending),
                Decision::Wait(Wait::Answer) => prop_assert!(offered),
                Decision::Wait(_) => prop_assert!(!offered && !cancelled && !overdue),
                Decision::Offer => {
                    prop_assert!(!offered && !cancelled && !overdue && works);
                    let may = match hold {
                        Hold::None => matches!(host, HostView::Attached | HostView::Uploading),
                        Hold::Held => false,
                        Hold::Released => host == HostView::Attached,
                    };
                    prop_assert!(may);
                }
                Decision::Withdraw(_) | Decision::WithdrawFromGone => prop_assert!(!offered),
            }
        }
    }
}
