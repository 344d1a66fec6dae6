//! Jittered, bounded waits between tries.
//!
//! Each wait is drawn between half and the whole of a step that doubles up to a bound: many who lost the
//! same peer do not come back in one wave, and nobody waits longer than the bound.

use std::time::Duration;

use rand::Rng as _;

/// The waits between tries of one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    step: Duration,
}

impl Backoff {
    /// Starts at `first` and doubles up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Self {
            first,
            longest,
            step: first,
        }
    }

    /// How long to wait before the next try: at least half of the step, at most the whole.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.longest);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Waits before the next try.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// Begins anew: something worked.
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

impl Default for Backoff {
    /// From 0.2 s up to 15 s: soon after a hiccup, gentle during an outage.
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for step in [100, 200, 350, 350, 350] {
            let step = Duration::from_millis(step);
            let wait = backoff.next_wait();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[test]
    fn waits_differ() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        let first = backoff.next_wait();
        assert!((0..20).any(|_| backoff.next_wait() != first));
    }

    #[test]
    fn a_first_wait_never_exceeds_the_bound() {
        let mut backoff = Backoff::new(Duration::from_secs(9), Duration::from_secs(1));
        assert!(backoff.next_wait() <= Duration::from_secs(1));
    }
}
