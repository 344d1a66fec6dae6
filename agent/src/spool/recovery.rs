//! Taking up the output that an earlier agent left.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
    sync::Arc,
};

use muster_proto::ids::TaskId;

use super::{
    Content, Keep, NOT_KEPT, Produced, Room, Spool,
    disk::{self, SegmentFile},
    plan::{Plan, Segment},
};

impl Spool {
    /// For a task of an earlier agent: what it left, and a gap for what it is known to have had besides. More may be
    /// appended.
    pub(crate) fn recover(
        task_id: TaskId,
        room: Arc<Room>,
        keep: impl Into<Keep>,
        produced: Option<Produced>,
    ) -> Self {
        let (mut head, mut tail): (Vec<Segment>, Vec<Segment>) = Default::default();
        let mut files = HashMap::new();
        let left = disk::left_behind(room.directory(), task_id).unwrap_or_else(|error| {
            tracing::error!(task.id = %task_id, %error, "kept output cannot be read: {error}");
            Vec::new()
        });
        for (id, path) in left {
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
        // The same in the tail, of which the newest counts.
        let torn = tail
            .windows(2)
            .rposition(|pair| pair[0].end != pair[1].begin)
            .map_or(0, |older| older + 1);
        for dropped in head.drain(whole..).chain(tail.drain(..torn)) {
            // Its name may be given to a segment that begins.
            if let Some(file) = files.remove(&dropped.id) {
                file.throw_away();
            }
        }
        let spool = Self::with_plan(
            task_id,
            room,
            Plan::recovered(keep.into().limits(), head, tail),
        );
        spool.digest.lock().miss();
        spool.inner.lock().files = files;
        // Before gaps are numbered that no earlier agent knew.
        spool.doubt_numbers();
        if let Some(produced) = produced {
            spool.miss_up_to(produced);
        }
        spool
    }

    /// Adds gaps for what the process wrote and no file has.
    fn miss_up_to(&self, produced: Produced) {
        let ends = self.produced();
        for (stream, (produced, end)) in produced.into_iter().zip(ends).enumerate() {
            if produced > end {
                let (length, cause) = (produced - end, NOT_KEPT.to_owned());
                self.put(stream, Content::Missing { length, cause });
            }
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
