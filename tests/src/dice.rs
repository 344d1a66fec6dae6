//! Chance that can be repeated: the same seed gives the same story, as far as the clock lets it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers that look drawn (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From the variable `MUSTER_SEED`, or else from the clock; says which, so that a story can be told again.
    pub fn thrown() -> Self {
        let clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(1, |since| since.as_nanos() as u64 | 1)
        };
        let seed = std::env::var("MUSTER_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(clock);
        eprintln!("MUSTER_SEED={seed}");
        Self(seed.max(1))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len() as u64) as usize]
    }
}
