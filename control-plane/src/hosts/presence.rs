//! Whether a host answers, from when it was last heard. Pure.

use std::time::Duration;

/// How sure it is that a host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Presence {
    Offline,
    Suspect,
    Online,
}

impl Presence {
    /// As selectors and people write it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Suspect => "suspect",
            Self::Online => "online",
        }
    }
}

/// How long a silent host is believed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PresenceLimits {
    /// Silent for this long, an attached host is suspect.
    pub(crate) suspect_after: Duration,
    /// Silent for this long, a host is offline.
    pub(crate) offline_after: Duration,
}

impl Default for PresenceLimits {
    fn default() -> Self {
        Self {
            suspect_after: Duration::from_secs(25),
            offline_after: Duration::from_secs(45),
        }
    }
}

impl PresenceLimits {
    /// The presence of a host whose agent is attached or not, and was heard so long ago. A dropped
    /// connection makes a host suspect at once; only time makes it offline.
    pub(crate) fn presence(&self, attached: bool, silence: Duration) -> Presence {
        if silence >= self.offline_after {
            Presence::Offline
        } else if !attached || silence >= self.suspect_after {
            Presence::Suspect
        } else {
            Presence::Online
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_a_dropped_connection_lower_it() {
        let limits = PresenceLimits::default();
        let presence = |attached, seconds| limits.presence(attached, Duration::from_secs(seconds));
        assert_eq!(presence(true, 0), Presence::Online);
        assert_eq!(presence(true, 25), Presence::Suspect);
        assert_eq!(presence(true, 45), Presence::Offline);
        assert_eq!(presence(false, 0), Presence::Suspect);
        assert_eq!(presence(false, 44), Presence::Suspect);
        assert_eq!(presence(false, 45), Presence::Offline);
    }
}
