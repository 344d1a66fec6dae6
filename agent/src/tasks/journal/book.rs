//! What the entries add up to: where each task stands. Pure.

use std::{
    collections::{HashMap, HashSet},
    iter,
};

use bytes::Bytes;
use muster_proto::{
    agent::v1::task_state,
    ids::TaskId,
    v1::{Reason, task::State},
};
use prost::Message as _;

use super::entry::{Entry, Event, lasting};
use crate::{spool::Produced, supervision::SupervisorId};

/// A settled task is remembered at least this long after its last entry, milliseconds.
const REMEMBERED_MS: i64 = 7 * 24 * 3600 * 1000;

/// What the journal knows about a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Held {
    pub(crate) task_id: TaskId,
    /// The boot under which it was taken.
    pub(crate) boot_id: String,
    /// The offer and its seal; empty for one that was barred or is settled.
    pub(crate) sealed_offer: Bytes,
    pub(crate) seal: Bytes,
    pub(crate) phase: Phase,
    /// Set once its process ran.
    pub(crate) started: Option<task_state::Started>,
    /// When its process began, in clock ticks since boot.
    pub(crate) start_time: Option<u64>,
    /// The supervisor that was to start it; `None` if it was not starting yet.
    pub(crate) supervisor: Option<SupervisorId>,
    /// How much it wrote, once it has ended.
    pub(crate) produced: Option<Produced>,
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Taken, and nothing was started.
    Accepted,
    /// Its process was about to be started; nobody knows whether it was.
    Starting,
    /// Its process ran when this was written.
    Started,
    /// It is over.
    Ended(task_state::Ended),
    /// The control plane has all of it.
    Settled {
        /// How it ended, without its receipt.
        ended: Option<task_state::Ended>,
        /// The highest sequence of its output.
        last_sequence: i64,
    },
    /// It must never start.
    Barred,
}

/// Where all tasks stand.
#[derive(Debug, Default)]
pub(super) struct Book {
    position: i64,
    boot_id: String,
    live: HashMap<TaskId, Held>,
    /// Most of what is known, so kept small.
    settled: HashMap<TaskId, Past>,
    barred: HashMap<TaskId, i64>,
    /// Start deadlines of what is live, Unix milliseconds.
    not_after_ms: HashMap<TaskId, i64>,
}

#[derive(Debug)]
struct Past {
    forget_ms: i64,
    last_sequence: i64,
    end: End,
}

/// What is known of how a settled task ended.
#[derive(Debug)]
enum End {
    /// It never came to a start, or nobody says so.
    None,
    /// It may have run.
    Unseen,
    /// As it is written, which takes a fifth of the memory.
    Known(Box<[u8]>),
}

impl Past {
    fn ended(&self) -> Option<task_state::Ended> {
        match &self.end {
            End::None => None,
            End::Unseen => Some(unseen()),
            End::Known(bytes) => task_state::Ended::decode(&**bytes).ok(),
        }
    }
}

impl Held {
    pub(crate) fn new(task_id: TaskId, boot_id: &str, phase: Phase) -> Self {
        Self {
            task_id,
            boot_id: boot_id.to_owned(),
            sealed_offer: Bytes::new(),
            seal: Bytes::new(),
            phase,
            started: None,
            start_time: None,
            supervisor: None,
            produced: None,
        }
    }
}

impl Book {
    pub(super) fn new(base_position: i64) -> Self {
        Self {
            position: base_position,
            ..Self::default()
        }
    }

    pub(super) fn position(&self) -> i64 {
        self.position
    }

    pub(super) fn find(&self, task_id: &TaskId) -> Option<Held> {
        if let Some(held) = self.live.get(task_id) {
            return Some(held.clone());
        }
        let phase = match (self.settled.get(task_id), self.barred.get(task_id)) {
            (Some(past), _) => Phase::Settled {
                ended: past.ended(),
                last_sequence: past.last_sequence,
            },
            (None, Some(_)) => Phase::Barred,
            (None, None) => return None,
        };
        Some(Held::new(*task_id, "", phase))
    }

    /// Tasks that the control plane has not settled.
    pub(super) fn unsettled(&self) -> Vec<Held> {
        self.live.values().cloned().collect()
    }

