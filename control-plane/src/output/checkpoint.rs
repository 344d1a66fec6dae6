//! Keeps the index up with the log, and gives space back: the one place that writes the index.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_proto::ids::TaskId;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::{error, info};

use super::{
    OutputError, OutputLimits,
    index::Index,
    log::LogEnd,
    outline::Extent,
    segments::Segments,
    task::{Changes, Task},
    tasks::Tasks,
};

/// A refused commit is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Tasks that nobody uses leave memory this often.
const EVICT_INTERVAL: Duration = Duration::from_secs(10);

/// What the indexer does, in the order in which the writer passes it on.
pub(super) enum Work {
    /// Takes in what was written.
    Checkpoint(Checkpoint),
    /// Forgets tasks.
    Remove(Vec<TaskId>, oneshot::Sender<Result<(), OutputError>>),
    /// Drops what the limits do not allow any more.
    Sweep(oneshot::Sender<Result<(), OutputError>>),
}

/// What changed since the checkpoint before.
pub(super) struct Checkpoint {
    /// Changes of each task.
    pub(super) changes: Vec<(Arc<Task>, Changes)>,
    /// The log up to here.
    pub(super) end: LogEnd,
    /// What was dropped, and gives its space back after the commit.
    pub(super) punches: Vec<(Arc<Task>, Extent)>,
    /// Told when all that is done.
    pub(super) done: oneshot::Sender<()>,
}

/// Writes the index.
pub(super) struct Indexer {
    /// The index.
    pub(super) index: Index,
    /// The segments.
    pub(super) segments: Segments,
    /// How much is kept.
    pub(super) limits: OutputLimits,
    /// The tasks in memory.
    pub(super) tasks: Arc<Tasks>,
    /// How far the log is durable.
    pub(super) synced: watch::Receiver<Option<LogEnd>>,
    /// The end of the log in the index.
    pub(super) end: LogEnd,
    /// Where the index is, for errors.
    pub(super) path: PathBuf,
}

impl Indexer {
    /// Works until the writer is gone.
    pub(super) async fn run(mut self, mut work: mpsc::Receiver<Work>) {
        let mut evict = time::interval(EVICT_INTERVAL);
        loop {
            let work = tokio::select! {
                work = work.recv() => work,
                _ = evict.tick() => {
                    self.tasks.evict();
                    continue;
                }
            };
            let Some(work) = work else {
                break;
            };
            match work {
                Work::Checkpoint(checkpoint) => self.advance(checkpoint).await,
                Work::Remove(task_ids, reply) => {
                    // Nobody may be waiting for the answer any more.
                    let _ = reply.send(self.remove(&task_ids).await);
                }
                Work::Sweep(reply) => {
                    let _ = reply.send(self.sweep().await);
                }
            }
        }
        self.index.close().await;
    }

    async fn advance(&mut self, checkpoint: Checkpoint) {
        let Checkpoint {
            changes,
            end,
            punches,
            done,
        } = checkpoint;
        // The index never knows more than a power cut would leave.
        let durable = self
            .synced
            .wait_for(|synced| synced.is_none_or(|synced| synced >= end))
            .await
            .is_ok_and(|synced| synced.is_some());
        if !durable {
            return;
        }
        let (tasks, rows): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .map(|(task, changes)| {
                let id = task.id;
                (task, (id, changes))
            })
            .unzip();
        while let Err(error) = self.index.advance(&rows, end).await {
            error!(%error, "the index of the output store cannot be written: {error}");
            time::sleep(RETRY).await;
        }
        self.end = end;
        for (task, (_, changes)) in tasks.iter().zip(&rows) {
            task.indexed(changes);
        }
        if !punches.is_empty() {
            let punched = self
                .blocking(move |segments| {
                    punches
                        .iter()
                        .filter_map(|(task, extent)| Some((task, extent.place?)))
                        .try_for_each(|(task, place)| segments.punch(place, &task.key))
                })
                .await;
            if let Err(error) = punched {
                error!(%error, "dropped output still takes space: {error}");
            }
        }
        // The writer may have gone without waiting.
        let _ = done.send(());
    }

    async fn remove(&self, task_ids: &[TaskId]) -> Result<(), OutputError> {
        let mut places = Vec::new();
        for task_id in task_ids {
            let outline = self.index.outline(*task_id).await.map_err(self.error())?;
            let key = super::frame::key(*task_id);
            places.extend(
                outline
                    .extents()
                    .iter()
                    .filter_map(|e| Some((e.place?, key))),
            );
        }
        self.index.remove(task_ids).await.map_err(self.error())?;
        self.blocking(move |segments| {
            places
                .iter()
                .try_for_each(|(place, key)| segments.punch(*place, key))
        })
        .await
    }

    /// Drops segments that are too old, too many or empty, oldest first. The one that is written to stays.
    async fn sweep(&self) -> Result<(), OutputError> {
        let segments = self.blocking(|segments| segments.list()).await?;
        let used: HashSet<u32> = self
            .index
            .segments()
            .await
            .map_err(self.error())?
            .into_iter()
            .collect();
        let now = SystemTime::now();
        let mut total: u64 = segments.iter().map(|segment| segment.disk_bytes).sum();
        for segment in segments {
            if segment.number >= self.end.0 {
                break;
            }
            let empty = !used.contains(&segment.number);
            let age = now.duration_since(segment.written).unwrap_or_default();
            if !empty && age <= self.limits.age && total <= self.limits.total_bytes {
                continue;
            }
            let number = segment.number;
            self.index
                .drop_segment(number)
                .await
                .map_err(self.error())?;
            self.tasks.drop_segment(number);
            self.blocking(move |segments| segments.remove(number))
                .await?;
            total -= segment.disk_bytes;
            info!(
                segment = number,
                empty, "dropped segment {number} of the output store"
            );
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Segments) -> Result<T, OutputError> + Send + 'static,
    ) -> Result<T, OutputError> {
        super::blocking(&self.segments, act).await
    }

    fn error(&self) -> impl Fn(sqlx::Error) -> OutputError {
        let path = self.path.clone();
        move |source| OutputError::Index {
            path: path.clone(),
            source,
        }
    }
}
