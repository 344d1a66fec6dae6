//! Trying again is a value: why a stream ended, and what to do about it.

use std::time::Duration;

use muster_client::reason_of;
use muster_proto::{agent::v1::Drain, v1::Reason};
use muster_runtime::{backoff::Backoff, tls::ConnectError};
use rand::Rng;
use tonic::Status;

/// Waits after a hiccup, and at most.
const WAIT_FIRST: Duration = Duration::from_millis(200);
const WAIT_LAST: Duration = Duration::from_secs(15);

/// Waits while an operator has to act.
const REFUSED_FIRST: Duration = Duration::from_secs(5);
const REFUSED_LAST: Duration = Duration::from_secs(60);

/// Why a stream to the control plane ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Detached {
    /// We were told to stop.
    #[error("told to stop")]
    Stopped,
    /// It could not be reached, or is not the one we trust, or does not take our certificate.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It refused, or the stream broke.
    #[error("{}", words(.0))]
    Refused(Status),
    /// It closed the stream without a word.
    #[error("the control plane closed the stream")]
    Closed,
    /// It stops, and asks to come back later.
    #[error("the control plane is stopping")]
    Drained(Duration),
    /// It has not said anything for too long.
    #[error("the control plane is silent")]
    Silent,
    /// It said what makes no sense.
    #[error("the control plane does not keep to the protocol: {0}")]
    Protocol(&'static str),
}

impl Detached {
    pub(super) fn drained(drain: Drain) -> Self {
        let wait = drain.retry_after.and_then(|wait| wait.try_into().ok());
        Self::Drained(wait.unwrap_or(Duration::from_secs(1)))
    }
}

impl From<Status> for Detached {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

fn words(status: &Status) -> String {
    match reason_of(status).unwrap_or_default() {
        Reason::Unspecified => format!("the stream broke: {}", status.message()),
        reason => format!("{}: {}", reason.name(), status.message()),
    }
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Try again after this long.
    Wait(Duration),
    /// Get a new certificate with the old key, and then wait this long.
    EnrollAgain(Duration),
    /// Nothing here can help any more.
    GiveUp,
}

/// How often it has been tried.
#[derive(Debug)]
pub(super) struct Retry {
    hiccup: Backoff,
    refused: Backoff,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            hiccup: Backoff::new(WAIT_FIRST, WAIT_LAST),
            refused: Backoff::new(REFUSED_FIRST, REFUSED_LAST),
        }
    }
}

impl Retry {
    /// It worked.
    pub(super) fn attached(&mut self) {
        self.hiccup.reset();
        self.refused.reset();
    }

    /// What to do after this.
    pub(super) fn after(&mut self, reason: &Detached) -> Next {
        match reason {
            Detached::Drained(wait) => {
                // With jitter, or the whole fleet comes back at once.
                Next::Wait(wait.mul_f64(rand::rng().random_range(1.0..=2.0)))
            }
            Detached::Connect(error) if error.is_expired() || error.is_outdated() => {
                Next::EnrollAgain(self.hiccup.next_wait())
            }
            Detached::Connect(error) if error.is_refused() => Next::Wait(self.refused.next_wait()),
            Detached::Connect(ConnectError::Untrusted { .. }) => {
                Next::Wait(self.refused.next_wait())
            }
            Detached::Refused(status) => match reason_of(status).unwrap_or_default() {
                Reason::HostRemoved => Next::GiveUp,
                Reason::CredentialExpired => Next::EnrollAgain(self.hiccup.next_wait()),
                Reason::Locked
                | Reason::IdentityConflict
                | Reason::SessionSuperseded
                | Reason::VersionUnsupported
                | Reason::NotAllowed
                | Reason::CredentialInvalid
                | Reason::CredentialMissing
                | Reason::ArgumentInvalid => Next::Wait(self.refused.next_wait()),
                _ => Next::Wait(self.hiccup.next_wait()),
            },
            _ => Next::Wait(self.hiccup.next_wait()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_proto::ERROR_DOMAIN;
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    fn refused(reason: Reason) -> Detached {
        let details = ErrorDetails::with_error_info(reason.name(), ERROR_DOMAIN, []);
        Detached::Refused(Status::with_error_details(
            Code::FailedPrecondition,
            "no",
            details,
        ))
    }

    #[test]
    fn a_removed_host_gives_up_and_a_locked_one_waits_long() {
        let mut retry = Retry::default();
        assert_eq!(retry.after(&refused(Reason::HostRemoved)), Next::GiveUp);
        assert!(matches!(
            retry.after(&refused(Reason::Locked)),
            Next::Wait(wait) if wait >= REFUSED_FIRST / 2
        ));
        assert!(matches!(
            retry.after(&refused(Reason::CredentialExpired)),
            Next::EnrollAgain(_)
        ));
    }

    #[test]
    fn hiccups_are_tried_again_soon_and_then_later() {
        let mut retry = Retry::default();
        let Next::Wait(first) = retry.after(&Detached::Closed) else {
            panic!()
        };
        assert!(first <= WAIT_FIRST);
        for _ in 0..10 {
            retry.after(&Detached::Silent);
        }
        let Next::Wait(later) = retry.after(&Detached::Closed) else {
            panic!()
        };
        assert!(later >= WAIT_LAST / 2);
        retry.attached();
        assert!(matches!(retry.after(&Detached::Closed), Next::Wait(wait) if wait <= WAIT_FIRST));
    }
}
