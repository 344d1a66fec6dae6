//! Which part of a file is wanted, and where it begins.

use std::io;

use memchr::{memchr_iter, memrchr_iter};
use muster_proto::v1::{ByteRange, FileRead, LineRange, file_read};

use super::source::Source;

/// Read at once while a line is looked for, bytes.
const PIECE: usize = 128 << 10;

/// A part of a file. Numbers are as they are asked for: negative ones count from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// So many bytes; `None` is all that follows.
    Bytes { offset: i64, length: Option<u64> },
    /// So many lines; `None` is all that follow. The first one is never 0.
    Lines { first: i64, count: Option<u64> },
}

/// Where a part begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    pub(super) at: u64,
    /// The number of the line that begins there; 0 where lines were not asked for.
    pub(super) line: i64,
    /// What may follow; `None` is everything.
    pub(super) bytes: Option<u64>,
    pub(super) lines: Option<u64>,
}

impl Part {
    /// The whole file.
    pub(super) const ALL: Self = Self::Bytes {
        offset: 0,
        length: None,
    };

    /// The part that is asked for, or what is wrong with it.
    pub(super) fn of(wanted: &FileRead) -> Result<Self, String> {
        let some = |count: i64| (count > 0).then_some(count.unsigned_abs());
        Ok(match wanted.part {
            None => Self::ALL,
            Some(file_read::Part::Bytes(ByteRange { offset, length })) => {
                if length < 0 || offset == i64::MIN {
                    return Err("bytes: length is not negative".to_owned());
                }
                Self::Bytes {
                    offset,
                    length: some(length),
                }
            }
            Some(file_read::Part::Lines(LineRange { first, count })) => {
                if count < 0 || first == i64::MIN {
                    return Err("lines: count is not negative".to_owned());
                }
                Self::Lines {
                    first: if first == 0 { 1 } else { first },
                    count: some(count),
                }
            }
        })
    }

    /// Finds where it begins; behind the end, if the file is shorter.
    pub(super) fn find(self, source: &Source<'_>) -> io::Result<Beginning> {
        let (at, line) = match self {
            Self::Bytes { offset, .. } => match u64::try_from(offset) {
                Ok(offset) => (offset, 0),
                Err(_) => (source.end()?.saturating_sub(offset.unsigned_abs()), 0),
            },
            Self::Lines { first, .. } => match u64::try_from(first) {
                Ok(number) => (line_from_start(source, number)?, first),
                Err(_) => line_from_end(source, first.unsigned_abs())?,
            },
        };
        let (bytes, lines) = match self {
            Self::Bytes { length, .. } => (length, None),
            Self::Lines { count, .. } => (None, count),
        };
        Ok(Beginning {
            at,
            line,
            bytes,
            lines,
        })
    }
}

/// Where a line begins, counted from 1; the end, if there are fewer.
fn line_from_start(source: &Source<'_>, number: u64) -> io::Result<u64> {
    let mut before = number - 1;
    let mut at = 0;
    if before == 0 {
        return Ok(at);
    }
    let mut piece = vec![0; PIECE];
    loop {
        let length = source.read_at(at, &mut piece)?;
        if length == 0 {
            return Ok(at);
        }
        for end in memchr_iter(b'\n', &piece[..length]) {
            before -= 1;
            if before == 0 {
                return Ok(at + end as u64 + 1);
            }
        }
        at += length as u64;
    }
}

/// Where a line begins, counted from the end and from 1, and its number: from the end, or 1 if there are no more. Reads no
/// more of the file than what follows.
fn line_from_end(source: &Source<'_>, number: u64) -> io::Result<(u64, i64)> {
    let end = source.end()?;
    let mut piece = vec![0; PIECE];
    let (mut until, mut left) = (end, number);
    while until > 0 {
        let length = until.min(PIECE as u64);
        let from = until - length;
        let piece = &mut piece[..length as usize];
        let read = source.read_whole_at(from, piece)?;
        for at in memrchr_iter(b'\n', &piece[..read]) {
            let next = from + at as u64 + 1;
            // That which ends the last line begins no other.
            if next == end {
                continue;
            }
            left -= 1;
            if left == 0 {
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                return Ok((next, -number));
            }
        }
        until = from;
    }
    Ok((0, 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(text: &[u8], part: Part) -> Beginning {
        part.find(&Source::Memory(text.to_owned())).unwrap()
    }

    fn line(text: &str, first: i64) -> (u64, i64) {
        let found = find(text.as_bytes(), Part::Lines { first, count: None });
        (found.at, found.line)
    }

    #[test]
    fn lines_are_counted_from_both_ends() {
        let text = "one\ntwo\nthree\n";
        assert_eq!(line(text, 1), (0, 1));
        assert_eq!(line(text, 2), (4, 2));
        assert_eq!(line(text, 4), (14, 4), "the end");
        assert_eq!(line(text, -1), (8, -1));
        assert_eq!(line(text, -3), (0, 1));
        assert_eq!(line(text, -9), (0, 1));
        assert_eq!(line("one\ntwo", -1), (4, -1));
        assert_eq!(line("", -1), (0, 1));
        assert_eq!(line("\n\n", -1), (1, -1));
    }

    #[test]
    fn bytes_are_counted_from_both_ends() {
        let at = |offset| {
            let part = Part::Bytes {
                offset,
                length: None,
            };
            find(b"0123456789", part).at
        };
        assert_eq!((at(3), at(12)), (3, 12));
        assert_eq!((at(-3), at(-12)), (7, 0));
    }

    proptest! {
        /// Pieces end anywhere in what is looked at.
        #[test]
        fn a_line_is_found_where_it_is(
            lengths in prop::collection::vec(0usize..90_000, 0..12),
            ends in any::<bool>(),
            first in prop_oneof![-14i64..0, 1i64..14],
        ) {
            let mut text = Vec::new();
            for length in &lengths {
                text.extend(std::iter::repeat_n(b'x', *length));
                text.push(b'\n');
            }
            if !ends {
                text.pop();
            }
            let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
            let index = match usize::try_from(first) {
                Ok(first) => (first - 1).min(lines.len()),
                Err(_) => lines.len().saturating_sub(first.unsigned_abs() as usize),
            };
            let expected: usize = lines[..index].iter().map(|line| line.len()).sum();
            let found = find(&text, Part::Lines { first, count: None });
            prop_assert_eq!(found.at, expected as u64);
        }
    }
}
