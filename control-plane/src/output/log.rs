//! The queue that leads to the thread that writes output.
//!
//! Appends queue their bytes, bounded by what is not yet written; the writer takes what has gathered and
//! writes it in one go, so that many small chunks cost few system calls. If the disk refuses, nothing new is taken
//! meanwhile.

mod writer;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, watch};

pub(super) use self::writer::Writer;
use super::{
    OutputError, checkpoint::Work, frame::HEADER_BYTES, item::Point, outline::Entry, task::Task,
};

/// Bytes taken and not yet written.
const QUEUE_BYTES: u32 = 16 << 20;

/// Enough to be written at once, bytes.
const GATHER_BYTES: usize = 256 << 10;

/// Frames written in one go. Each takes two of the 1,024 buffers that a system call accepts.
const BATCH_FRAMES: usize = 512;

/// An end of the log: a segment, and a length of it.
pub(super) type LogEnd = (u32, u64);

/// The way to the writer.
pub(super) struct Log {
    queue: Mutex<Queue>,
    ready: Condvar,
    room: Semaphore,
    /// Why nothing is taken, while that is so.
    refusing: watch::Sender<Option<Arc<str>>>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Queued>,
    /// Bytes of all frames.
    bytes: usize,
    /// The writer looks by itself before `GATHER` is over.
    awake: bool,
    work: Vec<Work>,
    failed: bool,
    closed: bool,
}

impl Queue {
    /// Says whether the writer has to be woken for it.
    fn take_in(&mut self, queued: Queued) -> bool {
        self.bytes += queued.payload.len();
        self.frames.push_back(queued);
        let wake = !self.awake || self.is_enough();
        self.awake |= wake;
        wake
    }

    fn is_enough(&self) -> bool {
        self.bytes >= GATHER_BYTES || self.frames.len() >= BATCH_FRAMES
    }

    /// Whether the writer has something to do at once.
    fn is_urgent(&self) -> bool {
        self.is_enough() || !self.work.is_empty() || self.closed
    }
}

/// A frame on its way to the disk.
pub(super) struct Queued {
    /// The task that wrote the output.
    pub(super) task: Arc<Task>,
    /// The entry that the frame stands for.
    pub(super) entry: Entry,
    /// The point where the frame begins.
    pub(super) from: Point,
    /// Its bytes as they will lie in the log, without the header.
    pub(super) payload: Bytes,
    /// A time stands before them.
    pub(super) timed: bool,
    /// Bytes that it takes of the queue's limit.
    pub(super) cost: u32,
}

impl Log {
    /// A way to a writer that is not started yet.
    pub(super) fn new() -> Log {
        Log {
            queue: Mutex::new(Queue::default()),
            ready: Condvar::new(),
            room: Semaphore::new(QUEUE_BYTES as usize),
            refusing: watch::Sender::new(None),
        }
    }

    /// Waits for room for a payload. Returns what it costs; the room is given back once it is written.
    pub(super) async fn reserve(
        &self,
        payload_bytes: usize,
    ) -> Result<Reservation<'_>, OutputError> {
        let cost = u32::try_from(HEADER_BYTES + payload_bytes)
            .unwrap_or(u32::MAX)
            .min(QUEUE_BYTES);
        self.check()?;
        let permit = match self.room.try_acquire_many(cost) {
            Ok(permit) => permit,
            Err(_) => {
                let mut refusing = self.refusing.subscribe();
                tokio::select! {
                    permit = self.room.acquire_many(cost) => {
                        permit.map_err(|_| stopping())?
                    }
                    _ = refusing.wait_for(Option::is_some) => {
                        self.check()?;
                        return Err(stopping());
                    }
                }
            }
        };
        Ok(Reservation { permit, cost })
    }

    fn check(&self) -> Result<(), OutputError> {
        match &*self.refusing.borrow() {
            Some(why) => Err(OutputError::Unavailable(why.to_string())),
            None => Ok(()),
        }
    }

    /// Stops taking output until the next start, and says why.
    pub(super) fn fail(&self, why: &str) {
        self.queue.lock().failed = true;
        self.refuse(why);
    }

    fn refuse(&self, why: &str) {
        self.refusing.send_replace(Some(why.into()));
    }

    /// Takes output again after a refusal.
    fn accept(&self) {
        let queue = self.queue.lock();
        if !queue.failed && !queue.closed {
            self.refusing.send_replace(None);
        }
    }

    /// Queues a frame. The caller holds the task's lock, so that its frames are queued in order.
    pub(super) fn push(&self, queued: Queued) {
        let wake = self.queue.lock().take_in(queued);
        if wake {
            self.ready.notify_one();
        }
    }

    /// Has work done after the checkpoints before it.
    pub(super) fn request(&self, work: Work) {
        self.queue.lock().work.push(work);
        self.ready.notify_one();
    }

    /// Lets the writer finish.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.refuse("the control plane is stopping");
        self.ready.notify_one();
    }
}

/// Room in the queue.
pub(super) struct Reservation<'a> {
    permit: tokio::sync::SemaphorePermit<'a>,
    /// Bytes that it takes of the queue's limit.
    pub(super) cost: u32,
}

impl Reservation<'_> {
    /// The writer gives the room back.
    pub(super) fn hand_over(self) {
        self.permit.forget();
    }
}

/// What those hear who come too late.
pub(super) fn stopping() -> OutputError {
    OutputError::Unavailable("the control plane is stopping".to_owned())
}

#[cfg(test)]
mod tests {
    use muster_proto::ids::TaskId;

    use super::*;
    use crate::{model::Stream, output::outline::Outline};

    fn queued(bytes: usize) -> Queued {
        Queued {
            task: Arc::new(Task::new(TaskId::from_bytes(&[1; 32]), Outline::default())),
            entry: Entry {
                sequence: 1,
                stream: Stream::Stdout,
                offset: 0,
                length: bytes as i64,
                is_gap: false,
            },
            from: Point::default(),
            payload: vec![0; bytes].into(),
            timed: false,
            cost: 0,
        }
    }

    #[test]
    fn the_writer_is_woken_for_the_first_chunk_and_for_many() {
        let mut queue = Queue::default();
        assert!(queue.take_in(queued(1)), "it sleeps");
        assert!(!queue.take_in(queued(1)), "it looks by itself");
        assert!(!queue.is_urgent());
        assert!(queue.take_in(queued(GATHER_BYTES)), "that is enough");
        assert!(queue.is_urgent());

        let mut queue = Queue::default();
        let woken = (0..BATCH_FRAMES).filter(|_| queue.take_in(queued(1)));
        assert_eq!(woken.count(), 2, "for the first and for the last");
    }
}
