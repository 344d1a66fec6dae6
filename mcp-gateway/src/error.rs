//! The one place where what went wrong becomes a tool error: a cause and a next step.
//!
//! Only what the model can do nothing about in this call (an unknown tool, a broken request) is a
//! protocol error: clients hide those from the model. Everything else comes through here.

use muster_client::ClientError;
use muster_proto::v1::Reason;
use rmcp::model::{CallToolResult, ContentBlock};
use tonic::Code;

use crate::render::{clean, words};

/// The longest cause that is shown, characters; clients cut long errors.
const CAUSE_MAX: usize = 1_500;

/// Why a tool did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What went wrong, one line.
    pub(crate) cause: String,
    /// What to do about it, one line.
    pub(crate) next: String,
    /// A person can be asked instead.
    pub(crate) question: Option<Box<Confirmation>>,
}

/// What has to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confirmation {
    /// The digest of exactly what is to happen, in hex.
    pub(crate) digest: String,
    /// Names of the hosts, cut where they are many.
    pub(crate) hosts: String,
    /// How many there are.
    pub(crate) host_count: String,
    /// The mode; empty if the hosts decide.
    pub(crate) mode: String,
}

impl Refusal {
    /// A refusal in words.
    pub(crate) fn new(cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            next: next.into(),
            question: None,
        }
    }

    /// Both lines.
    pub(crate) fn text(&self) -> String {
        let cause = words::shortened(&clean::words(&self.cause), CAUSE_MAX);
        format!("{cause}\nnext: {}", self.next)
    }
}

impl From<Refusal> for CallToolResult {
    fn from(refusal: Refusal) -> Self {
        CallToolResult::error(vec![ContentBlock::text(refusal.text())])
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        let code = error.code().unwrap_or(Code::Unknown);
        let question = (error.reason() == Some(Reason::ConfirmationRequired)).then(|| {
            let word = |key| error.metadata(key).unwrap_or_default();
            Box::new(Confirmation {
                digest: word("digest"),
                hosts: word("hosts"),
                host_count: word("host_count"),
                mode: word("mode"),
            })
        });
        let refusal = match error.reason() {
            Some(reason) => Self::new(
                format!("{error} ({})", reason.name()),
                // A refusal by policy knows better what to do.
                match error.metadata("next") {
                    Some(next) if !next.is_empty() => clean::words(&next),
                    _ => next_step(reason, code).to_owned(),
                },
            ),
            None => Self::new(
                foreign_cause(&error, code),
                next_step(Reason::Unspecified, code),
            ),
        };
        Self {
            question,
            ..refusal
        }
    }
}

/// Why a call failed that the control plane never refused. Addresses and TLS are the operator's business:
/// they are in the log.
fn foreign_cause(error: &ClientError, code: Code) -> String {
    tracing::warn!(%error, "the control plane gave no answer: {error}");
    match code {
        Code::DeadlineExceeded => "the control plane did not answer in time".to_owned(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => {
            "the control plane cannot be reached".to_owned()
        }
        code => format!("the control plane refused the call ({code:?})"),
    }
}

fn next_step(reason: Reason, code: Code) -> &'static str {
    match reason {
        Reason::CredentialMissing | Reason::CredentialInvalid | Reason::CredentialExpired => {
            "the token is not valid any more: ask an operator for a new one (muster token create)"
        }
        Reason::Locked => "an operator has to unlock it; until then nothing can be done here",
        Reason::NotAllowed => "an operator has to do this, or allow it; do something else",
        Reason::ArgumentInvalid => "correct the argument and call again",
        Reason::SelectorInvalid => {
            "write all, host names (web-1,web-2) or requirements (env=prod,role in (web,api),!retired,gpu=*)"
        }
        Reason::HostNotFound => {
            "host_list shows the names; a label is written KEY=VALUE, or KEY=* if it only has to exist"
        }
        Reason::NoHostMatches => "host_list without target shows all hosts and their labels",
        Reason::JobNotFound | Reason::TaskNotFound => "job_get without job_id lists the jobs",
        Reason::RequestIdReused => {
            "this key belongs to another request: choose a new key, or repeat that request unchanged"
        }
        Reason::PolicyDenied | Reason::ModeTooHigh => {
            "do it as far as you may, or ask for more with grant_request; a person decides"
        }
        Reason::ConfirmationRequired => {
            "a person has to confirm it: ask them to run it with muster run; do not try another way"
        }
        Reason::SelfApproval | Reason::ApprovalNotFound => {
            "people answer approvals, and give grants: muster approval list"
        }
        Reason::EtagMismatch => {
            "read the new instruction with host_list detail=full, then set it again"
        }
        Reason::NameTaken => "choose another name",
        Reason::PageTokenInvalid => "begin again without cursor; keep the other arguments the same",
        Reason::LimitExceeded => "stay below the limit that is named",
        Reason::PatternInvalid => {
            "grep takes a regular expression of the Rust crate regex; escape ( ) [ ] . * + ? with \\"
        }
        Reason::LedgerUnavailable => {
            "the job may have started: call again with the same arguments and the same key"
        }
        Reason::ShuttingDown | Reason::Overloaded => "wait a few seconds and call again",
        Reason::RateLimited => "do less at once; wait a minute and call again",
        Reason::PrincipalSuspended => {
            "job_get and job_cancel still work; tell the person you work for: an operator has to lift it"
        }
        Reason::Internal => "call again; if it stays, the log of the control plane says why",
        _ => match code {
            Code::Unauthenticated => "ask an operator for a new token (muster token create)",
            Code::PermissionDenied => "an operator has to do this, or allow it",
            Code::InvalidArgument => "correct the argument and call again",
            _ => {
                "call again in a few seconds; if it stays, an operator has to look after the control plane"
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn what_is_no_refusal_names_no_address() {
        let refusal = Refusal::from(ClientError::Answer("it is empty"));
        assert_eq!(refusal.cause, "the control plane cannot be reached");
        assert!(refusal.next.starts_with("call again"));
    }

    #[test]
    fn every_reason_of_a_call_has_a_next_step() {
        for number in 1..=199 {
            let Ok(reason) = Reason::try_from(number) else {
                continue;
            };
            assert!(!next_step(reason, Code::Unknown).is_empty());
        }
    }
}
