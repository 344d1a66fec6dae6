//! What keeps tasks of a job back before they are offered: an approval that is missing, a restore that holds them.

use std::sync::Arc;

use muster_proto::ids::HostId;

use super::Job;
use crate::model::{Hold, Order, State, Task, state::Event};

impl Job {
    /// Those whose approval it needs have given it: what awaits that may go until this deadline. Returns the tasks
    /// that this is news for.
    pub(crate) fn approve(&self, start_deadline_time: i64, now: i64) -> Vec<u32> {
        self.change(|inner| {
            let mut approved = Vec::new();
            for ordinal in 0..u32::try_from(inner.tasks.len()).unwrap_or(u32::MAX) {
                if inner.step(ordinal, Event::Approved, now) == Ok(true) {
                    inner.tasks[ordinal as usize].message = String::new();
                    inner.touch(ordinal);
                    approved.push(ordinal);
                }
            }
            if !approved.is_empty() {
                inner.approved = Some(Arc::new(Order {
                    start_deadline_time,
                    ..Order::clone(&self.order)
                }));
            }
            approved
        })
    }

    /// The host holds the task under our seal: its approval was given, whatever is written.
    pub(crate) fn proved_approved(&self, ordinal: u32, now: i64) {
        self.change(|inner| {
            if inner.step(ordinal, Event::Approved, now) == Ok(true) {
                inner.tasks[ordinal as usize].message = String::new();
                inner.touch(ordinal);
            }
        });
    }

    /// Says what the tasks that await approval wait for. Returns those tasks.
    pub(crate) fn await_approval(&self, message: &str) -> Vec<u32> {
        self.change(|inner| {
            let mut told = Vec::new();
            for ordinal in 0..u32::try_from(inner.tasks.len()).unwrap_or(u32::MAX) {
                let task = &mut inner.tasks[ordinal as usize];
                if task.state == State::AwaitingApproval && task.message != message {
                    message.clone_into(&mut task.message);
                    inner.touch(ordinal);
                    told.push(ordinal);
                }
            }
            told
        })
    }

    /// Holds back what is pending, until it is released.
    pub(crate) fn hold(&self, now: i64) {
        self.change(|inner| {
            for ordinal in 0..u32::try_from(inner.tasks.len()).unwrap_or(u32::MAX) {
                let task = &mut inner.tasks[ordinal as usize];
                if is_pending(task) {
                    task.hold = Hold::Held;
                    if task.offered.is_none() {
                        task.state_time = now;
                    }
                    inner.touch(ordinal);
                }
            }
        });
    }

    /// How many tasks are held.
    pub(crate) fn holds(&self) -> usize {
        let inner = self.inner.lock();
        let held = inner.tasks.iter();
        held.filter(|task| is_pending(task) && task.hold == Hold::Held)
            .count()
    }

    /// Lets go of what is held. Returns the hosts of those tasks.
    pub(crate) fn release(&self, now: i64) -> Vec<HostId> {
        self.change(|inner| {
            let mut hosts = Vec::new();
            for ordinal in 0..u32::try_from(inner.tasks.len()).unwrap_or(u32::MAX) {
                let task = &mut inner.tasks[ordinal as usize];
                if is_pending(task) && task.hold == Hold::Held {
                    task.hold = Hold::Released;
                    task.state_time = now;
                    hosts.push(task.host_id);
                    inner.touch(ordinal);
                }
            }
            hosts
        })
    }
}

fn is_pending(task: &Task) -> bool {
    matches!(task.state, State::Pending | State::AwaitingApproval)
}
