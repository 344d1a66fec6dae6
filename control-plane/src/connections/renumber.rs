//! Output whose host counts otherwise than this control plane does.
//!
//! A restore takes away output that was acknowledged and that its host has thrown away. What the host still has then
//! follows a gap, under sequences of our own; where it goes on is told by offsets, which both count alike.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};

use muster_proto::{agent::v1::Kept, ids::TaskId};
use parking_lot::Mutex;

use crate::{
    model::{GAP_CAUSE, Stream},
    output::{Chunk, Gap, OutOfOrder, OutputError, OutputStore},
};

/// How one report's sequences are ours. Until something shows otherwise, they are the same.
#[derive(Default)]
pub(super) struct Renumbering {
    differs: AtomicBool,
    /// Ours and theirs, of what is not acknowledged; the host's last that was.
    // Held for a look only.
    pairs: Mutex<(VecDeque<(i64, i64)>, i64)>,
}

impl Renumbering {
    fn differs(&self) -> bool {
        self.differs.load(Ordering::Relaxed)
    }

    fn note(&self, ours: i64, theirs: i64) {
        let mut pairs = self.pairs.lock();
        match pairs.0.back_mut() {
            // What comes again and again is noted once.
            Some((last, known)) if *last == ours => *known = theirs,
            _ => pairs.0.push_back((ours, theirs)),
        }
    }

    /// The host's sequence up to which all is durable, once it is up to ours.
    pub(super) fn acknowledged(&self, durable: i64) -> i64 {
        if !self.differs() {
            return durable;
        }
        let mut pairs = self.pairs.lock();
        while let Some((_, theirs)) = pairs.0.pop_front_if(|(ours, _)| *ours <= durable) {
            pairs.1 = theirs;
        }
        pairs.1
    }

    /// What the host has begins later than what we have ends: the rest is a gap.
    pub(super) async fn kept(
        &self,
        output: &OutputStore,
        id: TaskId,
        kept: &Kept,
    ) -> Result<(), OutputError> {
        self.differs.store(true, Ordering::Relaxed);
        for (stream, begin) in [
            (Stream::Stdout, kept.stdout_offset),
            (Stream::Stderr, kept.stderr_offset),
            (Stream::Pty, kept.pty_offset),
        ] {
            let offset = output.end(id, Some(stream)).await?;
            if begin > offset {
                let gap = Gap {
                    sequence: output.last_sequence(id).await? + 1,
                    stream,
                    offset,
                    length: begin - offset,
                    cause: GAP_CAUSE.to_owned(),
                };
                output.gap(id, gap).await?;
            }
        }
        Ok(())
    }

    /// Takes a chunk, or what is new of it. Says whether anything was.
    pub(super) async fn append(
        &self,
        output: &OutputStore,
        id: TaskId,
        chunk: Chunk,
    ) -> Result<bool, OutputError> {
        if !self.differs() {
            match output.append(id, chunk.clone()).await {
                Err(error) if is_behind(&error) => self.differs.store(true, Ordering::Relaxed),
                taken => return taken,
            }
        }
        let theirs = chunk.sequence;
        let length = i64::try_from(chunk.data.len()).unwrap_or(i64::MAX);
        let last = output.last_sequence(id).await?;
        let end = output.end(id, Some(chunk.stream)).await?;
        let Some(known) = known(theirs, chunk.offset, length, end)? else {
            self.note(last, theirs);
            return Ok(false);
        };
        let skip = usize::try_from(known).unwrap_or(usize::MAX);
        let new = Chunk {
            sequence: last + 1,
            offset: end,
            data: chunk.data.slice(skip..),
            ..chunk
        };
        output.append(id, new).await?;
        self.note(last + 1, theirs);
        Ok(true)
    }

    /// Takes a gap, or what is new of it.
    pub(super) async fn gap(
        &self,
        output: &OutputStore,
        id: TaskId,
        gap: Gap,
    ) -> Result<(), OutputError> {
        if !self.differs() {
            match output.gap(id, gap.clone()).await {
                Err(error) if is_behind(&error) => self.differs.store(true, Ordering::Relaxed),
                taken => return taken,
            }
        }
        let theirs = gap.sequence;
        let last = output.last_sequence(id).await?;
        let end = output.end(id, Some(gap.stream)).await?;
        let Some(known) = known(theirs, gap.offset, gap.length, end)? else {
            self.note(last, theirs);
            return Ok(());
        };
        let new = Gap {
            sequence: last + 1,
            offset: end,
            length: gap.length - known,
            ..gap
        };
        output.gap(id, new).await?;
        self.note(last + 1, theirs);
        Ok(())
    }

