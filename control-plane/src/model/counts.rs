//! How the tasks of a job stand, and what follows from that for the job. Pure.

use super::State;

/// Where a job stands; follows from its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobState {
    /// No task has started.
    Pending,
    /// A task has started, and some are not final.
    Running,
    /// Every task succeeded.
    Succeeded,
    /// Every task is final and one neither succeeded nor was cancelled.
    Failed,
    /// Every task is final, none failed and one was cancelled.
    Cancelled,
}

impl JobState {
    /// Every state with its name in the ledger.
    pub(crate) const ALL: [(JobState, &'static str); 5] = [
        (JobState::Pending, "pending"),
        (JobState::Running, "running"),
        (JobState::Succeeded, "succeeded"),
        (JobState::Failed, "failed"),
        (JobState::Cancelled, "cancelled"),
    ];

    /// The name in the ledger.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The state of a job with so many tasks in each state, of which one has ever started.
    pub(crate) fn of(counts: &Counts, started: bool) -> Self {
        let open = counts.iter().filter(|(state, _)| !state.is_final()).count();
        match () {
            () if open > 0 && started => Self::Running,
            () if open > 0 => Self::Pending,
            () if counts
                .iter()
                .any(|(state, _)| !matches!(state, State::Succeeded | State::Cancelled)) =>
            {
                Self::Failed
            }
            () if counts.of(State::Cancelled) > 0 => Self::Cancelled,
            () => Self::Succeeded,
        }
    }
}

/// How many tasks are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts([u32; State::ALL.len()]);

impl Counts {
    /// How many are in `state`.
    pub(crate) fn of(&self, state: State) -> u32 {
        self.0[state as usize]
    }

    /// Adds tasks in a state.
    pub(crate) fn add(&mut self, state: State, tasks: u32) {
        self.0[state as usize] += tasks;
    }

    /// The states that have tasks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (State, u32)> {
        State::ALL
            .into_iter()
            .map(|(state, _)| (state, self.of(state)))
            .filter(|(_, tasks)| *tasks > 0)
    }

    /// A task went from one state to another.
    pub(crate) fn moved(&mut self, from: State, to: State) {
        self.0[from as usize] -= 1;
        self.0[to as usize] += 1;
    }
}
