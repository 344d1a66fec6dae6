//! The one thread that writes output. If the disk refuses, what was taken stays in memory and is tried again.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, Write as _},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::{BATCH_FRAMES, Log, LogEnd, Queued};
use crate::output::{
    OutputLimits,
    checkpoint::{Checkpoint, Work},
    frame::{HEADER_BYTES, Header},
    outline::{Extent, Place},
    segments::Segments,
    sync::Syncing,
    task::Task,
};

/// Output gathers for this long before it is written, unless there is enough of it: so a dialogue of small chunks
/// costs a system call and a turn of the writer now and then, and not for each. Readers have them at once.
const GATHER: Duration = Duration::from_millis(5);

/// Bytes written in one go.
const BATCH_BYTES: usize = 2 << 20;

/// Bytes of written items kept in memory for readers who keep up.
const RECENT_BYTES: usize = 16 << 20;
/// Written items leave memory after this, so that an idle store holds none.
const RECENT_AGE: Duration = Duration::from_secs(5);
/// The index follows the log at this distance; a start reads that much of the log again.
const CHECKPOINT_AGE: Duration = Duration::from_secs(2);
/// A refused write is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Writes the log.
pub(in crate::output) struct Writer {
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
    pub(in crate::output) fn new(
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
    pub(in crate::output) fn start(mut self) -> io::Result<thread::JoinHandle<()>> {
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
