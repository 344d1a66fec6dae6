//! Taking up the output that an earlier agent left.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
    sync::Arc,
};

use muster_proto::ids::TaskId;

use super::{
    Inner, Keep, Produced, Room, Spool,
    disk::{self, SegmentFile},
    gap,
    plan::{Missing, Place, Plan, Segment, Size},
};

impl Spool {
    /// For a task of an earlier agent: what it left, and a gap for what is known to be missing. More may be
    /// appended.
    pub(crate) fn recover(
        task_id: TaskId,
        room: Arc<Room>,
        keep: impl Into<Keep>,
        produced: Option<Produced>,
    ) -> io::Result<Self> {
        let (mut head, mut tail): (Vec<Segment>, Vec<Segment>) = Default::default();
        let mut files = HashMap::new();
        for (id, path) in disk::left_behind(room.directory(), task_id)? {
            match SegmentFile::recover(&room, path.clone(), id) {
                Ok((file, segment)) => {
                    files.insert(id, Arc::new(file));
                    if segment.first > 0 {
                        &mut head
                    } else {
                        &mut tail
                    }
                    .push(segment);
                }
                Err(error) => {
                    tracing::warn!(task.id = %task_id, %error, "output of an earlier agent is lost: {error}");
                }
            }
        }
        head.sort_by_key(|segment| segment.first);
        // A file whose beginning was cut leaves a hole in the sequences, and nothing can follow one.
        let mut expected = None;
        let whole = head
            .iter()
            .take_while(|segment| {
                let follows = expected.is_none_or(|next| next == segment.first);
                expected = Some(segment.first + segment.pieces);
                follows
            })
            .count();
        head.truncate(whole);
        let spool = Self::with_plan(
            task_id,
            room,
            Plan::recovered(keep.into().limits(), head, tail),
        );
        spool.digest.lock().miss();
        {
            let mut inner = spool.inner.lock();
            inner.files = files;
            // Without a file, all of it was acknowledged, or nobody can say what was not.
            if let Some(produced) = produced.filter(|_| !inner.files.is_empty()) {
                inner.miss(produced);
            }
        }
        let is_over = produced.is_some();
        if !is_over || !spool.inner.lock().files.is_empty() {
            spool.doubt_numbers();
        }
        Ok(spool)
    }
}

impl Inner {
    /// Adds gaps for what the process wrote and no file has.
    fn miss(&mut self, produced: Produced) {
        let end = self.plan.end();
        for (stream, expected) in produced.into_iter().enumerate() {
            let length = expected - end[stream];
            if length <= 0 {
                continue;
            }
            let size = Size { kept: 0, length };
            let placed = self.plan.place(stream, size, Place::Memory);
            self.memory
                .entry(placed.segment)
                .or_default()
                .push(gap(Missing {
                    sequence: placed.sequence,
                    stream,
                    offset: placed.offset,
                    length,
                }));
        }
    }
}

/// Removes the output of tasks that the journal does not hold any more.
pub(crate) fn sweep(directory: &Path, held: &HashSet<TaskId>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let task_id = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse().ok());
        if task_id.is_some_and(|task_id| !held.contains(&task_id)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