    /// Our last sequence, where the host says that this was its last.
    pub(super) async fn last(
        &self,
        output: &OutputStore,
        id: TaskId,
        theirs: i64,
    ) -> Result<i64, OutputError> {
        if self.differs() {
            return output.last_sequence(id).await;
        }
        Ok(theirs)
    }
}

/// A sequence that is new to us begins before our end: the host counts otherwise.
fn is_behind(error: &OutputError) -> bool {
    matches!(error, OutputError::OutOfOrder(OutOfOrder::Offset { expected, got, .. }) if got < expected)
}

/// How many bytes of what begins at `offset` are known where a stream ends at `end`; `None`: all of them.
fn known(sequence: i64, offset: i64, length: i64, end: i64) -> Result<Option<i64>, OutOfOrder> {
    if offset > end || offset < 0 {
        return Err(OutOfOrder::Offset {
            sequence,
            expected: end,
            got: offset,
        });
    }
    let known = end - offset;
    Ok((known < length).then_some(known))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::output::OutputLimits;

    #[test]
    fn what_is_known_is_told_by_offsets() {
        assert_eq!(known(1, 0, 5, 5), Ok(None));
        assert_eq!(known(1, 0, 5, 3), Ok(Some(3)));
        assert_eq!(known(1, 5, 5, 5), Ok(Some(0)));
        assert!(known(1, 6, 5, 5).is_err(), "a hole is no gap");
        for offset in [i64::MIN, -1, i64::MAX] {
            assert!(known(1, offset, 5, 5).is_err(), "{offset}");
        }
    }

    #[test]
    fn what_is_sent_again_and_again_takes_no_more_room() {
        let renumbering = Renumbering::default();
        for theirs in 0..10_000 {
            renumbering.note(7, theirs);
        }
        assert_eq!(renumbering.pairs.lock().0.len(), 1);
    }

    #[tokio::test]
    async fn output_goes_on_behind_a_gap_after_a_restore() {
        let directory = tempfile::tempdir().unwrap();
        let output = OutputStore::open(directory.path(), OutputLimits::default())
            .await
            .unwrap();
        let id = TaskId::from_bytes(&[5; 32]);
        let chunk = |sequence, offset, data: &'static str| Chunk {
            sequence,
            stream: Stream::Stdout,
            offset,
            data: Bytes::from_static(data.as_bytes()),
            time: None,
        };
        // The backup has the first four bytes; ten were handed over by the time of the restore.
        output.append(id, chunk(1, 0, "abcd")).await.unwrap();
        let renumbering = Renumbering::default();
        let kept = Kept {
            stdout_offset: 10,
            ..Kept::default()
        };
        renumbering.kept(&output, id, &kept).await.unwrap();
        for (sequence, offset, data) in [(6, 10, "klm"), (7, 13, "no")] {
            let chunk = chunk(sequence, offset, data);
            renumbering.append(&output, id, chunk).await.unwrap();
        }
        assert_eq!(renumbering.acknowledged(2), 0);
        assert_eq!(renumbering.acknowledged(3), 6);
        assert_eq!(renumbering.last(&output, id, 7).await.unwrap(), 4);

        // In the next session the host goes on after our last, by its count: what is known of that is passed over.
        let renumbering = Renumbering::default();
        for (sequence, offset, data) in [(5, 9, "jk"), (6, 10, "klm"), (7, 13, "nop")] {
            let chunk = chunk(sequence, offset, data);
            renumbering.append(&output, id, chunk).await.unwrap();
        }
        assert_eq!(renumbering.acknowledged(5), 7);
        let size = output.size(id).await.unwrap();
        assert_eq!((size.stdout_bytes, size.dropped_bytes), (16, 6));
        let items = output.read_after(id, 0, 1 << 20).await.unwrap();
        let sequences: Vec<_> = items.iter().map(|item| item.sequence).collect();
        assert_eq!(sequences, [1, 2, 3, 4, 5]);
        output.close().await;
    }
}
