//! Looks for lines that match, in output of any size. Pure: items go in, lines come out, and it can be
//! stopped after any line and go on from there.
//!
//! Lines are put together for each stream by itself and counted in the order in which they end. A gap
//! ends the line before it.

use crate::model::Stream;
use std::collections::VecDeque;

use bytes::Bytes;
use regex::bytes::Regex;

use super::item::{Content, Item};

/// Only so much of a longer line is shown.
const SHOWN_BYTES: usize = 64 << 10;
/// Only so much of a longer line is looked at.
const LINE_BYTES: usize = 1 << 20;

/// What to look for.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    /// Matched against each line, without its end.
    pub(crate) pattern: Regex,
    /// Keeps lines that do not match instead.
    pub(crate) invert: bool,
    /// Lines shown before a match.
    pub(crate) before: usize,
    /// Lines shown after a match.
    pub(crate) after: usize,
    /// Stops after so many matches.
    pub(crate) max_matches: usize,
    /// Stops before the lines have more bytes, but not before the first.
    pub(crate) max_bytes: usize,
}

/// Where a search goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Resume {
    /// The first byte of each stream that was not dealt with.
    pub(crate) offsets: [i64; 3],
    /// Lines that were dealt with.
    pub(crate) lines: i64,
    /// Lines yet to be shown after the last match.
    pub(crate) after: usize,
}

/// A line that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The stream of the line.
    pub(crate) stream: Stream,
    /// How many bytes of all streams come before it.
    pub(crate) position: i64,
    /// Counts lines from 1.
    pub(crate) number: i64,
    /// Without its end, and cut if it is long.
    pub(crate) data: Bytes,
    /// It matches; otherwise it is context.
    pub(crate) is_match: bool,
}

/// A search under way.
#[derive(Debug)]
pub(crate) struct Searching {
    search: Search,
    /// The lines found.
    pub(crate) lines: Vec<Line>,
    /// How many of them match.
    pub(crate) matches: usize,
    /// What was not kept of what was searched.
    pub(crate) gaps: Vec<Item>,
    /// The end of what was read: the position of all streams.
    pub(crate) end: i64,
    bytes: usize,
    /// The first byte of each stream that is not read.
    read: [i64; 3],
    /// The first byte of each stream that belongs to no ended line.
    ended: [i64; 3],
    partial: [Partial; 3],
    /// Lines that are shown if the next one matches, each with its offset.
    held: VecDeque<(i64, Line)>,
    number: i64,
    after: usize,
    stopped: bool,
}

/// A line that has begun.
#[derive(Debug, Default)]
struct Partial {
    position: i64,
    data: Vec<u8>,
    begun: bool,
}

impl Searching {
    /// Begins, or goes on.
    pub(crate) fn new(search: Search, from: Resume) -> Searching {
        Searching {
            search,
            lines: Vec::new(),
            matches: 0,
            gaps: Vec::new(),
            end: 0,
            bytes: 0,
            read: from.offsets,
            ended: from.offsets,
            partial: Default::default(),
            held: VecDeque::new(),
            number: from.lines,
            after: from.after,
            stopped: false,
        }
    }

    /// It has shown as much as it may.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The place where the search goes on.
    pub(crate) fn resume(&self) -> Resume {
        let mut offsets = self.ended;
        for (offset, line) in self.held.iter().rev() {
            offsets[line.stream.index()] = *offset;
        }
        Resume {
            offsets,
            lines: self.number - self.held.len() as i64,
            after: self.after,
        }
    }

    /// Takes the next item. What it has seen before it passes over.
    pub(crate) fn feed(&mut self, item: Item) {
        let index = item.stream.index();
        let seen = self.read[index] - item.offset;
        if self.stopped || seen >= item.length() {
            return;
        }
        let item = item.cut(seen.max(0), i64::MAX);
        let end = item.offset + item.length();
        match &item.content {
            Content::Data(data) => self.feed_data(&item, data),
            Content::Missing { .. } => {
                self.end_line(item.stream);
                if !self.stopped {
                    self.ended[index] = end;
                    self.end = item.end_position();
                    self.gaps.push(item);
                }
            }
        }
        self.read[index] = end;
    }

    /// Takes the end of the output: what has begun are lines too.
    pub(crate) fn finish(&mut self) {
        for stream in Stream::ALL {
            self.end_line(stream);
        }
    }

