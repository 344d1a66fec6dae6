//! Output of one task, kept within a limit: its head and its tail, and what lies between, counted.

use std::collections::VecDeque;

use aws_lc_rs::digest::{self, SHA256};
use muster_proto::v1::OutputStream;

/// Output as far as an answer could show it.
pub(crate) struct Kept {
    /// Bytes kept of each end.
    limit: usize,
    head: Vec<u8>,
    /// Nothing is added to the head any more: it is full, or a gap came.
    head_closed: bool,
    between: Between,
    tail: VecDeque<u8>,
    sums: Option<Sums>,
}

/// What lies between head and tail.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Between {
    /// Bytes that can still be read from the control plane.
    pub(crate) bytes: u64,
    /// Ends of lines among them; `None` if nobody counted.
    pub(crate) lines: Option<u64>,
    /// Bytes that nobody has any more.
    pub(crate) lost: u64,
}

struct Sums {
    stdout: digest::Context,
    stderr: digest::Context,
}

impl Kept {
    /// Keeps at most `limit` bytes of each end. With `compare`, whole outputs can be told apart.
    pub(crate) fn new(limit: usize, compare: bool) -> Self {
        Self {
            limit,
            head: Vec::new(),
            head_closed: false,
            between: Between {
                lines: Some(0),
                ..Between::default()
            },
            tail: VecDeque::new(),
            sums: compare.then(|| Sums {
                stdout: digest::Context::new(&SHA256),
                stderr: digest::Context::new(&SHA256),
            }),
        }
    }

    /// Both ends as they were read, and what lies between.
    pub(crate) fn from_ends(head: Vec<u8>, between: Between, tail: Vec<u8>) -> Self {
        Self {
            limit: 0,
            head,
            head_closed: true,
            between,
            tail: tail.into(),
            sums: None,
        }
    }

    /// The next bytes.
    pub(crate) fn push(&mut self, stream: OutputStream, data: &[u8]) {
        if let Some(sums) = &mut self.sums {
            match stream {
                OutputStream::Stderr => sums.stderr.update(data),
                _ => sums.stdout.update(data),
            }
        }
        let mut rest = data;
        if !self.head_closed {
            let (taken, after) = rest.split_at(rest.len().min(self.limit - self.head.len()));
            self.head.extend_from_slice(taken);
            self.head_closed = self.head.len() == self.limit;
            rest = after;
        }
        let (passed, last) = rest.split_at(rest.len().saturating_sub(self.limit));
        if !passed.is_empty() {
            self.pass_tail(self.tail.len());
            self.between.pass(passed);
        }
        let surplus = (self.tail.len() + last.len()).saturating_sub(self.limit);
        self.pass_tail(surplus);
        self.tail.extend(last);
    }

    /// Bytes that were not kept come next.
    pub(crate) fn gap(&mut self, length: u64) {
        self.head_closed = true;
        self.pass_tail(self.tail.len());
        self.between.lost += length;
    }

    fn pass_tail(&mut self, count: usize) {
        let passed: Vec<u8> = self.tail.drain(..count).collect();
        self.between.pass(&passed);
    }

    /// All bytes there were, those that were lost included.
    pub(crate) fn total(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.between.bytes + self.between.lost
    }

    /// The beginning, what lies between, and the end. Nothing between means that they touch.
    pub(crate) fn parts(&self) -> (Vec<u8>, Between, Vec<u8>) {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.between.bytes + self.between.lost == 0 {
            let whole = [self.head.as_slice(), &tail].concat();
            return (whole, self.between, Vec::new());
        }
        (self.head.clone(), self.between, tail)
    }

    /// A sum over all that was written, for telling outputs apart; `None` if it was not asked for.
    pub(crate) fn sum(&self) -> Option<[u8; 64]> {
        let sums = self.sums.as_ref()?;
        let mut sum = [0; 64];
        sum[..32].copy_from_slice(sums.stdout.clone().finish().as_ref());
        sum[32..].copy_from_slice(sums.stderr.clone().finish().as_ref());
        Some(sum)
    }

    /// The last line that holds anything, raw; for a sign of life.
    pub(crate) fn last_line(&self) -> Option<Vec<u8>> {
        let recent: Vec<u8> = if self.tail.is_empty() {
            self.head[self.head.len().saturating_sub(1024)..].to_vec()
        } else {
            let from = self.tail.len().saturating_sub(1024);
            self.tail.range(from..).copied().collect()
        };
        recent
            .split(|&byte| byte == b'\n')
            .rev()
            .find(|line| line.iter().any(|byte| !byte.is_ascii_whitespace()))
            .map(<[u8]>::to_vec)
    }
}

impl Between {
    fn pass(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(lines) = &mut self.lines {
            *lines += line_ends(bytes);
        }
    }
}

/// How many lines end in these bytes.
pub(crate) fn line_ends(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(limit: usize, chunks: &[&[u8]]) -> Kept {
        let mut kept = Kept::new(limit, true);
        for chunk in chunks {
            kept.push(OutputStream::Stdout, chunk);
        }
        kept
    }

    #[test]
    fn short_output_is_kept_whole() {
        let kept = kept(4, &[b"ab", b"cdef", b"gh"]);
        assert_eq!(kept.total(), 8);
        let (head, between, tail) = kept.parts();
        assert_eq!(head, b"abcdefgh");
        assert_eq!(between.bytes, 0);
        assert!(tail.is_empty());
    }

    #[test]
    fn the_middle_of_long_output_is_counted() {
        for chunks in [
            &[&b"ab\ncd\nef\ngh\nij\n"[..]][..],
            &[b"ab\nc", b"d\ne", b"f\ngh\nij\n"],
        ] {
            let kept = kept(4, chunks);
            let (head, between, tail) = kept.parts();
            assert_eq!(head, b"ab\nc");
            assert_eq!(tail, b"\nij\n");
            assert_eq!(between.bytes, 7);
            assert_eq!(between.lines, Some(2));
            assert_eq!(kept.total(), 15);
        }
    }

    #[test]
    fn a_gap_stands_between_head_and_tail() {
        let mut kept = kept(8, &[b"one\n"]);
        kept.gap(100);
        kept.push(OutputStream::Stdout, b"two\n");
        kept.gap(10);
        kept.push(OutputStream::Stdout, b"three\n");
        let (head, between, tail) = kept.parts();
        assert_eq!(head, b"one\n");
        assert_eq!(tail, b"three\n");
        assert_eq!((between.bytes, between.lost), (4, 110));
        assert_eq!(kept.total(), 124);
    }

    #[test]
    fn outputs_are_told_apart_by_stream_not_by_order() {
        let mut one = Kept::new(8, true);
        one.push(OutputStream::Stdout, b"a");
        one.push(OutputStream::Stderr, b"b");
        let mut two = Kept::new(8, true);
        two.push(OutputStream::Stderr, b"b");
        two.push(OutputStream::Stdout, b"a");
        let mut three = Kept::new(8, true);
        three.push(OutputStream::Stdout, b"ab");
        assert_eq!(one.sum(), two.sum());
        assert_ne!(one.sum(), three.sum());
    }
}
