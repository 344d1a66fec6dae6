//! What became of inputs, until it is said. Pure.

use std::time::{Duration, Instant};

use muster_proto::agent::v1::InputResult;

/// So long the answer to a short input waits for what the process says to it, to be said in one go: that spares each
/// keystroke a second way to whoever typed it. Output is never held back.
const WAIT: Duration = Duration::from_micros(500);

/// Answers that wait, at most.
const WAITING_MAX: usize = 8;

/// Bytes of an input whose answer waits. A longer one is part of more, and the next piece comes after the answer.
pub(super) const SHORT: usize = 1 << 10;

/// Answers that are not said yet.
#[derive(Default)]
pub(super) struct Answers {
    waiting: Vec<InputResult>,
    due: Option<Instant>,
}

impl Answers {
    /// Takes one in, which may wait a moment.
    pub(super) fn push(&mut self, answer: InputResult, may_wait: bool, now: Instant) {
        self.waiting.push(answer);
        let waits = may_wait && self.waiting.len() < WAITING_MAX;
        let due = if waits { now + WAIT } else { now };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// When they are said, whatever happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be said now. `goes_along`: something else is said, too.
    pub(super) fn take(&mut self, goes_along: bool, now: Instant) -> Vec<InputResult> {
        if self.due.is_none_or(|due| due > now && !goes_along) {
            return Vec::new();
        }
        self.due = None;
        std::mem::take(&mut self.waiting)
    }

    /// Nobody is there to hear them. Whoever still waits for one asks again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(write_id: usize) -> InputResult {
        InputResult {
            write_id: write_id.to_string(),
            status: 0,
        }
    }

    #[test]
    fn an_answer_goes_along_with_output_or_after_a_moment() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        assert!(answers.take(true, now).is_empty());
        answers.push(answer(1), true, now);
        assert!(answers.take(false, now).is_empty());
        assert_eq!(answers.take(true, now).len(), 1);
        assert_eq!(answers.due(), None);

        answers.push(answer(2), true, now);
        let due = answers.due().unwrap();
        assert!(due <= now + Duration::from_millis(1));
        assert_eq!(answers.take(false, due), [answer(2)]);
    }

    #[test]
    fn one_that_may_not_wait_takes_the_others_along() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        answers.push(answer(1), true, now);
        answers.push(answer(2), false, now);
        assert_eq!(answers.take(false, now), [answer(1), answer(2)]);
    }

    #[test]
    fn only_so_many_wait() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        for number in 1..WAITING_MAX {
            answers.push(answer(number), true, now);
            assert!(answers.take(false, now).is_empty());
        }
        answers.push(answer(WAITING_MAX), true, now);
        assert_eq!(answers.take(false, now).len(), WAITING_MAX);
    }
}
