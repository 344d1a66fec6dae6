//! Supervisors that somebody has stopped, as an unconfined task can its own: such a one hears nothing, says nothing and
//! holds no task to its time, and its connection stays open all the same.

use std::{collections::HashMap, time::Duration};

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::Tasks;
use crate::supervision::SupervisorId;

/// How often the supervisors of tasks are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// One that is found stopped so often, one time after the other, is ended: whoever stops it again and again keeps its
/// task from being cancelled and from running out of time.
const STOPPED_MAX: u32 = 3;

impl Tasks {
    /// Lets supervisors with a task go on that were stopped, until told to stop.
    pub(crate) async fn keep_awake(self, stop: CancellationToken) {
        let mut stopped = HashMap::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            stopped = self
                .supervisors_at_work()
                .filter(SupervisorId::is_stopped)
                .map(|id| (id, stopped.get(&id).unwrap_or(&0) + 1))
                .collect();
            for (id, times) in &stopped {
                let (signal, what) = match *times < STOPPED_MAX {
                    true => (Signal::SIGCONT, "goes on"),
                    false => (Signal::SIGKILL, "was ended: it was stopped again and again"),
                };
                let pid = id.pid;
                tracing::warn!(
                    pid,
                    "the supervisor of a task, process {pid}, was found stopped, and {what}"
                );
                id.signal(signal);
            }
        }
    }

    fn supervisors_at_work(&self) -> impl Iterator<Item = SupervisorId> {
        let held: Vec<_> = self.0.held.lock().values().cloned().collect();
        let unfinished = held.into_iter().filter(|task| !task.is_over());
        unfinished.filter_map(|task| self.0.journal.find(&task.id)?.supervisor)
    }
}
