//! Which tasks are in memory.

use std::{collections::HashMap, sync::Arc};

use muster_proto::ids::TaskId;
use parking_lot::Mutex;

use super::{outline::Outline, task::Task};

/// The tasks in memory: those with output under way, and those that were read a moment ago.
#[derive(Default)]
pub(super) struct Tasks {
    // Held for a look-up only.
    tasks: Mutex<HashMap<TaskId, Arc<Task>>>,
}

impl Tasks {
    /// A task that is in memory.
    pub(super) fn get(&self, task_id: TaskId) -> Option<Arc<Task>> {
        self.tasks.lock().get(&task_id).cloned()
    }

    /// The task, as it is if it came meanwhile, or else with what is known of it.
    pub(super) fn get_or_insert(&self, task_id: TaskId, outline: Outline) -> Arc<Task> {
        self.tasks
            .lock()
            .entry(task_id)
            .or_insert_with(|| Arc::new(Task::new(task_id, outline)))
            .clone()
    }

    /// Lets the tasks go that nobody uses; the index knows them.
    pub(super) fn evict(&self) {
        let mut tasks = self.tasks.lock();
        tasks.retain(|_, task| Arc::strong_count(task) > 1 || !task.is_idle());
        if tasks.capacity() > 4 * tasks.len() {
            tasks.shrink_to_fit();
        }
    }

    /// Drops what lies in a segment.
    pub(super) fn drop_segment(&self, segment: u32) {
        for task in self.tasks.lock().values() {
            task.drop_segment(segment);
        }
    }

    /// Lets tasks go for good: the index is about to forget them.
    pub(super) fn remove(&self, task_ids: &[TaskId]) {
        let mut tasks = self.tasks.lock();
        for task_id in task_ids {
            if let Some(task) = tasks.remove(task_id) {
                task.removed();
            }
        }
    }
}
