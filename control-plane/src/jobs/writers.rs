//! Who is attached to which task, and who of them writes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use muster_proto::ids::TaskId;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Jobs;

/// Who may be attached to one task at once.
const ATTACHED_MAX: usize = 256;

/// What somebody attaches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// To watch.
    Read,
    /// To write, if nobody does, or once nobody does any more.
    Write,
    /// To write, whoever does.
    TakeOver,
}

/// Who attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// As "operator/ada".
    pub(crate) principal: Arc<str>,
    /// Chosen by the client; empty if it cannot come back as the same one.
    pub(crate) attach_id: Arc<str>,
    /// Nobody else may put anything in while this one writes.
    pub(crate) exclusive: bool,
}

impl Client {
    /// The same one, come back.
    fn is_again(&self, other: &Client) -> bool {
        !self.attach_id.is_empty()
            && self.attach_id == other.attach_id
            && self.principal == other.principal
    }
}

/// Who writes to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writer {
    /// Who.
    pub(crate) client: Client,
    number: u64,
}

/// Who writes to which task. Tasks that nobody is attached to have no entry.
#[derive(Default)]
pub(super) struct Writers {
    desks: Mutex<HashMap<TaskId, Desk>>,
    next: AtomicU64,
}

struct Desk {
    writer: watch::Sender<Option<Writer>>,
    /// Who writes next, once nobody does.
    waiting: VecDeque<Writer>,
    attached: usize,
}

/// Somebody attached to a task. Dropping it detaches.
pub(crate) struct Attachment {
    writers: Arc<Writers>,
    task_id: TaskId,
    client: Client,
    number: u64,
    writer: watch::Receiver<Option<Writer>>,
}

impl Attachment {
    /// Who writes now.
    pub(crate) fn writer(&self) -> Option<Writer> {
        self.writer.borrow().clone()
    }

    /// Whether this one writes.
    pub(crate) fn writes(&self) -> bool {
        self.is(self.writer.borrow().as_ref())
    }

    /// Whether that is this one.
    pub(crate) fn is(&self, writer: Option<&Writer>) -> bool {
        writer.is_some_and(|writer| writer.number == self.number)
    }

    /// Whether this one writes once nobody does any more.
    pub(crate) fn is_next(&self) -> bool {
        let desks = self.writers.desks.lock();
        let next = desks
            .get(&self.task_id)
            .and_then(|desk| desk.waiting.front());
        self.is(next)
    }

    /// Whether the same client has come back, and this attachment is left over.
    pub(crate) fn is_left_over(&self) -> bool {
        let writer = self.writer.borrow();
        writer.as_ref().is_some_and(|writer| {
            writer.number != self.number && writer.client.is_again(&self.client)
        })
    }

    /// Returns when somebody else writes, or nobody any more, or this one again.
    pub(crate) async fn changed(&mut self) -> Option<Writer> {
        if self.writer.changed().await.is_err() {
            // Not while this one is attached.
            std::future::pending::<()>().await;
        }
        self.writer.borrow_and_update().clone()
    }

    /// Writes no more, and goes on watching.
    pub(crate) fn let_go(&self) {
        let mut desks = self.writers.desks.lock();
        if let Some(Desk {
            writer, waiting, ..
        }) = desks.get_mut(&self.task_id)
        {
            waiting.retain(|next| next.number != self.number);
            writer.send_if_modified(|writer| {
                let own = self.is(writer.as_ref());
                if own {
                    *writer = waiting.pop_front();
                }
                own
            });
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.let_go();
        let mut desks = self.writers.desks.lock();
        if let Some(desk) = desks.get_mut(&self.task_id) {
            desk.attached -= 1;
            if desk.attached == 0 {
                desks.remove(&self.task_id);
            }
        }
    }
}

impl Writers {
    fn attach(
        self: &Arc<Self>,
        task_id: TaskId,
        client: Client,
        access: Access,
    ) -> Option<Attachment> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut desks = self.desks.lock();
        let desk = desks.entry(task_id).or_insert_with(|| Desk {
            writer: watch::Sender::new(None),
            waiting: VecDeque::new(),
            attached: 0,
        });
        if desk.attached >= ATTACHED_MAX {
            return None;
        }
        desk.attached += 1;
        let own = Writer {
            client: client.clone(),
            number,
        };
        let taken = desk.writer.send_if_modified(|writer| {
            let taken = match access {
                Access::Read => false,
                Access::Write => writer
                    .as_ref()
                    .is_none_or(|writer| writer.client.is_again(&client)),
                Access::TakeOver => true,
            };
            if taken {
                *writer = Some(own.clone());
            }
            taken
        });
        if access == Access::Write && !taken {
            desk.waiting.push_back(own);
        }
        // From here on changes are news.
        let mut writer = desk.writer.subscribe();
        writer.mark_unchanged();
        Some(Attachment {
            writers: Arc::clone(self),
            task_id,
            client,
            number,
            writer,
        })
    }

