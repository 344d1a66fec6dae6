//! The one place where an error becomes a gRPC status.
//!
//! An error says its reason; the reason decides the code. A caller gets the code, the words, and a
//! `google.rpc.ErrorInfo` with the reason (AIP-193).

use muster_proto::{ERROR_DOMAIN, v1::Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::model::{Explain, Refusal};

/// The status of an error. What broke inside is logged here and not told.
pub(crate) fn of(error: impl Explain) -> Status {
    told(error.reason(), &error.to_string(), error.metadata())
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        told(refusal.reason, &refusal.words, refusal.metadata)
    }
}

fn told(reason: Reason, words: &str, metadata: Vec<(&'static str, String)>) -> Status {
    if matches!(reason, Reason::Internal | Reason::Unspecified) {
        tracing::error!(error = words, "a call failed inside: {words}");
        return status(
            Reason::Internal,
            "something broke inside; the control plane's log says what",
            Vec::new(),
        );
    }
    status(reason, words, metadata)
}

/// A refusal that is no error of ours: words for a reason.
pub(crate) fn refuse(reason: Reason, message: &str) -> Status {
    status(reason, message, Vec::new())
}

/// The reason of a status that was made here; its code if it has none.
pub(crate) fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}

/// A malformed argument.
pub(crate) fn invalid(field: &'static str, problem: &str) -> Status {
    Refusal::invalid(field, problem).into()
}

/// The caller's token does not reach that far.
pub(crate) fn out_of_scope(scopes: &[&str]) -> Status {
    let named: Vec<String> = scopes.iter().map(|text| format!("{text:?}")).collect();
    status(
        Reason::ScopeInsufficient,
        &format!(
            "the token does not reach that far; one with the scope {} does",
            named.join(" or ")
        ),
        vec![("scope", scopes.join(" "))],
    )
}

fn status(reason: Reason, message: &str, metadata: Vec<(&'static str, String)>) -> Status {
    let details = ErrorDetails::with_error_info(
        reason.name(),
        ERROR_DOMAIN,
        metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<std::collections::HashMap<_, _>>(),
    );
    Status::with_error_details(code(reason), message, details)
}

/// The canonical code of each reason.
fn code(reason: Reason) -> Code {
    match reason {
        Reason::CredentialMissing | Reason::CredentialInvalid | Reason::CredentialExpired => {
            Code::Unauthenticated
        }
        Reason::Locked
        | Reason::NotAllowed
        | Reason::HostRemoved
        | Reason::JoinTokenInvalid
        | Reason::JoinTokenExpired
        | Reason::JoinTokenUsed
        | Reason::ProofInvalid
        | Reason::SealInvalid
        | Reason::ModeTooHigh
        | Reason::ModeDisabled
        | Reason::PathDenied
        | Reason::ProgramDenied
        | Reason::ActionDenied
        | Reason::PolicyDenied
        | Reason::SelfApproval
        | Reason::PrincipalSuspended
        | Reason::ScopeInsufficient
        | Reason::UserNotPermitted => Code::PermissionDenied,
        Reason::ArgumentInvalid
        | Reason::SelectorInvalid
        | Reason::PageTokenInvalid
        | Reason::PatternInvalid
        | Reason::CsrInvalid
        | Reason::LimitExceeded
        | Reason::PolicyInvalid
        | Reason::ArgumentListTooLong => Code::InvalidArgument,
        Reason::HostNotFound
        | Reason::JobNotFound
        | Reason::TaskNotFound
        | Reason::TokenNotFound
        | Reason::ApprovalNotFound
        | Reason::PrincipalNotFound => Code::NotFound,
        Reason::RequestIdReused | Reason::NameTaken | Reason::PrincipalExists => {
            Code::AlreadyExists
        }
        Reason::EtagMismatch | Reason::SessionSuperseded | Reason::ClientSilent => Code::Aborted,
        Reason::NoHostMatches
        | Reason::IdentityConflict
        | Reason::ModeUnenforceable
        | Reason::NetworkUnenforceable
        | Reason::AuthorityPhase
        | Reason::LastAdmin
        | Reason::ConfirmationRequired
        | Reason::ApprovalExpired
        | Reason::ApprovalDeclined
        | Reason::ApprovalDrift
        | Reason::VersionUnsupported => Code::FailedPrecondition,
        Reason::LedgerUnavailable | Reason::ShuttingDown | Reason::IssuerUnavailable => {
            Code::Unavailable
        }
        Reason::Overloaded | Reason::RateLimited | Reason::HostBusy | Reason::DiskFull => {
            Code::ResourceExhausted
        }
        // Reasons of tasks; no call fails with them.
        Reason::StartDeadlinePassed
        | Reason::CancelRequested
        | Reason::Timeout
        | Reason::CommandNotFound
        | Reason::CommandNotExecutable
        | Reason::WorkingDirectoryMissing
        | Reason::StartFailed
        | Reason::ActionUnsupported
        | Reason::AmbiguousStart
        | Reason::HostRebooted
        | Reason::HostRolledBack
        | Reason::AgentDied
        | Reason::HostGone
        | Reason::LimitUnsupported
        | Reason::OutputLimit
        | Reason::SupervisorDied
        | Reason::WorkerDied
        | Reason::FileNotFound
        | Reason::FileNotPermitted
        | Reason::FileType
        | Reason::FileUnreadable
        // Reasons of inputs; they stand in answers.
        | Reason::HostDisconnected
        | Reason::HostSilent
        | Reason::NotWriter
        | Reason::AuditBroken
        | Reason::Internal
        | Reason::Unspecified => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{selector::Selector, store::StoreError};

    #[test]
    fn a_caller_gets_code_words_and_reason() {
        let error = Selector::parse("env=").unwrap_err();
        let status = of(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("expected a value"), "{status}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "SELECTOR_INVALID");
        assert_eq!(info.domain, "muster");
        assert_eq!(info.metadata["position"], "4");
    }

    #[test]
    fn what_broke_inside_is_not_told() {
        let status = of(StoreError::Conflict("hosts.secret_column".into()));
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
        assert_eq!(status.get_details_error_info().unwrap().reason, "INTERNAL");
        // A disk that is full is to be told from a fault of ours.
        let status = of(StoreError::Broken("disk I/O error".into()));
        assert_eq!(status.code(), Code::Unavailable);
    }
}