    fn feed_data(&mut self, item: &Item, data: &Bytes) {
        let index = item.stream.index();
        let mut at = 0;
        while at < data.len() && !self.stopped {
            let newline = data[at..].iter().position(|byte| *byte == b'\n');
            let end = newline.map_or(data.len(), |length| at + length);
            let piece = data.slice(at..end);
            let position = item.position + at as i64;
            let partial = &mut self.partial[index];
            if newline.is_none() || partial.begun {
                if !partial.begun {
                    partial.begun = true;
                    partial.position = position;
                }
                let room = LINE_BYTES - partial.data.len();
                partial
                    .data
                    .extend_from_slice(&piece[..piece.len().min(room)]);
            }
            let Some(length) = newline else {
                self.end = item.end_position();
                return;
            };
            let next = item.offset + (at + length) as i64 + 1;
            if self.partial[index].begun {
                let partial = std::mem::take(&mut self.partial[index]);
                self.line(item.stream, partial.position, partial.data.into());
            } else {
                self.line(item.stream, position, piece);
            }
            if self.stopped {
                return;
            }
            self.ended[index] = next;
            at = end + 1;
            self.end = item.position + at as i64;
            self.stop_if_full();
        }
    }

    /// Ends a line without a newline.
    fn end_line(&mut self, stream: Stream) {
        let index = stream.index();
        if self.stopped || !self.partial[index].begun {
            return;
        }
        let partial = std::mem::take(&mut self.partial[index]);
        self.line(stream, partial.position, partial.data.into());
        if !self.stopped {
            self.ended[index] = self.read[index];
            self.stop_if_full();
        }
    }

    fn stop_if_full(&mut self) {
        self.stopped |= self.matches >= self.search.max_matches && self.after == 0;
    }

