//! The control plane's clock, as far as this host knows it.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use prost_types::Timestamp;

/// Tells the control plane's time: what it last said, and what has passed since by a clock that no
/// operator sets and that goes on while the host sleeps. Before it has said anything, the host's own.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    // A plain lock: two words are read or set.
    told: Mutex<Option<(i64, Duration)>>,
}

impl Clock {
    /// The control plane says that it is this time now.
    pub(crate) fn set(&self, time: &Timestamp) {
        let ms = time.seconds.saturating_mul(1000) + i64::from(time.nanos) / 1_000_000;
        *self.told.lock() = Some((ms, since_boot()));
    }

    /// Unix milliseconds.
    pub(crate) fn now_ms(&self) -> i64 {
        match *self.told.lock() {
            Some((ms, at)) => {
                let passed = since_boot().saturating_sub(at).as_millis();
                ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
            }
            None => {
                let passed = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)
            }
        }
    }

    /// The host's own clock.
    pub(crate) fn host_time(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}
