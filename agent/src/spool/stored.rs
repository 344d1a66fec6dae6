//! Reading output from where it is stored, and putting the tail behind the head.

use std::{io, sync::Arc};

use super::{
    Content, Piece, Position, READ_MAX, Spool,
    disk::SegmentFile,
    held::Inner,
    piece::gap,
    plan::{STREAMS, Segment, SegmentId},
};

impl Spool {
    /// Reads what comes after a sequence from where it is stored. Blocks.
    pub(crate) fn read(&self, after: i64, place: &mut Position) -> io::Result<Vec<Piece>> {
        let wanted = after + 1;
        let mut inner = self.inner.lock();
        if wanted >= inner.plan.next_sequence() && inner.plan.has_tail() {
            self.join(&mut inner);
        }
        let Some(segment) = inner.plan.find(wanted).cloned() else {
            return Ok(Vec::new());
        };
        if let Some(pieces) = inner.memory.get(&segment.id) {
            let skip = usize::try_from(wanted - segment.first).unwrap_or(0);
            return Ok(pieces.iter().skip(skip).cloned().collect());
        }
        let file = inner.files.get(&segment.id).cloned();
        drop(inner);
        let Some(file) = file else {
            return Ok(lost(&segment, wanted, None));
        };

        let known = place.segment == Some(segment.id) && place.sequence <= wanted;
        let (mut at, mut sequence) = if known {
            (place.at, place.sequence)
        } else {
            (0, segment.first)
        };
        let end = segment.first + segment.pieces;
        loop {
            match file.read(at, sequence, end - sequence, READ_MAX) {
                Ok((mut pieces, next)) => {
                    at = next;
                    sequence += pieces.len() as i64;
                    pieces.retain(|piece| piece.sequence >= wanted);
                    if !pieces.is_empty() || sequence >= end {
                        *place = Position {
                            segment: Some(segment.id),
                            sequence,
                            at,
                        };
                        return Ok(pieces);
                    }
                }
                Err(error) => {
                    tracing::error!(task.id = %self.task_id, %error, "kept output cannot be read: {error}");
                    // What can be read comes first, piece by piece; the rest is a gap.
                    if let Ok((pieces, next)) = file.read(at, sequence, 1, 1) {
                        at = next;
                        sequence += 1;
                        if pieces.iter().any(|piece| piece.sequence >= wanted) {
                            *place = Position {
                                segment: Some(segment.id),
                                sequence,
                                at,
                            };
                            return Ok(pieces);
                        }
                        continue;
                    }
                    return Ok(lost(&segment, wanted, Some((&file, sequence))));
                }
            }
        }
    }

    /// Puts the tail behind the head, with gaps for what was dropped between.
    pub(super) fn join(&self, inner: &mut Inner) {
        let joined = inner.plan.join();
        if let Some((id, missing)) = joined.gaps {
            let pieces: Vec<Piece> = missing.into_iter().map(gap).collect();
            // On disk too, for a later agent; in memory for this one.
            if let Err(error) = self.write_gaps(inner, id, &pieces) {
                tracing::warn!(task.id = %self.task_id, %error, "a gap cannot be written: {error}");
            }
            inner.memory.insert(id, pieces);
        }
        for id in joined.numbered {
            let Some(first) = inner
                .plan
                .segments()
                .find(|segment| segment.id == id)
                .map(|segment| segment.first)
            else {
                continue;
            };
            if let Some(file) = inner.files.get(&id)
                && let Err(error) = file.number(first)
            {
                tracing::warn!(task.id = %self.task_id, %error, "a segment cannot be numbered: {error}");
            }
            for (piece, sequence) in inner.memory.get_mut(&id).into_iter().flatten().zip(first..) {
                piece.sequence = sequence;
            }
        }
    }

    fn write_gaps(&self, inner: &mut Inner, id: SegmentId, pieces: &[Piece]) -> io::Result<()> {
        let first = pieces.first().map_or(0, |piece| piece.sequence);
        let begin = inner
            .plan
            .find(first)
            .map_or([0; STREAMS], |segment| segment.begin);
        let file = SegmentFile::create(
            &self.room,
            self.task_id,
            id,
            first,
            begin,
            inner.is_unsure(),
        )?;
        for piece in pieces {
            file.append(piece.stream, piece.offset, &piece.content)?;
        }
        inner.files.insert(id, Arc::new(file));
        Ok(())
    }
}

/// Gaps for what is left of a segment that cannot be read, one for each sequence.
fn lost(segment: &Segment, wanted: i64, readable: Option<(&SegmentFile, i64)>) -> Vec<Piece> {
    let mut begin = segment.begin;
    let mut sequence = segment.first;
    if let Some((file, reached)) = readable {
        // Everything before was readable: the streams stand where it ends.
        if let Ok((pieces, _)) = file.read(0, segment.first, reached - segment.first, usize::MAX) {
            for piece in &pieces {
                begin[piece.stream] = piece.offset + piece.content.length();
            }
        }
        sequence = reached;
    }
    let mut pieces = Vec::new();
    let end = segment.first + segment.pieces;
    for (stream, begin) in begin.iter().enumerate() {
        let length = segment.end[stream] - begin;
        if length > 0 && sequence < end {
            pieces.push(lost_piece(sequence, stream, *begin, length));
            sequence += 1;
        }
    }
    while sequence < end {
        pieces.push(lost_piece(sequence, 0, segment.end[0], 0));
        sequence += 1;
    }
    pieces.retain(|piece| piece.sequence >= wanted);
    pieces
}

fn lost_piece(sequence: i64, stream: usize, offset: i64, length: i64) -> Piece {
    Piece {
        sequence,
        stream,
        offset,
        content: Content::Missing {
            length,
            cause: "the host's disk lost it".to_owned(),
        },
    }
}
