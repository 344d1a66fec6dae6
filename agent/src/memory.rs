//! Memory that output took on its way: given back to the host once nothing is on its way any more.
//!
//! The C library keeps what is freed in between for what comes next: after 64 tasks that wrote a GiB together that was
//! 200 MiB, of a program that needs a dozen.

use std::sync::atomic::{AtomicBool, Ordering};

/// Output of a task that leaves enough behind, bytes.
const MUCH: i64 = 1 << 20;

/// Whether there is something to give back.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(AtomicBool);

impl Leftovers {
    /// A task is over that wrote so much, bytes.
    pub(crate) fn note(&self, output: i64) {
        if output >= MUCH {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether there has been something since the last call.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Gives back what is free. May take some milliseconds, in which nobody else gets memory.
#[allow(unsafe_code)] // There is no other way to ask for it.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches only what is free, under the locks of the allocator.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_little_output_left_is_not_looked_for() {
        let leftovers = Leftovers::default();
        leftovers.note(MUCH - 1);
        assert!(!leftovers.take());
        leftovers.note(MUCH);
        leftovers.note(0);
        assert!(leftovers.take());
        assert!(!leftovers.take(), "once");
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn what_is_free_goes_back_to_the_host() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("RssAnon"))
                .unwrap();
            let kib = line.split_ascii_whitespace().nth(1).unwrap();
            kib.parse::<i64>().unwrap()
        };
        // Other tests take memory meanwhile, and give it back too: one try of some shows it.
        let shown = (0..5).any(|_| {
            // Small enough not to be mapped each by itself, and each second one stays.
            let pieces: Vec<Vec<u8>> = (0..2_000).map(|_| vec![1; 64 << 10]).collect();
            let kept: Vec<Vec<u8>> = pieces.into_iter().step_by(2).collect();
            let before = resident();
            give_back();
            let after = resident();
            drop(kept);
            before - after > 30 << 10
        });
        assert!(shown, "30 MiB of 60 that are free");
    }
}