    /// Takes a whole line. If it does not fit, stops as if it had not come.
    fn line(&mut self, stream: Stream, position: i64, data: Bytes) {
        let data = match data.strip_suffix(b"\r") {
            Some(rest) => data.slice(..rest.len()),
            None => data,
        };
        let is_match = self.search.pattern.is_match(&data) != self.search.invert;
        // Beyond the last match there is only context.
        if is_match && self.matches >= self.search.max_matches {
            self.stopped = true;
            return;
        }
        let mut line = Line {
            stream,
            position,
            number: self.number + 1,
            data: data.slice(..data.len().min(SHOWN_BYTES)),
            is_match,
        };
        if !is_match && self.after == 0 {
            self.number += 1;
            if self.search.before > 0 {
                if self.held.len() == self.search.before {
                    self.held.pop_front();
                }
                self.held.push_back((self.ended[stream.index()], line));
            }
            return;
        }
        let held: usize = self.held.iter().map(|(_, line)| line.data.len()).sum();
        let mut needed = held + line.data.len();
        if self.bytes + needed > self.search.max_bytes {
            if !self.lines.is_empty() {
                self.stopped = true;
                return;
            }
            // Nothing is shown yet: the line alone, and as much of it as there is room for.
            self.held.clear();
            line.data.truncate(self.search.max_bytes);
            needed = line.data.len();
        }
        self.bytes += needed;
        self.number += 1;
        self.lines.extend(self.held.drain(..).map(|(_, line)| line));
        self.lines.push(line);
        if is_match {
            self.matches += 1;
            self.after = self.search.after;
        } else {
            self.after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn search(pattern: &str) -> Search {
        Search {
            pattern: Regex::new(pattern).unwrap(),
            invert: false,
            before: 0,
            after: 0,
            max_matches: 1_000,
            max_bytes: 1 << 20,
        }
    }

    /// Items of one stream or more; `None` is a gap of five bytes.
    fn items(pieces: &[(Stream, Option<&str>)]) -> Vec<Item> {
        let (mut position, mut offsets) = (0, [0; 3]);
        (1..)
            .zip(pieces)
            .map(|(sequence, (stream, text))| {
                let content = match text {
                    Some(text) => Content::Data(Bytes::copy_from_slice(text.as_bytes())),
                    None => Content::Missing {
                        length: 5,
                        cause: String::new(),
                    },
                };
                let item = Item {
                    sequence,
                    stream: *stream,
                    offset: offsets[stream.index()],
                    position,
                    content,
                    time: None,
                };
                position += item.length();
                offsets[stream.index()] += item.length();
                item
            })
            .collect()
    }

    /// Searches page by page until everything is read.
    fn pages(search: &Search, items: &[Item]) -> Vec<Line> {
        let mut resume = Resume::default();
        let mut lines = Vec::new();
        loop {
            let mut searching = Searching::new(search.clone(), resume);
            for item in items {
                searching.feed(item.clone());
            }
            searching.finish();
            resume = searching.resume();
            let stopped = searching.is_stopped();
            assert!(!stopped || !searching.lines.is_empty());
            lines.extend(searching.lines);
            if !stopped {
                return lines;
            }
        }
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|line| {
                let mark = if line.is_match { ':' } else { '-' };
                let text = String::from_utf8_lossy(&line.data);
                format!("{}{mark}{text}", line.number)
            })
            .collect()
    }

    #[test]
    fn lines_are_whole_whatever_the_chunks() {
        use Stream::{Stderr, Stdout};
        let items = items(&[
            (Stdout, Some("first er")),
            (Stderr, Some("an error\r\n")),
            (Stdout, Some("ror\nsecond\nthird err")),
            (Stdout, None),
            (Stdout, Some("error after the gap")),
        ]);
        let mut searching = Searching::new(search("err(or)?$"), Resume::default());
        for item in items {
            searching.feed(item);
        }
        searching.finish();
        assert_eq!(
            texts(&searching.lines),
            ["1:an error", "2:first error", "4:third err"]
        );
        assert_eq!(searching.gaps.len(), 1);
        assert_eq!(searching.lines[1].position, 0);
    }

    #[test]
    fn context_is_shown_once_and_inversion_turns_it_round() {
        let items = items(&[(Stream::Stdout, Some("a\nb\nX\nX\nc\nd\ne\nf\nX\ng\n"))]);
        let context = Search {
            before: 1,
            after: 1,
            ..search("X")
        };
        assert_eq!(
            texts(&pages(&context, &items)),
            ["2-b", "3:X", "4:X", "5-c", "8-f", "9:X", "10-g"]
        );
        let inverted = Search {
            invert: true,
            ..search("[a-g]")
        };
        assert_eq!(texts(&pages(&inverted, &items)), ["3:X", "4:X", "9:X"]);
    }

    #[test]
    fn a_line_too_long_is_cut_and_still_found() {
        let long = format!("{}needle\nshort needle\n", "x".repeat(200_000));
        let items = items(&[(Stream::Stdout, Some(&long))]);
        let lines = pages(&search("needle"), &items);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].data.len(), SHOWN_BYTES);
    }

    proptest! {
        #[test]
        fn pages_show_the_same_lines_as_one_answer(
            pieces in prop::collection::vec((0..2usize, prop::option::weighted(0.95, "[ab\n]{0,12}")), 0..20),
            before in 0..4usize,
            after in 0..4usize,
            max_matches in 1..4usize,
            max_bytes in 1..40usize,
            invert: bool,
        ) {
            let pieces: Vec<_> = pieces
                .iter()
                .map(|(stream, text)| (Stream::ALL[*stream], text.as_deref()))
                .collect();
            let items = items(&pieces);
            let all = Search { before, after, invert, ..search("a.*b") };
            let whole = pages(&all, &items);
            // Without the limit of bytes, which may cut lines and their context.
            let paged = Search { max_matches, ..all.clone() };
            let matches = |lines: &[Line]| -> Vec<Line> {
                lines.iter().filter(|line| line.is_match).cloned().collect()
            };
            let by_matches = pages(&paged, &items);
            prop_assert_eq!(matches(&by_matches), matches(&whole));
            let numbers: Vec<i64> = by_matches.iter().map(|line| line.number).collect();
            prop_assert!(numbers.is_sorted_by(|a, b| a < b), "{:?}", numbers);
            let whole_numbers: Vec<i64> = whole.iter().map(|line| line.number).collect();
            prop_assert_eq!(numbers, whole_numbers);

            let small = Search { max_bytes, ..paged };
            let by_bytes: Vec<i64> = matches(&pages(&small, &items)).iter().map(|l| l.number).collect();
            let expected: Vec<i64> = matches(&whole).iter().map(|l| l.number).collect();
            prop_assert_eq!(by_bytes, expected);
        }
    }
}
