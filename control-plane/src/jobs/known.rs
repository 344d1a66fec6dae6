//! Which job ids the ledger may have: a look here spares a new job a query.
//!
//! One bit for each hash, so it says "no" with certainty and "perhaps" now and then for an id that is
//! new; then the ledger is asked. It only grows; jobs that are deleted leave their bits behind until
//! the next start.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use muster_proto::ids::JobId;
use parking_lot::Mutex;

/// Bits for each job, so that one new id in so many is taken for a known one.
const BITS_EACH: usize = 16;

/// The fewest bits: 128 KiB, enough for 65,536 jobs.
const BITS_MIN: usize = 1 << 20;

/// The most bits: 64 MiB. With more jobs than they are made for, more new ids cost a query.
const BITS_MAX: usize = 1 << 29;

/// Job ids that may be in the ledger.
pub(super) struct Known(Mutex<Bits>);

struct Bits {
    words: Vec<u64>,
    /// Until every id of the ledger was added, each may be there.
    complete: bool,
}

impl Known {
    /// Knows nothing yet, and so holds every id for possible. Made for so many jobs.
    pub(super) fn new(jobs: usize) -> Self {
        let bits = (jobs.saturating_mul(BITS_EACH))
            .clamp(BITS_MIN, BITS_MAX)
            .next_power_of_two();
        Self(Mutex::new(Bits {
            words: vec![0; bits / 64],
            complete: false,
        }))
    }

    /// Adds an id.
    pub(super) fn add(&self, id: JobId) {
        let mut bits = self.0.lock();
        let (word, bit) = place(id, bits.words.len());
        bits.words[word] |= bit;
    }

    /// Every id that was in the ledger has been added.
    pub(super) fn complete(&self) {
        self.0.lock().complete = true;
    }

    /// Whether the ledger may have this id; `false` is certain.
    pub(super) fn may_hold(&self, id: JobId) -> bool {
        let bits = self.0.lock();
        let (word, bit) = place(id, bits.words.len());
        !bits.complete || bits.words[word] & bit != 0
    }
}

fn place(id: JobId, words: usize) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let hash = hasher.finish();
    // The number of words is a power of two.
    ((hash >> 6) as usize & (words - 1), 1 << (hash & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> JobId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        JobId::from_bytes(&bytes)
    }

    #[test]
    fn an_added_id_is_never_denied_and_few_others_are_held_for_possible() {
        let known = Known::new(0);
        assert!(known.may_hold(id(1)), "nothing is certain before the end");
        (0..10_000).for_each(|number| known.add(id(number)));
        known.complete();
        assert!((0..10_000).all(|number| known.may_hold(id(number))));
        let wrong = (10_000..110_000)
            .filter(|number| known.may_hold(id(*number)))
            .count();
        assert!(wrong < 2_000, "{wrong} of 100,000");
    }
}
