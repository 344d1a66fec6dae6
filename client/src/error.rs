//! Why a call did not work, and whether trying again may help.

use muster_proto::{ERROR_DOMAIN, v1::Reason};
use muster_runtime::tls::{ConnectError, TlsError};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::identity::IdentityError;

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The control plane cannot be reached, is another one, or refuses the certificate.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The credential cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The credential cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The bearer token is no header value.
    #[error("the token holds characters that no token has")]
    Token,
    /// So many watches and attachments at once have no room.
    #[error(
        "{0} watches and attachments at once are as many as this client's connections take; end some, or use another client"
    )]
    TooManyStreams(usize),
    /// The call failed.
    #[error("{}", in_words(.0))]
    Call(Box<Status>),
    /// The answer makes no sense.
    #[error("the control plane's answer cannot be used: {0}")]
    Answer(&'static str),
}

/// Why the control plane said no; `None` if it was not the control plane that did. `Unspecified` is a reason that this
/// version does not know.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    (info.domain == ERROR_DOMAIN)
        .then(|| Reason::from_name(&info.reason).unwrap_or(Reason::Unspecified))
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl ClientError {
    /// Why the control plane said no, if it did. `Unspecified` is a reason that this version does not know.
    pub fn reason(&self) -> Option<Reason> {
        let Self::Call(status) = self else {
            return None;
        };
        reason_of(status)
    }

    /// What the reason comes with, as "position" with `SELECTOR_INVALID`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let Self::Call(status) = self else {
            return None;
        };
        status.get_details_error_info()?.metadata.remove(key)
    }

    /// Why there is no connection, if there is none.
    pub fn connect_error(&self) -> Option<&ConnectError> {
        match self {
            Self::Connect(error) => Some(error),
            Self::Call(status) => ConnectError::behind(&**status),
            _ => None,
        }
    }

    /// gRPC's code, if a call was made.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call(status) => Some(status.code()),
            _ => None,
        }
    }

    /// The same call may work a little later: nobody answered, the connection broke, or the control plane
    /// says so. It may have been carried out.
    pub fn is_transient(&self) -> bool {
        if let Some(error) = self.connect_error() {
            return !matches!(
                error,
                ConnectError::Refused { .. } | ConnectError::Untrusted { .. }
            );
        }
        let Self::Call(status) = self else {
            return false;
        };
        match self.reason() {
            Some(
                Reason::ShuttingDown
                | Reason::Overloaded
                | Reason::LedgerUnavailable
                | Reason::ClientSilent,
            ) => true,
            Some(_) => status.code() == Code::Unavailable,
            // Not from the control plane's doors: the connection broke, or somebody in between speaks.
            None => matches!(
                status.code(),
                Code::Unavailable
                    | Code::Unknown
                    | Code::Internal
                    | Code::Cancelled
                    | Code::Aborted
            ),
        }
    }
}

/// A call over a dead connection fails with "transport error"; what is behind it says more.
fn in_words(status: &Status) -> String {
    if let Some(error) = ConnectError::behind(status) {
        return error.to_string();
    }
    if status.message().is_empty() {
        return format!("the call failed: {}", status.code());
    }
    status.message().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, io};

    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: Code, reason: &str) -> ClientError {
        let metadata = HashMap::from([("position".to_owned(), "4".to_owned())]);
        let details = ErrorDetails::with_error_info(reason, "muster", metadata);
        Status::with_error_details(code, "no", details).into()
    }

    #[test]
    fn a_refusal_has_its_reason() {
        let error = refused(Code::InvalidArgument, "SELECTOR_INVALID");
        assert_eq!(error.reason(), Some(Reason::SelectorInvalid));
        assert_eq!(error.metadata("position").as_deref(), Some("4"));
        assert!(!error.is_transient());
        let unknown = refused(Code::InvalidArgument, "OF_TOMORROW");
        assert_eq!(unknown.reason(), Some(Reason::Unspecified));
    }

    #[test]
    fn what_may_pass_is_transient() {
        assert!(refused(Code::Unavailable, "LEDGER_UNAVAILABLE").is_transient());
        assert!(refused(Code::ResourceExhausted, "OVERLOADED").is_transient());
        assert!(ClientError::from(Status::unavailable("gone")).is_transient());
        assert!(!ClientError::from(Status::unimplemented("never")).is_transient());
        assert!(!refused(Code::Internal, "INTERNAL").is_transient());
    }

    #[test]
    fn the_error_behind_a_channel_is_found() {
        let unreachable = ConnectError::Unreachable {
            address: "h:1".to_owned(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let error = ClientError::from(Status::from_error(Box::new(unreachable)));
        assert!(error.is_transient());
        assert!(
            error.to_string().starts_with("h:1 cannot be reached"),
            "{error}"
        );
    }
}
