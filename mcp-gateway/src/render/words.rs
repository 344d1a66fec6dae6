//! How states, times and sizes are written.

use std::time::{Duration, SystemTime};

use muster_client::actions;
use muster_proto::v1::{self, host::Presence, job, task};

/// A task's state, as one word.
pub(crate) fn task_state(state: task::State) -> &'static str {
    use task::State::*;
    match state {
        Unspecified => "unknown",
        AwaitingApproval => "awaiting_approval",
        Pending => "pending",
        Running => "running",
        Succeeded => "succeeded",
        Failed => "failed",
        Rejected => "rejected",
        Expired => "expired",
        TimedOut => "timed_out",
        Cancelled => "cancelled",
        Lost => "lost",
    }
}

/// Whether nothing more will happen to a task.
pub(crate) fn is_final(state: task::State) -> bool {
    use task::State::*;
    matches!(
        state,
        Succeeded | Failed | Rejected | Expired | TimedOut | Cancelled | Lost
    )
}

/// The states that a job can be in, by their words.
pub(crate) const JOB_STATES: [(&str, job::State); 5] = [
    ("pending", job::State::Pending),
    ("running", job::State::Running),
    ("succeeded", job::State::Succeeded),
    ("failed", job::State::Failed),
    ("cancelled", job::State::Cancelled),
];

/// A job's state, as one word.
pub(crate) fn job_state(state: job::State) -> &'static str {
    JOB_STATES
        .iter()
        .find(|(_, known)| *known == state)
        .map_or("unknown", |(word, _)| word)
}

/// What a pending task waits for.
pub(crate) fn wait(wait: task::Wait) -> &'static str {
    match wait {
        task::Wait::Unspecified => "has not started",
        task::Wait::ForHost => "waits for its host, which is not online",
        task::Wait::ForAnswer => "was offered and not yet answered",
        task::Wait::ForUnlock => "waits: its host is locked",
        task::Wait::ForDispatch => "is next in line",
        task::Wait::ForRelease => {
            "is held: the control plane was restored, and an operator must release it"
        }
        task::Wait::ForApproval => {
            "awaits approval by a person, and runs once it is given: do not run it again; job_get with wait_s waits on"
        }
        task::Wait::ForUpload => "was released; its host first uploads what it knows",
    }
}

/// Whether a host answers, as one word.
pub(crate) fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Unspecified => "unknown",
        Presence::Online => "online",
        Presence::Suspect => "suspect",
        Presence::Offline => "offline",
    }
}

/// Whether a host answers right now.
pub(crate) fn is_online(presence: Presence) -> bool {
    presence == Presence::Online
}

/// `4ms`, `2.1s`, `3m12s`, `2h03m`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A duration of the wire; nothing below zero.
pub(crate) fn wire_duration(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}

/// `2026-11-21T06:40:01Z`.
pub(crate) fn time(time: &prost_types::Timestamp) -> String {
    SystemTime::try_from(*time).map_or_else(
        |_| "unknown".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// `48,112`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 host`, `14 hosts`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{} {noun}{end}", count(number))
}

/// What a job does, in one short line.
pub(crate) fn action(action: Option<&v1::Action>) -> String {
    shortened(&super::clean::words(&actions::summary(action)), 100)
}

/// At most `limit` characters, with a sign that there are more.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_read_well() {
        for (milliseconds, shown) in [
            (4, "4ms"),
            (2_149, "2.1s"),
            (192_000, "3m12s"),
            (7_380_000, "2h03m"),
            (90_000_000, "1d01h"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), shown);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(48_112), "48,112");
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
