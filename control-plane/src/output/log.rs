//! The one thread that writes output, and the queue that leads to it.
//!
//! Appends queue their bytes, bounded by what is not yet written; the writer takes what has gathered and
//! writes it in one go, so that many small chunks cost few system calls. If the disk refuses, what was
//! taken stays in memory and is tried again, and nothing new is taken meanwhile.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, Write as _},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{error, info};

use super::{
    OutputError, OutputLimits,
    checkpoint::{Checkpoint, Work},
    frame::{HEADER_BYTES, Header},
    item::Point,
    outline::{Entry, Extent, Place},
    segments::Segments,
    sync::Syncing,
    task::Task,
};

/// Bytes taken and not yet written.
const QUEUE_BYTES: u32 = 16 << 20;
/// Output gathers for this long before it is written, unless there is enough of it: so a dialogue of small chunks
/// costs a system call and a turn of the writer now and then, and not for each. Readers have them at once.
const GATHER: Duration = Duration::from_millis(5);
/// Enough to be written at once, bytes.
const GATHER_BYTES: usize = 256 << 10;
/// Bytes written in one go.
const BATCH_BYTES: usize = 2 << 20;
/// Frames written in one go. Each takes two of the 1,024 buffers that a system call accepts.
const BATCH_FRAMES: usize = 512;
/// Bytes of written items kept in memory for readers who keep up.
const RECENT_BYTES: usize = 16 << 20;
/// Written items leave memory after this, so that an idle store holds none.
const RECENT_AGE: Duration = Duration::from_secs(5);
/// The index follows the log at this distance; a start reads that much of the log again.
const CHECKPOINT_AGE: Duration = Duration::from_secs(2);
/// A refused write is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

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
    /// Of all frames.
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
    /// Whose output it is.
    pub(super) task: Arc<Task>,
    /// What it stands for.
    pub(super) entry: Entry,
    /// Where it begins.
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

/// Writes the log.
pub(super) struct Writer {
    log: Arc<Log>,
    syncing: Arc<Syncing>,
    segments: Segments,
    limits: OutputLimits,
    indexer: mpsc::Sender<Work>,
    file: Arc<File>,
    end: LogEnd,
    /// Part of a refused batch may lie beyond the end.
    torn: bool,
    recent: VecDeque<(Arc<Task>, i64, usize, Instant)>,
    recent_bytes: usize,
    dirty: Vec<Arc<Task>>,
    punches: Vec<(Arc<Task>, Extent)>,
    checkpointed: Instant,
    /// Ready when the last checkpoint is in the index.
    pending: Option<oneshot::Receiver<()>>,
}

impl Writer {
    /// A writer that goes on in `file`, which ends at `end`.
    pub(super) fn new(
        log: Arc<Log>,
        syncing: Arc<Syncing>,
        segments: Segments,
        limits: OutputLimits,
        indexer: mpsc::Sender<Work>,
        file: File,
        end: LogEnd,
    ) -> Writer {
        Writer {
            log,
            syncing,
            segments,
            limits,
            indexer,
            file: Arc::new(file),
            end,
            torn: false,
            recent: VecDeque::new(),
            recent_bytes: 0,
            dirty: Vec::new(),
            punches: Vec::new(),
            checkpointed: Instant::now(),
            pending: None,
        }
    }

