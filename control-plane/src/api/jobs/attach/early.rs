//! What is typed before the one who wrote last is seen to be gone.
//!
//! Whoever comes back to a session types at once, and the control plane may hear that before it hears of the end of the
//! former connection. So in the first moment of an attachment, what comes from whoever writes next is held, in order,
//! and put in as soon as that is so. Pure.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::jobs::Input;

/// For so long after its beginning an attachment's inputs are held.
pub(super) const HELD_FOR: Duration = Duration::from_secs(3);

/// Inputs that are held at most, and their bytes.
const INPUTS_MAX: usize = 64;
const BYTES_MAX: usize = 64 << 10;

/// An input with its name.
pub(super) type Named = (Arc<str>, Input);

/// Inputs of one attachment that is next in line.
pub(super) struct Early {
    until: Instant,
    inputs: Vec<Named>,
    bytes: usize,
    /// One was refused: what comes after it may not overtake it.
    over: bool,
}

impl Early {
    /// The state of an attachment that begins.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            until: now + HELD_FOR,
            inputs: Vec::new(),
            bytes: 0,
            over: false,
        }
    }

    /// Holds an input, or gives it back: it came too late, or there is no room.
    pub(super) fn hold(&mut self, now: Instant, input: Named) -> Result<(), Named> {
        let length = match &input.1 {
            Input::Data(data) => data.len(),
            _ => 0,
        };
        self.over |=
            now >= self.until || self.inputs.len() >= INPUTS_MAX || self.bytes + length > BYTES_MAX;
        if self.over {
            return Err(input);
        }
        self.bytes += length;
        self.inputs.push(input);
        Ok(())
    }

    /// All that is held, in its order.
    pub(super) fn take(&mut self) -> Vec<Named> {
        self.bytes = 0;
        std::mem::take(&mut self.inputs)
    }

    /// When what is held has waited long enough; `None` if nothing is.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.inputs.is_empty()).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Named {
        ("w".into(), Input::Data(vec![b'x'; length].into()))
    }

    #[test]
    fn little_is_held_for_a_moment_in_its_order() {
        let begin = Instant::now();
        let mut early = Early::new(begin);
        assert_eq!(early.due(), None);
        for number in 0..INPUTS_MAX {
            let input = (number.to_string().into(), Input::Close);
            early.hold(begin, input).unwrap();
        }
        assert!(early.hold(begin, data(1)).is_err(), "so many");
        assert_eq!(early.due(), Some(begin + HELD_FOR));
        let names: Vec<_> = early.take().into_iter().map(|(name, _)| name).collect();
        assert!((0..INPUTS_MAX).eq(names.iter().map(|name| name.parse::<usize>().unwrap())));
        assert_eq!(early.due(), None);

        let mut early = Early::new(begin);
        early.hold(begin, data(BYTES_MAX)).unwrap();
        assert!(early.hold(begin, data(1)).is_err(), "so large");
        let mut early = Early::new(begin);
        assert!(early.hold(begin + HELD_FOR, data(1)).is_err(), "so long");
    }

    #[test]
    fn nothing_overtakes_what_was_refused() {
        let begin = Instant::now();
        let mut early = Early::new(begin);
        early.hold(begin, data(BYTES_MAX - 1)).unwrap();
        assert!(early.hold(begin, data(2)).is_err());
        assert!(early.hold(begin, data(1)).is_err(), "though it would fit");
    }
}
