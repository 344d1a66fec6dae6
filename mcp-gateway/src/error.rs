//! The one place where what went wrong becomes a tool error: a cause and a next step.
//!
//! Only what the model can do nothing about in this call (an unknown tool, a broken request) is a
//! protocol error: clients hide those from the model. Everything else comes through here.

use muster_proto::{ERROR_DOMAIN, v1::Reason};
use rmcp::model::{CallToolResult, ContentBlock};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

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
}

impl Refusal {
    /// A refusal in words.
    pub(crate) fn new(cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            next: next.into(),
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

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let reason = reason(&status);
        let cause = match reason {
            Reason::Unspecified => transport_cause(&status),
            reason => format!("{} ({})", status.message(), reason.name()),
        };
        Self::new(cause, next_step(reason, status.code()))
    }
}

/// The machine-readable reason of a failed call; unspecified if it did not come from Muster.
pub(crate) fn reason(status: &Status) -> Reason {
    status
        .get_details_error_info()
        .filter(|info| info.domain == ERROR_DOMAIN)
        .and_then(|info| Reason::from_name(&info.reason))
        .unwrap_or_default()
}

/// Whether asking again may help, since the control plane could not be asked or had no time.
pub(crate) fn is_passing(status: &Status) -> bool {
    match reason(status) {
        Reason::Unspecified => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
        ),
        reason => matches!(
            reason,
            Reason::ShuttingDown | Reason::Overloaded | Reason::LedgerUnavailable
        ),
    }
}

fn transport_cause(status: &Status) -> String {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled => {
            "the control plane cannot be reached".to_owned()
        }
        Code::DeadlineExceeded => "the control plane did not answer in time".to_owned(),
        code => format!(
            "the control plane refused the call ({code:?}): {}",
            status.message()
        ),
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

/// What to do about a task that ended for this reason; `None` where the reason says it all.
pub(crate) fn next_step_of_task(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::StartDeadlinePassed => {
            "it never ran; host_list shows whether the host is back, then run again"
        }
        Reason::Timeout => {
            "run again with a larger timeout_s, or without one and wait with job_get"
        }
        Reason::CommandNotFound => {
            "the program is not in the host's PATH: name it by its path, or use command= for shell syntax"
        }
        Reason::CommandNotExecutable => "it may not be executed there: run it by its interpreter",
        Reason::WorkingDirectoryMissing => "correct cwd, or create the directory first",
        Reason::UserNotPermitted => "leave the user out, or ask an operator to allow it",
        Reason::ArgumentListTooLong => "pass the data by stdin",
        Reason::StartFailed => "the message above says what the host lacks",
        Reason::DiskFull => "free space on the host's disk, then run again",
        Reason::ActionUnsupported => "the host's agent is too old for this",
        Reason::HostBusy => "the host runs as much as it may: run again later",
        Reason::AmbiguousStart
        | Reason::HostRebooted
        | Reason::HostRolledBack
        | Reason::AgentDied
        | Reason::HostGone => {
            "nobody can prove what became of it: look at the host before you run it again"
        }
        Reason::Locked => "an operator has locked the host; its task waits until it is unlocked",
        Reason::NotAllowed => {
            "the host's policy refuses this: do something else, or ask an operator"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(code: Code, reason: Reason, message: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason.name(), ERROR_DOMAIN, []);
        Status::with_error_details(code, message, details)
    }

    #[test]
    fn a_reason_decides_the_next_step() {
        let refusal = Refusal::from(status(
            Code::NotFound,
            Reason::HostNotFound,
            "no host is named \"web-9\"",
        ));
        assert_eq!(
            refusal.text(),
            "no host is named \"web-9\" (HOST_NOT_FOUND)\nnext: host_list shows the names; \
             a label is written KEY=VALUE, or KEY=* if it only has to exist"
        );
    }

    #[test]
    fn words_of_a_foreign_error_decide_nothing() {
        let refusal = Refusal::from(Status::unavailable("HOST_NOT_FOUND tcp connect error"));
        assert_eq!(refusal.cause, "the control plane cannot be reached");
        assert!(is_passing(&Status::unavailable("")));
        assert!(is_passing(&status(
            Code::Unavailable,
            Reason::LedgerUnavailable,
            ""
        )));
        assert!(!is_passing(&status(
            Code::NotFound,
            Reason::JobNotFound,
            ""
        )));
    }

    #[test]
    fn every_reason_of_a_task_or_call_has_a_next_step() {
        for number in 1..=99 {
            let Ok(reason) = Reason::try_from(number) else {
                continue;
            };
            assert!(!next_step(reason, Code::Unknown).is_empty());
            let of_a_task = (50..80).contains(&number) && reason != Reason::CancelRequested;
            assert!(
                !of_a_task || next_step_of_task(reason).is_some(),
                "{reason:?}"
            );
        }
    }
}
