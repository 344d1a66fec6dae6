//! The output of tasks, in segment files of its own.
//!
//! Output is taken in order of its sequence, visible to readers at once, and durable a moment later:
//! syncs are grouped. Recent items are served from memory without a copy, older ones from the log.

pub(crate) mod backup;
mod checkpoint;
mod config;
mod error;
mod frame;
mod grep;
mod index;
mod item;
mod log;
mod outline;
mod read;
mod recovery;
mod segments;
mod sync;
mod task;
mod tasks;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use muster_proto::ids::TaskId;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

pub use self::config::OutputConfig;
use self::{
    checkpoint::{Indexer, Work},
    index::Index,
    log::{Log, LogEnd, Queued, Writer},
    outline::{Admission, Outline},
    segments::Segments,
    sync::Syncing,
    task::{Changes, Task},
    tasks::Tasks,
};
pub(crate) use self::{
    error::OutputError,
    grep::{Line, Resume, Search, Searching},
    item::{Chunk, Content, Gap, Item},
    outline::OutOfOrder,
    read::Part,
};
use crate::model::{OutputSize, Stream};

/// Work on its way to the indexer; the writer waits beyond it.
const WORK_MAX: usize = 16;

/// How much output is kept.
#[derive(Debug, Clone)]
pub(crate) struct OutputLimits {
    /// Bytes of the log for one task. Beyond it the middle is dropped, and a gap says how much.
    pub(crate) task_bytes: u64,
    /// Bytes of the log for all tasks. Beyond it the oldest segments are dropped.
    pub(crate) total_bytes: u64,
    /// Segments not written to for longer are dropped.
    pub(crate) age: Duration,
    /// Bytes of the disk that stay free: output is refused rather than fill it.
    pub(crate) free_bytes: u64,
    /// Bytes of a segment. The space of what is too old comes back a segment at a time, so it is well
    /// below what a task may have.
    pub(crate) segment_bytes: u64,
}

impl Default for OutputLimits {
    fn default() -> Self {
        OutputConfig::default().limits()
    }
}

/// The output of all tasks.
#[derive(Clone)]
pub(crate) struct OutputStore {
    shared: Arc<Shared>,
}

struct Shared {
    tasks: Arc<Tasks>,
    log: Arc<Log>,
    index: Index,
    index_path: PathBuf,
    segments: Segments,
    running: Mutex<Option<Running>>,
}

/// What works behind the store.
struct Running {
    writer: thread::JoinHandle<()>,
    syncing: thread::JoinHandle<()>,
    indexer: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.log.close();
    }
}

