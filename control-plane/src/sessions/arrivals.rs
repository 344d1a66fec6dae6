//! How often a host may do what costs others something, as attaching and speaking. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How much at once, and how often beyond that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    burst: f64,
    every: Duration,
}

/// Attaches of a host. An agent that is restarted or cut off again and again has far fewer.
pub(crate) const ATTACHES: Limit = Limit {
    burst: 60.0,
    every: Duration::from_secs(1),
};

/// Messages of an attach stream. An agent says one every few seconds, some more once it is welcomed, and where tasks end
/// all the time it signs for them every 25 ms.
pub(crate) const MESSAGES: Limit = Limit {
    burst: 100.0,
    every: Duration::from_millis(20),
};

/// What of a limit is left.
pub(crate) struct Pace {
    limit: Limit,
    left: f64,
    counted: Instant,
}

impl Pace {
    /// Nothing was done yet.
    pub(crate) fn new(limit: Limit, now: Instant) -> Self {
        Self {
            limit,
            left: limit.burst,
            counted: now,
        }
    }

    /// Takes one, if there is one: how long until there is, if not.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let earned = (now - self.counted).as_secs_f64() / self.limit.every.as_secs_f64();
        self.left = (self.left + earned).min(self.limit.burst);
        self.counted = now;
        if self.left < 1.0 {
            return Err(self.limit.every.mul_f64(1.0 - self.left));
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_comes_to_one_a_while() {
        let start = Instant::now();
        let mut pace = Pace::new(ATTACHES, start);
        let taken = (0..100_000).filter(|_| pace.take(start).is_ok()).count();
        assert_eq!(taken, ATTACHES.burst as usize);
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut taken = 0;
        for second in 1..=30 {
            taken += (0..100)
                .filter(|_| pace.take(later(second)).is_ok())
                .count();
        }
        assert_eq!(taken, 30);
        assert!(pace.take(later(10_000)).is_ok());
        assert!(
            pace.left < ATTACHES.burst,
            "what is not used is not saved up"
        );
    }

    #[test]
    fn whoever_waits_as_long_as_it_is_told_goes_on() {
        let mut now = Instant::now();
        let mut pace = Pace::new(MESSAGES, now);
        for _ in 0..1_000 {
            if let Err(wait) = pace.take(now) {
                now += wait + Duration::from_micros(1);
                assert!(pace.take(now).is_ok());
            }
        }
    }
}
