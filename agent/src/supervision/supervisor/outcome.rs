//! What comes of a worker's work, as it says itself: read from a pipe, no further than an outcome may be long.

use std::os::fd::{BorrowedFd, OwnedFd};

use bytes::{Buf as _, Bytes, BytesMut};
use muster_proto::v1::Reason;
use prost::Message as _;

use super::source::Source;
use crate::process::{Exit, Outcome};

/// A result is at most this long, bytes (`muster.v1.TaskResult`).
const RESULT_MAX: usize = 64 << 10;

/// Bytes of words that are kept.
const WORDS_MAX: usize = 4 << 10;

/// What is said is at most this long, bytes.
const LONGEST: usize = RESULT_MAX + 2 * WORDS_MAX;

/// Before what is said comes how long it is.
const LENGTH: usize = 4;

/// The pipe of a worker, and what has come of it.
pub(super) struct Pipe {
    source: Source,
    said: BytesMut,
}

/// How the work ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// `Unspecified` if it was done.
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) result: Bytes,
}

impl Pipe {
    pub(super) fn new(file: OwnedFd) -> Self {
        Self {
            source: Source::new(0, file),
            said: BytesMut::new(),
        }
    }

    /// The file; `None` once it is closed.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.source.file()
    }

    pub(super) fn is_open(&self) -> bool {
        self.source.is_open()
    }

    /// Takes what is there, and nothing more.
    pub(super) fn finish(&mut self) {
        let said = &mut self.said;
        self.source.drain(|_, part| said.extend_from_slice(&part));
        self.source.close();
    }

    /// Reads once, after a poll has said that there is something.
    pub(super) fn read(&mut self) {
        if let Some(said) = self.source.read() {
            self.said.extend_from_slice(&said);
        }
        if self.is_too_long() {
            self.source.close();
        }
    }

    fn is_too_long(&self) -> bool {
        self.said.len() > LENGTH + LONGEST
    }

    /// All that was said, if it is whole.
    fn outcome(&self) -> Option<Outcome> {
        let mut said = &self.said[..];
        if said.len() < LENGTH {
            return None;
        }
        let length = said.get_u32_le() as usize;
        (said.len() == length)
            .then(|| Outcome::decode(said).ok())
            .flatten()
    }

    /// How the work ended, of a worker that ended so. What was said whole counts, however it ended afterwards.
    pub(super) fn verdict(&self, exit: Option<Exit>) -> Verdict {
        let outcome = self.outcome();
        if self.is_too_long()
            || outcome
                .as_ref()
                .is_some_and(|outcome| outcome.result.len() > RESULT_MAX)
        {
            return Verdict::died(format!("its result is longer than {RESULT_MAX} bytes"));
        }
        match outcome {
            Some(outcome) => Verdict {
                reason: outcome.reason(),
                message: cut(outcome.message),
                result: outcome.result,
            },
            None => Verdict::died(match exit {
                Some(Exit::Code(code)) => {
                    format!("it ended with {code} and did not say what came of its work")
                }
                Some(Exit::Signal(_)) => {
                    let signal = exit.and_then(Exit::signal).unwrap_or_default();
                    format!("it was ended by {signal} before its work was done")
                }
                None => "it did not say what came of its work".to_owned(),
            }),
        }
    }

    /// Whether all was said.
    pub(super) fn is_whole(&self) -> bool {
        self.outcome().is_some()
    }
}

impl Verdict {
    fn died(how: String) -> Self {
        Self {
            reason: Reason::WorkerDied,
            message: format!(
                "the part of the agent that carries out this kind of action died: {how}"
            ),
            result: Bytes::new(),
        }
    }
}

fn cut(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(WORDS_MAX));
    words
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A pipe in which this was said, read to its end.
    fn heard(said: &[u8]) -> Pipe {
        let (theirs, mut ours) = std::io::pipe().unwrap();
        let mut pipe = Pipe::new(theirs.into());
        for part in said.chunks(16 << 10) {
            if pipe.is_open() {
                ours.write_all(part).unwrap();
                pipe.read();
            }
        }
        drop(ours);
        while pipe.is_open() {
            pipe.read();
        }
        pipe
    }

    fn frame(outcome: &Outcome) -> Vec<u8> {
        let length = u32::try_from(outcome.encoded_len()).unwrap();
        [&length.to_le_bytes()[..], &outcome.encode_to_vec()].concat()
    }

    fn with_result(length: usize) -> Outcome {
        Outcome {
            result: vec![7; length].into(),
            ..Outcome::default()
        }
    }

    #[test]
    fn what_was_said_whole_counts() {
        let done = heard(&frame(&with_result(RESULT_MAX)));
        assert!(done.is_whole());
        let verdict = done.verdict(Some(Exit::Code(0)));
        assert_eq!(verdict.reason, Reason::Unspecified);
        assert_eq!(verdict.result.len(), RESULT_MAX);
        assert_eq!(done.verdict(Some(Exit::Signal(9))), verdict);

        let refused = Outcome::refused(Reason::FileType, "é".repeat(WORDS_MAX));
        let verdict = heard(&frame(&refused)).verdict(Some(Exit::Code(1)));
        assert_eq!(verdict.reason, Reason::FileType);
        assert_eq!(verdict.message.len(), WORDS_MAX);
    }

    #[test]
    fn a_worker_that_says_too_much_or_too_little_has_died() {
        let died = |said: &[u8], exit| {
            let verdict = heard(said).verdict(Some(exit));
            assert_eq!(verdict.reason, Reason::WorkerDied);
            assert!(verdict.result.is_empty());
            verdict.message
        };
        let whole = frame(&with_result(300));
        assert!(died(&[], Exit::Signal(9)).contains("SIGKILL"));
        assert!(died(&whole[..200], Exit::Signal(11)).contains("SIGSEGV"));
        assert!(died(&[], Exit::Code(70)).contains("ended with 70"));
        let more = [&whole[..], b"x"].concat();
        assert!(died(&more, Exit::Code(0)).contains("did not say"));
        for length in [RESULT_MAX + 1, LONGEST + 1, 1 << 20] {
            let long = frame(&with_result(length));
            assert!(died(&long, Exit::Code(0)).contains("longer"), "{length}");
        }
    }
}