    /// Writes until the log is closed and all is written.
    pub(super) fn start(mut self) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new()
            .name("output-writer".to_owned())
            .spawn(move || self.run())
    }

    fn run(&mut self) {
        loop {
            let (mut batch, work, closed) = self.next();
            if !batch.is_empty() {
                // Frames of a task side by side make fewer and longer extents. The sort is stable, so
                // a task's own stay in order.
                batch.sort_by_key(|queued| queued.task.id);
                if !self.write_patiently(&batch) {
                    break;
                }
                self.written(batch);
            }
            self.forget_old();
            let finishing = closed && self.log.queue.lock().frames.is_empty();
            if finishing || self.checkpointed.elapsed() >= CHECKPOINT_AGE {
                self.checkpoint(finishing);
            }
            for work in work {
                // It fails only if the indexer is gone, and then whoever asked hears that from the
                // reply that is dropped.
                let _ = self.indexer.blocking_send(work);
            }
            if finishing {
                break;
            }
        }
        self.syncing.close();
    }

    /// Waits for something to do.
    fn next(&mut self) -> (Vec<Queued>, Vec<Work>, bool) {
        let mut queue = self.log.queue.lock();
        // Where there was output a moment ago, more is likely: nobody has to wake the writer for it.
        queue.awake = true;
        let gathered = Instant::now() + GATHER;
        while !queue.is_urgent() {
            if self.log.ready.wait_until(&mut queue, gathered).timed_out() {
                break;
            }
        }
        queue.awake = false;
        while queue.frames.is_empty() && queue.work.is_empty() && !queue.closed {
            if self.recent.is_empty() && self.dirty.is_empty() {
                self.log.ready.wait(&mut queue);
            } else if self
                .log
                .ready
                .wait_for(&mut queue, CHECKPOINT_AGE)
                .timed_out()
            {
                break;
            }
        }
        let mut bytes = 0;
        let count = queue
            .frames
            .iter()
            .take(BATCH_FRAMES)
            .take_while(|queued| {
                bytes += queued.payload.len();
                bytes <= BATCH_BYTES
            })
            .count();
        let count = count.max(usize::from(!queue.frames.is_empty()));
        let batch: Vec<Queued> = queue.frames.drain(..count).collect();
        queue.bytes -= batch
            .iter()
            .map(|queued| queued.payload.len())
            .sum::<usize>();
        let work = mem::take(&mut queue.work);
        (batch, work, queue.closed)
    }

    /// Writes a batch, again and again while the disk refuses. Gives up only if the log is closed.
    fn write_patiently(&mut self, batch: &[Queued]) -> bool {
        let mut refused = false;
        loop {
            match self.write(batch) {
                Ok(()) => {
                    if refused {
                        info!("the output store takes output again");
                        self.log.accept();
                    }
                    return true;
                }
                Err(error) => {
                    if !refused {
                        error!(%error, "the output store cannot write: {error}");
                    }
                    refused = true;
                    self.log.refuse(&error.to_string());
                }
            }
            let mut queue = self.log.queue.lock();
            if !queue.closed {
                self.log.ready.wait_for(&mut queue, RETRY);
            }
            if queue.closed {
                return false;
            }
        }
    }

    /// Writes a batch as a whole or not at all.
    fn write(&mut self, batch: &[Queued]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.end.1)?;
            self.torn = false;
        }
        let bytes: u64 = batch.iter().map(Queued::frame_bytes).sum();
        if self.end.1 > 0 && self.end.1 + bytes > self.limits.segment_bytes {
            let segment = self.end.0 + 1;
            self.file = Arc::new(self.segments.create(segment)?);
            self.end = (segment, 0);
        }
        if self.segments.free_bytes()? < self.limits.free_bytes + bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "the disk has less than {} MiB free",
                    self.limits.free_bytes >> 20
                ),
            ));
        }
        let headers: Vec<[u8; HEADER_BYTES]> = batch.iter().map(Queued::header).collect();
        let mut slices: Vec<IoSlice<'_>> = headers
            .iter()
            .zip(batch)
            .flat_map(|(header, queued)| [IoSlice::new(header), IoSlice::new(&queued.payload)])
            .collect();
        self.torn = true;
        write_all_vectored(&self.file, &mut slices)?;
        self.torn = false;
        Ok(())
    }

    /// Notes where a batch went.
    fn written(&mut self, batch: Vec<Queued>) {
        let now = Instant::now();
        let mut cost = 0;
        let mut bytes = 0;
        let mut touched: Vec<(Arc<Task>, i64)> = Vec::new();
        for queued in batch {
            let length = queued.frame_bytes();
            let place = Place {
                segment: self.end.0,
                start: self.end.1,
                length,
            };
            self.end.1 += length;
            bytes += length;
            cost += queued.cost as usize;
            let Queued {
                task,
                entry,
                from,
                payload,
                ..
            } = queued;
            let placed = task.place(entry, from, place, self.limits.task_bytes);
            if placed.newly_dirty {
                self.dirty.push(task.clone());
            }
            for extent in placed.dropped {
                self.punches.push((task.clone(), extent));
            }
            match touched.last_mut() {
                Some((last, sequence)) if Arc::ptr_eq(last, &task) => *sequence = entry.sequence,
                _ => touched.push((task.clone(), entry.sequence)),
            }
            self.recent_bytes += payload.len();
            self.recent
                .push_back((task, entry.sequence, payload.len(), now));
        }
        self.log.room.add_permits(cost);
        self.syncing
            .written(self.file.clone(), self.end, bytes, touched);
    }

    /// Lets written items go from memory that are too many or too old.
    fn forget_old(&mut self) {
        while let Some((task, sequence, bytes, since)) = self.recent.front()
            && (self.recent_bytes > RECENT_BYTES || since.elapsed() >= RECENT_AGE)
        {
            task.forget(*sequence);
            self.recent_bytes -= bytes;
            self.recent.pop_front();
        }
    }

    /// Sends to the index what changed; `now` waits for the checkpoint before this one.
    fn checkpoint(&mut self, now: bool) {
        if self.dirty.is_empty() {
            return;
        }
        if let Some(pending) = &mut self.pending {
            if now {
                let _ = self.pending.take().map(oneshot::Receiver::blocking_recv);
            } else if let Err(oneshot::error::TryRecvError::Empty) = pending.try_recv() {
                return;
            }
        }
        let (done, pending) = oneshot::channel();
        self.pending = Some(pending);
        self.checkpointed = Instant::now();
        let changes = mem::take(&mut self.dirty)
            .into_iter()
            .map(|task| {
                let changes = task.changes();
                (task, changes)
            })
            .collect();
        let checkpoint = Checkpoint {
            changes,
            end: self.end,
            punches: mem::take(&mut self.punches),
            done,
        };
        // It fails only if the indexer is gone, as on a hard stop; the next start reads the log instead.
        let _ = self.indexer.blocking_send(Work::Checkpoint(checkpoint));
    }
}

impl Queued {
    fn frame_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len()) as u64
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let (entry, key) = (&self.entry, self.task.key);
        Header::new(entry, self.timed, key, self.from, &self.payload).encode()
    }
}

fn write_all_vectored(mut file: &File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