impl OutputStore {
    /// Opens the store in a directory of its own, and repairs what a crash left behind.
    pub(crate) async fn open(directory: &Path, limits: OutputLimits) -> Result<Self, OutputError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| OutputError::File {
                path: directory.to_owned(),
                source,
            })?;
        let index_path = directory.join("index.db");
        let error = |source| OutputError::Index {
            path: index_path.clone(),
            source,
        };
        let index = Index::open(&index_path).await.map_err(error)?;
        let segments = Segments::new(directory);

        let (file, end) = catch_up(&index, &index_path, &segments).await?;

        let tasks = Arc::new(Tasks::default());
        let log = Arc::new(Log::new());
        let syncing = Arc::new(Syncing::new(end));
        let (work, indexer_work) = mpsc::channel(WORK_MAX);
        let indexer = Indexer {
            index: index.clone(),
            segments: segments.clone(),
            limits: limits.clone(),
            tasks: tasks.clone(),
            synced: syncing.watch(),
            end,
            path: index_path.clone(),
        };
        let writer = Writer::new(
            log.clone(),
            syncing.clone(),
            segments.clone(),
            limits,
            work,
            file,
            end,
        );
        let thread_error = |source| OutputError::File {
            path: directory.to_owned(),
            source,
        };
        let running = Running {
            writer: writer.start().map_err(thread_error)?,
            syncing: syncing.start(log.clone()).map_err(thread_error)?,
            indexer: tokio::spawn(indexer.run(indexer_work)),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                tasks,
                log,
                index,
                index_path,
                segments,
                running: Mutex::new(Some(running)),
            }),
        })
    }

    /// Tells that a task is new and has no output: spares the first append a look at the index.
    pub(crate) fn begin(&self, task_id: TaskId) {
        self.shared.tasks.get_or_insert(task_id, Outline::default());
    }

    /// Takes a chunk: returns once it is visible to readers, which is before it is durable. Waits while
    /// the disk does not keep up. What was taken before is ignored. Says whether it is new.
    pub(crate) async fn append(&self, task_id: TaskId, chunk: Chunk) -> Result<bool, OutputError> {
        let Chunk {
            sequence,
            stream,
            offset,
            data,
            time,
        } = chunk;
        let item = Item {
            sequence,
            stream,
            offset,
            position: 0,
            content: Content::Data(data),
            time,
        };
        self.take(task_id, item).await
    }

    /// Takes a gap, like a chunk.
    pub(crate) async fn gap(&self, task_id: TaskId, gap: Gap) -> Result<(), OutputError> {
        let Gap {
            sequence,
            stream,
            offset,
            length,
            cause,
        } = gap;
        let item = Item {
            sequence,
            stream,
            offset,
            position: 0,
            content: Content::Missing { length, cause },
            time: None,
        };
        self.take(task_id, item).await.map(drop)
    }

    /// Checks that all output up to `last_sequence` was taken, since the host says that this was the last.
    pub(crate) async fn complete(
        &self,
        task_id: TaskId,
        last_sequence: i64,
    ) -> Result<(), OutputError> {
        if last_sequence == 0 {
            return Ok(());
        }
        let last = self.task(task_id).await?.last();
        if last < last_sequence {
            return Err(OutOfOrder::Sequence {
                expected: last + 1,
                got: last_sequence,
            }
            .into());
        }
        Ok(())
    }

    /// The highest sequence taken; 0 if there is none.
    pub(crate) async fn last_sequence(&self, task_id: TaskId) -> Result<i64, OutputError> {
        Ok(self.task(task_id).await?.last())
    }

    /// The highest sequence that a power cut cannot take away: a host may let go of all up to it, and go on
    /// after it. What it sends again is ignored.
    pub(crate) async fn durable(&self, task_id: TaskId) -> Result<i64, OutputError> {
        Ok(*self.task(task_id).await?.watch_durable().borrow())
    }

    /// Follows `durable`.
    pub(crate) async fn watch_durable(
        &self,
        task_id: TaskId,
    ) -> Result<watch::Receiver<i64>, OutputError> {
        Ok(self.task(task_id).await?.watch_durable())
    }

    /// How much output a task has.
    pub(crate) async fn size(&self, task_id: TaskId) -> Result<OutputSize, OutputError> {
        Ok(self.task(task_id).await?.size())
    }

    /// How many bytes of output a task has, or one stream of it, kept or not.
    pub(crate) async fn end(
        &self,
        task_id: TaskId,
        stream: Option<Stream>,
    ) -> Result<i64, OutputError> {
        Ok(self.task(task_id).await?.end(stream).1)
    }

    /// How much output a task has, if that is known without a look at the disk, as it is while it runs.
    pub(crate) fn size_now(&self, task_id: TaskId) -> Option<OutputSize> {
        self.shared.tasks.get(task_id).map(|task| task.size())
    }

    /// Forgets the output of tasks, which stops taking space.
    pub(crate) async fn remove(&self, task_ids: &[TaskId]) -> Result<(), OutputError> {
        self.shared.tasks.remove(task_ids);
        let task_ids = task_ids.to_vec();
        self.request(|reply| Work::Remove(task_ids, reply)).await
    }

    /// Drops what is older than the limits allow, or more.
    pub(crate) async fn sweep(&self) -> Result<(), OutputError> {
        self.request(Work::Sweep).await
    }

    async fn request(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<(), OutputError>>) -> Work,
    ) -> Result<(), OutputError> {
        let (reply, answer) = oneshot::channel();
        self.shared.log.request(work(reply));
        answer.await.unwrap_or_else(|_| Err(log::stopping()))
    }

    /// Makes everything durable and stops. Nothing is taken afterwards.
    pub(crate) async fn close(&self) {
        self.shared.log.close();
        let Some(running) = self.shared.running.lock().take() else {
            return;
        };
        // A thread ends with an error only if it has panicked, which was reported then.
        let _ = running.indexer.await;
        let _ = tokio::task::spawn_blocking(move || {
            let _ = running.writer.join();
            let _ = running.syncing.join();
        })
        .await;
    }

    async fn take(&self, task_id: TaskId, item: Item) -> Result<bool, OutputError> {
        let task = self.task(task_id).await?;
        let payload_bytes = frame::payload_bytes(&item);
        if payload_bytes > frame::PAYLOAD_BYTES_MAX {
            return Err(OutOfOrder::Length {
                sequence: item.sequence,
                length: payload_bytes as i64,
            }
            .into());
        }
        let reservation = self.shared.log.reserve(payload_bytes).await?;
        let admission = task.take(item, |entry, from, item| {
            self.shared.log.push(Queued {
                task: task.clone(),
                entry,
                from,
                payload: frame::payload(item),
                timed: item.time.is_some(),
                cost: reservation.cost,
            });
        })?;
        match admission {
            Admission::Taken(_) => {
                reservation.hand_over();
                Ok(true)
            }
            Admission::Duplicate => Ok(false),
        }
    }

    async fn task(&self, task_id: TaskId) -> Result<Arc<Task>, OutputError> {
        if let Some(task) = self.shared.tasks.get(task_id) {
            return Ok(task);
        }
        let outline =
            self.shared
                .index
                .outline(task_id)
                .await
                .map_err(|source| OutputError::Index {
                    path: self.shared.index_path.clone(),
                    source,
                })?;
        Ok(self.shared.tasks.get_or_insert(task_id, outline))
    }
}

/// Brings the index up to the end of the log, and opens the log there.
async fn catch_up(
    index: &Index,
    path: &Path,
    segments: &Segments,
) -> Result<(File, LogEnd), OutputError> {
    let error = |source| OutputError::Index {
        path: path.to_owned(),
        source,
    };
    let checkpoint = index.checkpoint().await.map_err(error)?;
    let tail = blocking(segments, move |segments| {
        recovery::read_tail(segments, checkpoint)
    })
    .await?;
    let mut outlines = HashMap::new();
    for task_id in recovery::tasks(&tail.frames) {
        outlines.insert(task_id, index.outline(task_id).await.map_err(error)?);
    }
    recovery::replay(&mut outlines, &tail.frames);
    let (file, end) = blocking(segments, move |segments| segments.open_end(tail.end)).await?;
    let changes: Vec<_> = outlines
        .iter()
        .map(|(task_id, outline)| (*task_id, Changes::all(outline)))
        .collect();
    index.advance(&changes, end).await.map_err(error)?;
    Ok((file, end))
}

/// Works on files where waiting for the disk holds nobody up.
async fn blocking<T: Send + 'static>(
    segments: &Segments,
    act: impl FnOnce(&Segments) -> Result<T, OutputError> + Send + 'static,
) -> Result<T, OutputError> {
    let segments = segments.clone();
    let turn = segments.turn().await;
    let work = move || {
        let _turn = turn;
        act(&segments)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(log::stopping()),
    }
}