    /// Takes in the next entry.
    pub(super) fn enter(&mut self, entry: Entry) {
        self.position += 1;
        let task_id = entry.task_id();
        let (Some(event), Some(task_id)) = (entry.event, task_id) else {
            return;
        };
        match event {
            Event::Opened(_) => {}
            Event::Accepted(accepted) => {
                self.not_after_ms.insert(task_id, accepted.not_after_ms);
                self.live.insert(
                    task_id,
                    Held {
                        sealed_offer: accepted.sealed_offer,
                        seal: accepted.seal,
                        ..Held::new(task_id, &self.boot_id, Phase::Accepted)
                    },
                );
            }
            Event::Barred(barred) => {
                self.barred.insert(task_id, barred.not_after_ms);
                self.not_after_ms.insert(task_id, barred.not_after_ms);
                // That it is barred has to be reported too.
                self.live
                    .entry(task_id)
                    .or_insert_with(|| Held::new(task_id, &self.boot_id, Phase::Barred));
            }
            Event::Starting(starting) => self.go_on(task_id, |held| {
                held.phase = Phase::Starting;
                held.supervisor = (starting.supervisor_pid > 0).then_some(SupervisorId {
                    pid: starting.supervisor_pid,
                    start_time: starting.supervisor_start_time,
                });
            }),
            Event::Started(started) => self.go_on(task_id, |held| {
                held.phase = Phase::Started;
                held.started = started.started;
                held.start_time = started.start_time;
            }),
            Event::Ended(ended) => self.advance(task_id, |held| {
                held.produced = Some([ended.stdout_bytes, ended.stderr_bytes, ended.pty_bytes]);
                held.phase = Phase::Ended(ended.ended.unwrap_or_default());
            }),
            Event::Settled(settled) => {
                // Offered again after that, it is settled again; what was known of it stays known.
                let (earlier_ms, earlier) = match self.settled.remove(&task_id) {
                    Some(past) => (past.forget_ms, past.end),
                    None => (0, End::None),
                };
                let end = match self.live.remove(&task_id).map(|held| held.phase) {
                    Some(Phase::Ended(ended)) => {
                        End::Known(lasting(ended).encode_to_vec().into_boxed_slice())
                    }
                    Some(Phase::Starting | Phase::Started) => End::Unseen,
                    _ => earlier,
                };
                let not_after_ms = self.not_after_ms.remove(&task_id).unwrap_or(0);
                self.settled.insert(
                    task_id,
                    Past {
                        forget_ms: earlier_ms.max(not_after_ms.max(entry.time_ms + REMEMBERED_MS)),
                        last_sequence: settled.last_sequence,
                        end,
                    },
                );
            }
        }
    }

    /// The entries after this belong to that boot.
    pub(super) fn begin(&mut self, boot_id: &str) {
        boot_id.clone_into(&mut self.boot_id);
    }

    fn advance(&mut self, task_id: TaskId, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.live.get_mut(&task_id) {
            change(held);
        }
    }

    /// The same for a step before the end: what is over stays over.
    fn go_on(&mut self, task_id: TaskId, change: impl FnOnce(&mut Held)) {
        self.advance(task_id, |held| {
            if !matches!(held.phase, Phase::Ended(_)) {
                change(held);
            }
        });
    }

    /// Lets go of what nobody can ask about any more.
    pub(super) fn forget(&mut self, now_ms: i64) {
        self.settled.retain(|_, past| past.forget_ms > now_ms);
        let live = &self.live;
        self.barred
            .retain(|task_id, until| *until > now_ms || live.contains_key(task_id));
    }

    /// Whether a task is settled, and nothing but its start says that it may have run.
    pub(super) fn settled_unseen(&self, task_id: &TaskId) -> Option<bool> {
        let past = self.settled.get(task_id)?;
        Some(matches!(past.end, End::Unseen))
    }

    /// The tasks of which everything is needed.
    pub(super) fn open_tasks(&self) -> HashSet<TaskId> {
        self.live
            .keys()
            .chain(self.barred.keys())
            .copied()
            .collect()
    }
}

/// How a task ended whose end the journal does not have: it may have run, and that is all that is known.
fn unseen() -> task_state::Ended {
    task_state::Ended {
        state: State::Lost.into(),
        reason: Reason::AgentDied.into(),
        message: "it was settled before its agent had written down how it ended".to_owned(),
        ..task_state::Ended::default()
    }
}

/// Those entries that are still needed, in their order: all of the `open` tasks, of those that are settled what lasts,
/// nothing of others.
pub(super) fn needed<E>(
    all: impl Iterator<Item = Result<Entry, E>>,
    open: &HashSet<TaskId>,
    settled_unseen: impl Fn(&TaskId) -> Option<bool>,
) -> impl Iterator<Item = Result<Entry, E>> {
    let needed = move |entry: Entry| match entry.task_id() {
        None => is_beginning(&entry).then_some(entry),
        Some(task_id) if open.contains(&task_id) => Some(entry),
        Some(task_id) => entry.lasting(settled_unseen(&task_id)?),
    };
    let mut entries = all
        .filter_map(move |entry| entry.map(&needed).transpose())
        .peekable();
    // One boot after another without a task between them says nothing.
    let begins = |entry: &Result<Entry, E>| entry.as_ref().is_ok_and(is_beginning);
    iter::from_fn(move || {
        loop {
            let entry = entries.next()?;
            if !begins(&entry) || !entries.peek().is_some_and(begins) {
                return Some(entry);
            }
        }
    })
}

/// Whether an agent begins with it.
fn is_beginning(entry: &Entry) -> bool {
    matches!(entry.event, Some(Event::Opened(_)))
}
