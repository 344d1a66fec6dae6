//! What stands in the journal. Written with prost, so that fields can be added.

use bytes::Bytes;
use muster_proto::{agent::v1::task_state, ids::TaskId};

/// The first record of a file; not counted.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Header {
    /// Random, made with the journal.
    #[prost(string, tag = "1")]
    pub(crate) journal_id: String,
    /// How many entries came before those of this file.
    #[prost(int64, tag = "2")]
    pub(crate) base_position: i64,
    /// Bytes of the entries that the file began with.
    #[prost(uint64, tag = "3")]
    pub(crate) kept_bytes: u64,
}

/// One step.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    /// When, Unix milliseconds by the control plane's clock as far as it is known.
    #[prost(int64, tag = "1")]
    pub(crate) time_ms: i64,
    #[prost(oneof = "Event", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub(crate) event: Option<Event>,
}

/// What happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Event {
    /// The agent began; entries after this belong to that boot.
    #[prost(message, tag = "2")]
    Opened(Opened),
    /// A task was taken.
    #[prost(message, tag = "3")]
    Accepted(Accepted),
    /// Its process is about to be started by a supervisor. From here on it may have run.
    #[prost(message, tag = "4")]
    Starting(Starting),
    /// Its process runs.
    #[prost(message, tag = "5")]
    Started(Started),
    /// It is over.
    #[prost(message, tag = "6")]
    Ended(Ended),
    /// The control plane has all of it.
    #[prost(message, tag = "7")]
    Settled(Settled),
    /// It must never start, as it was cancelled before it came.
    #[prost(message, tag = "8")]
    Barred(Barred),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Opened {
    #[prost(string, tag = "1")]
    pub(crate) boot_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Accepted {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    /// The offer as it came.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) sealed_offer: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) seal: Bytes,
    /// The offer can come again until then, Unix milliseconds.
    #[prost(int64, tag = "4")]
    pub(crate) not_after_ms: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Starting {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    /// The supervisor that will start it: its process id, and when it began, in clock ticks since boot.
    #[prost(int32, tag = "2")]
    pub(crate) supervisor_pid: i32,
    #[prost(uint64, tag = "3")]
    pub(crate) supervisor_start_time: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Started {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) started: Option<task_state::Started>,
    /// When the process began, in clock ticks since boot; names it together with its id.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) start_time: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ended {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) ended: Option<task_state::Ended>,
    /// How much the process wrote, so that a loss after a power cut shows.
    #[prost(int64, tag = "3")]
    pub(crate) stdout_bytes: i64,
    #[prost(int64, tag = "4")]
    pub(crate) stderr_bytes: i64,
    #[prost(int64, tag = "5")]
    pub(crate) pty_bytes: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Settled {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    /// The highest sequence of its output.
    #[prost(int64, tag = "2")]
    pub(crate) last_sequence: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Barred {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    /// The note is kept until then, Unix milliseconds.
    #[prost(int64, tag = "2")]
    pub(crate) not_after_ms: i64,
}

/// Bytes of the words of an end that are kept once the task is settled.
const WORDS_MAX: usize = 256;

/// What is kept of an end once the task is settled: the history keeps receipt and result.
pub(super) fn lasting(mut ended: task_state::Ended) -> task_state::Ended {
    ended.receipt = Bytes::new();
    ended.unsigned_receipt = Bytes::new();
    ended.result = Bytes::new();
    let words = ended.message.floor_char_boundary(WORDS_MAX);
    ended.message.truncate(words);
    ended
}

impl Entry {
    pub(crate) fn new(time_ms: i64, event: Event) -> Self {
        Self {
            time_ms,
            event: Some(event),
        }
    }

    /// What of it is needed once the task is settled: that it was taken, until when it may come again, and how it ended;
    /// and if that is `unseen`, that it was to start.
    pub(super) fn lasting(self, unseen: bool) -> Option<Self> {
        let event = match self.event? {
            Event::Starting(_) | Event::Started(_) if !unseen => return None,
            Event::Accepted(accepted) => Event::Accepted(Accepted {
                sealed_offer: Bytes::new(),
                seal: Bytes::new(),
                ..accepted
            }),
            Event::Ended(ended) => Event::Ended(Ended {
                task_id: ended.task_id,
                ended: ended.ended.map(lasting),
                ..Ended::default()
            }),
            event => event,
        };
        Some(Self::new(self.time_ms, event))
    }

    /// The task that the entry is about; `None` for those about the agent itself.
    pub(crate) fn task_id(&self) -> Option<TaskId> {
        match self.event.as_ref()? {
            Event::Opened(_) => None,
            Event::Accepted(Accepted { task_id, .. })
            | Event::Starting(Starting { task_id, .. })
            | Event::Started(Started { task_id, .. })
            | Event::Ended(Ended { task_id, .. })
            | Event::Settled(Settled { task_id, .. })
            | Event::Barred(Barred { task_id, .. }) => task_id.parse().ok(),
        }
    }
}