    fn of(&self, task_id: TaskId) -> Option<Writer> {
        let desks = self.desks.lock();
        let desk = desks.get(&task_id)?;
        let writer = desk.writer.borrow();
        writer.clone()
    }
}

impl Jobs {
    /// Attaches somebody to a task; `None` if too many are.
    pub(crate) fn attach(
        &self,
        task_id: TaskId,
        client: Client,
        access: Access,
    ) -> Option<Attachment> {
        self.0.writers.attach(task_id, client, access)
    }

    /// Who is attached to a task and writes to it.
    pub(crate) fn writer(&self, task_id: TaskId) -> Option<Writer> {
        self.0.writers.of(task_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> TaskId {
        TaskId::from_bytes(&[1; 32])
    }

    fn client(principal: &str, attach_id: &str) -> Client {
        Client {
            principal: principal.into(),
            attach_id: attach_id.into(),
            exclusive: false,
        }
    }

    #[test]
    fn one_writes_and_a_takeover_waits_for_nobody() {
        let writers = Arc::new(Writers::default());
        let attach = |who, access| writers.attach(task(), client(who, ""), access).unwrap();
        let first = attach("operator/ada", Access::Write);
        let second = attach("ai/claude", Access::Write);
        assert!(first.writes() && !second.writes());
        assert!(second.is_next() && !first.is_next());
        let third = attach("operator/bob", Access::TakeOver);
        assert!(third.writes() && !first.writes());
        assert!(second.is_next() && !first.is_next(), "it was taken over");
        assert_eq!(&*first.writer().unwrap().client.principal, "operator/bob");
        drop(third);
        assert!(second.writes(), "it has waited for that");
        assert!(!first.writes(), "it was taken over");
        drop(second);
        assert_eq!(first.writer(), None);
        assert_eq!(writers.of(task()), None);
        let fourth = attach("ai/claude", Access::Write);
        assert!(fourth.writes());
        drop((first, fourth));
        assert!(writers.desks.lock().is_empty());
    }

    #[test]
    fn the_same_client_comes_back_as_the_writer_it_was() {
        let writers = Arc::new(Writers::default());
        let attach = |who, id, access| writers.attach(task(), client(who, id), access).unwrap();
        let old = attach("operator/ada", "a", Access::Write);
        let other = attach("operator/bob", "a", Access::Write);
        assert!(!other.writes(), "another principal");
        let new = attach("operator/ada", "a", Access::Write);
        assert!(new.writes() && old.is_left_over() && !other.is_left_over());
        drop(old);
        assert!(new.writes(), "what is left over takes nothing with it");
    }

    #[tokio::test]
    async fn whoever_wrote_is_told() {
        let writers = Arc::new(Writers::default());
        let attach = |who, access| writers.attach(task(), client(who, ""), access).unwrap();
        let mut first = attach("operator/ada", Access::Write);
        let second = attach("operator/bob", Access::TakeOver);
        let writer = first.changed().await.unwrap();
        assert_eq!(&*writer.client.principal, "operator/bob");
        second.let_go();
        assert_eq!(first.changed().await, None);
    }

    #[test]
    fn a_task_has_room_for_so_many() {
        let writers = Arc::new(Writers::default());
        let all: Vec<_> = (0..ATTACHED_MAX)
            .map(|_| {
                writers
                    .attach(task(), client("a", ""), Access::Read)
                    .unwrap()
            })
            .collect();
        assert!(
            writers
                .attach(task(), client("a", ""), Access::Read)
                .is_none()
        );
        drop(all);
        assert!(
            writers
                .attach(task(), client("a", ""), Access::Read)
                .is_some()
        );
    }
}
