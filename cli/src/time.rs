//! Times and durations of the wire, for people and for JSON.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Local, SecondsFormat, Utc};
use prost_types::Timestamp;

/// A moment; `None` if the wire leaves it out or it is out of range.
pub(crate) fn moment(time: Option<&Timestamp>) -> Option<DateTime<Utc>> {
    let time = time?;
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(time: Option<&Timestamp>) -> Option<String> {
    Some(moment(time)?.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// In this machine's time zone, to the second; "-" if absent.
pub(crate) fn local(time: Option<&Timestamp>) -> String {
    moment(time).map_or_else(
        || "-".to_owned(),
        |time| {
            time.with_timezone(&Local)
                .format("%Y-%m-%d %H:%M:%S")
                .to_string()
        },
    )
}

/// How long ago; "-" if absent. A moment ahead of this machine's clock counts as now.
pub(crate) fn ago(time: Option<&Timestamp>) -> String {
    moment(time).map_or_else(
        || "-".to_owned(),
        |time| {
            let age = SystemTime::now().duration_since(SystemTime::from(time));
            format!("{} ago", short(age.unwrap_or_default()))
        },
    )
}

/// How long until; "now" once it has passed, "-" if absent.
pub(crate) fn until(time: Option<&Timestamp>) -> String {
    moment(time).map_or_else(
        || "-".to_owned(),
        |time| match SystemTime::from(time).duration_since(SystemTime::now()) {
            Ok(left) => format!("in {}", short(left)),
            Err(_) => "now".to_owned(),
        },
    )
}

/// A duration of the wire; negative ones become zero.
pub(crate) fn span(duration: Option<&prost_types::Duration>) -> Option<Duration> {
    Some(Duration::try_from(*duration?).unwrap_or_default())
}

/// Seconds, for JSON.
pub(crate) fn seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    let duration = duration?;
    Some(duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

/// To about two digits: "40ms", "1.2s", "3m12s", "5h", "12d".
pub(crate) fn short(duration: Duration) -> String {
    let (ms, s) = (duration.as_millis(), duration.as_secs());
    match s {
        0 => format!("{ms}ms"),
        1..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{s}s"),
        60..600 => format!("{}m{:02}s", s / 60, s % 60),
        600..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

/// For the wire.
pub(crate) fn wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (ms, text) in [
            (40, "40ms"),
            (1_240, "1.2s"),
            (59_000, "59s"),
            (192_000, "3m12s"),
            (3_600_000, "60m"),
            (18_000_000, "5h"),
            (1_036_800_000, "12d"),
        ] {
            assert_eq!(short(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn absent_times_are_dashes() {
        assert_eq!(local(None), "-");
        assert_eq!(ago(None), "-");
        let past = Timestamp {
            seconds: 1,
            nanos: 0,
        };
        assert_eq!(rfc3339(Some(&past)).unwrap(), "1970-01-01T00:00:01.000Z");
        assert_eq!(until(Some(&past)), "now");
    }
}
