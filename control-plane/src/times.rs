//! Times and durations on the wire: Unix milliseconds within, `Timestamp` and `Duration` without.

use std::time::Duration;

use prost_types::Timestamp;

/// Unix milliseconds as a timestamp.
pub(crate) fn timestamp(milliseconds: i64) -> Timestamp {
    Timestamp {
        seconds: milliseconds.div_euclid(1000),
        nanos: i32::try_from(milliseconds.rem_euclid(1000) * 1_000_000).unwrap_or_default(),
    }
}

/// A timestamp as Unix milliseconds.
pub(crate) fn millis(time: &Timestamp) -> i64 {
    time.seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(time.nanos) / 1_000_000)
}

/// A duration on the wire.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Milliseconds as a duration.
pub(crate) fn duration_ms(millis: i64) -> prost_types::Duration {
    duration(Duration::from_millis(millis.max(0).unsigned_abs()))
}

/// Microseconds as a duration.
pub(crate) fn duration_us(micros: i64) -> prost_types::Duration {
    duration(Duration::from_micros(micros.max(0).unsigned_abs()))
}

/// A duration as milliseconds; a negative one counts as none.
pub(crate) fn duration_millis(duration: &prost_types::Duration) -> i64 {
    duration
        .seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(duration.nanos) / 1_000_000)
        .max(0)
}

/// Milliseconds as a duration that may be negative.
pub(crate) fn signed_duration(milliseconds: i64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: milliseconds / 1000,
        nanos: i32::try_from(milliseconds % 1000 * 1_000_000).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back() {
        for time in [0, 1, 999, 1_763_707_200_123, -1, -1500] {
            assert_eq!(millis(&timestamp(time)), time);
        }
        assert_eq!(duration_millis(&duration_ms(1234)), 1234);
    }
}
