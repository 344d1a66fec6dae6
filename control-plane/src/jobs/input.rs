//! Input on its way to a task: from whoever writes to the task's live report, and the answer back.
//!
//! Nothing is stored. Each report that is open has a road with room for a little; what finds no room, or no road, is
//! told so. The host makes sure that an input which comes twice is carried out once.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{ids::TaskId, v1::Reason};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Jobs, TaskRef};
use crate::model::State;

/// Inputs that may wait for a task's report.
const QUEUE: usize = 16;

/// Something for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes for standard input.
    Data(Bytes),
    /// Standard input ends.
    Close,
    /// The terminal has another size.
    Resize {
        /// Lines.
        rows: i32,
        /// Characters in a line.
        columns: i32,
    },
    /// A signal, by its name.
    Signal(String),
}

impl Input {
    /// Comes one after the other with others of its kind. Signals and sizes may go ahead.
    pub(crate) fn has_order(&self) -> bool {
        matches!(self, Self::Data(_) | Self::Close)
    }
}

/// What became of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The process has it, or its pipe or terminal does.
    Accepted,
    /// The process has not started.
    Starting,
    /// Standard input is closed, or the process has ended.
    Closed,
    /// What was put in before has not been read yet.
    Full,
    /// The host does not know the task.
    Unknown,
    /// The host cannot be asked: it is not connected, or did not answer. Asking again is safe.
    Away(Reason),
}

/// An input on the road.
pub(crate) struct Put {
    /// Names it for the host.
    pub(crate) write_id: Arc<str>,
    /// The input itself.
    pub(crate) input: Input,
    /// Dropped without an answer if the report breaks.
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// The roads of all tasks whose reports are open.
#[derive(Default)]
pub(super) struct Roads {
    // Held for a look-up only.
    roads: Mutex<HashMap<TaskId, mpsc::Sender<Put>>>,
}

/// A report's end of a road. Dropping it closes the road.
pub(crate) struct Road {
    puts: mpsc::Receiver<Put>,
    task_id: TaskId,
    own: mpsc::WeakSender<Put>,
    roads: Weak<Roads>,
}

impl Road {
    /// The next input that somebody still waits for; never ends.
    pub(crate) async fn next(&mut self) -> Put {
        loop {
            match self.puts.recv().await {
                // Whoever gave up was told that nobody knows; then it is better not carried out.
                Some(put) if put.answer.is_closed() => {}
                Some(put) => return put,
                // A newer report of the task has its own road.
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        let Some(roads) = self.roads.upgrade() else {
            return;
        };
        let mut roads = roads.roads.lock();
        let own = self.own.upgrade();
        if let (Some(current), Some(own)) = (roads.get(&self.task_id), own)
            && current.same_channel(&own)
        {
            roads.remove(&self.task_id);
        }
    }
}

impl Roads {
    fn open(self: &Arc<Self>, task_id: TaskId) -> Road {
        let (sender, puts) = mpsc::channel(QUEUE);
        let own = sender.downgrade();
        self.roads.lock().insert(task_id, sender);
        Road {
            puts,
            task_id,
            own,
            roads: Arc::downgrade(self),
        }
    }

    fn get(&self, task_id: TaskId) -> Option<mpsc::Sender<Put>> {
        self.roads.lock().get(&task_id).cloned()
    }
}

impl Jobs {
    /// A report of the task is open: input goes there from now on.
    pub(crate) fn open_road(&self, task_id: TaskId) -> Road {
        self.0.roads.open(task_id)
    }

    /// Puts something into a task, and waits at most `limit` for its host to say what became of it.
    pub(crate) async fn put_in(
        &self,
        task: &TaskRef,
        write_id: Arc<str>,
        input: Input,
        limit: Duration,
    ) -> Answer {
        if let Some(answer) = standing(task) {
            return answer;
        }
        let away = || standing(task).unwrap_or(Answer::Away(Reason::HostDisconnected));
        let Some(road) = self.0.roads.get(task.look(|task| task.task_id)) else {
            return away();
        };
        let (answer, answered) = oneshot::channel();
        let put = Put {
            write_id,
            input,
            answer,
        };
        match road.try_send(put) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Answer::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => return away(),
        }
        // A road that is closed lets go of what waits on it.
        drop(road);
        match timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => away(),
            Err(_) => standing(task).unwrap_or(Answer::Away(Reason::HostSilent)),
        }
    }
}

/// What the task's state says by itself; `None` while it runs.
fn standing(task: &TaskRef) -> Option<Answer> {
    match task.look(|task| task.state) {
        State::AwaitingApproval | State::Pending => Some(Answer::Starting),
        State::Running => None,
        _ => Some(Answer::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put() -> (Put, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let put = Put {
            write_id: "w".into(),
            input: Input::Close,
            answer,
        };
        (put, answered)
    }

    #[tokio::test]
    async fn the_newest_report_has_the_road() {
        let roads = Arc::new(Roads::default());
        let id = TaskId::from_bytes(&[1; 32]);
        let old = roads.open(id);
        let mut new = roads.open(id);
        drop(old);
        let (waiting, _answered) = put();
        roads.get(id).unwrap().try_send(waiting).unwrap();
        assert_eq!(&*new.next().await.write_id, "w");
        drop(new);
        assert!(roads.get(id).is_none());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_put_in() {
        let roads = Arc::new(Roads::default());
        let id = TaskId::from_bytes(&[1; 32]);
        let mut road = roads.open(id);
        let sender = roads.get(id).unwrap();
        let (given_up, answered) = put();
        sender.try_send(given_up).unwrap();
        drop(answered);
        let (mut waiting, _answered) = put();
        waiting.write_id = "second".into();
        sender.try_send(waiting).unwrap();
        assert_eq!(&*road.next().await.write_id, "second");
    }

    #[tokio::test]
    async fn a_road_has_room_for_a_little_and_lets_go_at_its_end() {
        let roads = Arc::new(Roads::default());
        let id = TaskId::from_bytes(&[1; 32]);
        let road = roads.open(id);
        let sender = roads.get(id).unwrap();
        let mut waiting = Vec::new();
        loop {
            let (put, answered) = put();
            if sender.try_send(put).is_err() {
                break;
            }
            waiting.push(answered);
        }
        assert_eq!(waiting.len(), QUEUE);
        drop((road, sender));
        for answered in waiting {
            assert!(answered.await.is_err(), "nobody will answer");
        }
    }
}
