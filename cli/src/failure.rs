//! Why a command did not work: one line with its reason, one with what to do next, and an exit code.

use std::{fmt, io, process::ExitCode};

use muster_client::{ClientError, identity::IdentityError};
use muster_proto::v1::Reason;
use muster_runtime::tls::ConnectError;
use serde_json::json;

use crate::screen::clean;

/// Exit codes. A `run` on one host ends with the task's own code.
pub(crate) mod exit {
    /// Some task of several failed.
    pub(crate) const SOME_FAILED: u8 = 1;
    /// Called wrongly.
    pub(crate) const USAGE: u8 = 64;
    /// The file is of another type than is needed, as a directory (EX_DATAERR).
    pub(crate) const FILE_TYPE: u8 = 65;
    /// There is no such file (EX_NOINPUT).
    pub(crate) const NO_FILE: u8 = 66;
    /// Nobody answers, or not now.
    pub(crate) const UNAVAILABLE: u8 = 69;
    /// Something broke.
    pub(crate) const INTERNAL: u8 = 70;
    /// The file cannot be read (EX_IOERR).
    pub(crate) const FILE_UNREADABLE: u8 = 74;
    /// Not allowed.
    pub(crate) const NOT_ALLOWED: u8 = 77;
    /// The task ran longer than its timeout.
    pub(crate) const TIMED_OUT: u8 = 124;
    /// The task is lost, was rejected, expired, or could not be started.
    pub(crate) const NO_RESULT: u8 = 125;
    /// The program exists on the host and may not be executed.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// The program does not exist on the host.
    pub(crate) const NOT_FOUND: u8 = 127;
    /// Interrupted, or the task was cancelled.
    pub(crate) const INTERRUPTED: u8 = 130;
    /// Nobody reads standard output any more (128 + SIGPIPE).
    pub(crate) const BROKEN_PIPE: u8 = 141;
}

/// Why a command did not work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) reason: Option<Reason>,
    pub(crate) message: String,
    /// More lines, for people.
    pub(crate) detail: String,
    pub(crate) next: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: None,
            message: message.into(),
            detail: String::new(),
            next: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(exit::INTERNAL, message)
    }

    /// A file that cannot be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::usage(format!("{}: {error}", path.display()))
    }

    /// About what is in this file.
    pub(crate) fn about(mut self, path: &std::path::Path) -> Self {
        self.message = format!("{}: {}", path.display(), self.message);
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Shows the selector where it is what is wrong, and the place in it.
    pub(crate) fn in_selector(error: ClientError, selector: &str) -> Self {
        let position = error
            .metadata("position")
            .and_then(|position| position.parse::<usize>().ok());
        let failure = Self::from(error);
        let detail = match (failure.reason, position) {
            (Some(Reason::SelectorInvalid), Some(position)) => {
                format!("\n    {}\n    {}^", clean(selector), " ".repeat(position))
            }
            (Some(Reason::NoHostMatches), _) => format!("\n    {}", clean(selector)),
            _ => String::new(),
        };
        Self { detail, ..failure }
    }

    /// Says it on standard error.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if self.code != exit::BROKEN_PIPE {
            if json {
                let reason = self.reason.map(Reason::name);
                let error = json!({"reason": reason, "message": self.message, "next": self.next});
                eprintln!("{}", json!({"error": error}));
            } else {
                eprintln!("{self}");
            }
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(reason) = self.reason {
            write!(f, " [{}]", reason.name())?;
        }
        f.write_str(&self.detail)?;
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl From<io::Error> for Failure {
    /// An error of writing to standard output: everything else names its file.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(exit::BROKEN_PIPE, "nobody reads the output");
        }
        Self::new(
            exit::INTERNAL,
            format!("the output cannot be written: {error}"),
        )
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        ClientError::from(status).into()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let reason = error
            .reason()
            .filter(|reason| *reason != Reason::Unspecified);
        let (code, next) = match (reason, error.connect_error()) {
            (Some(reason), _) => judge(reason),
            (None, Some(error)) => judge_connection(error),
            (None, None) => judge_other(&error),
        };
        // A refusal by policy knows better what to do.
        let told = error.metadata("next").filter(|next| !next.is_empty());
        let told = told.map(|next| clean(&next).into_owned());
        Self {
            code,
            reason,
            message: clean(&error.to_string()).into_owned(),
            detail: String::new(),
            next: told.or_else(|| next.map(str::to_owned)),
        }
    }
}

fn judge(reason: Reason) -> (u8, Option<&'static str>) {
    match reason {
        Reason::CredentialMissing => (
            exit::NOT_ALLOWED,
            Some("run `muster up` on this machine, `muster login`, or set MUSTER_TOKEN"),
        ),
        Reason::CredentialInvalid => (
            exit::NOT_ALLOWED,
            Some("use a credential that this control plane made: `muster token create`"),
        ),
        Reason::CredentialExpired => (
            exit::NOT_ALLOWED,
            Some(
                "log in again (`muster login`), or start `muster up` or `muster control-plane` again on the control plane's machine",
            ),
        ),
        Reason::Locked => (
            exit::NOT_ALLOWED,
            Some(
                "an operator can lift the lock: `muster host unlock HOST`, `muster access unlock PRINCIPAL` or `muster token unlock TOKEN`",
            ),
        ),
        Reason::ScopeInsufficient => (
            exit::NOT_ALLOWED,
            Some("use a token with that scope: `muster token create --scope SCOPE`"),
        ),
        Reason::PrincipalNotFound => (
            exit::USAGE,
            Some("`muster access list` shows the principals"),
        ),
        Reason::LastAdmin => (
            exit::USAGE,
            Some("make another admin first: `muster access set-roles PRINCIPAL admin`"),
        ),
        Reason::AuthorityPhase => (
            exit::USAGE,
            Some("`muster authority status` shows where the rotation stands"),
        ),
        Reason::NotAllowed => (exit::NOT_ALLOWED, Some("ask as an operator")),
        Reason::SelfApproval => (exit::NOT_ALLOWED, Some("somebody else has to answer")),
        Reason::ConfirmationRequired => (
            exit::NOT_ALLOWED,
            Some("show it to somebody who confirms it with --yes"),
        ),
        Reason::ApprovalNotFound => (
            exit::USAGE,
            Some("`muster approval list` and `muster grant list` show those there are"),
        ),
        Reason::ApprovalDrift | Reason::ApprovalExpired | Reason::ApprovalDeclined => (
            exit::USAGE,
            Some("look at it: `muster approval show ID`; what is over has to be asked for anew"),
        ),
        Reason::HostNotFound => (exit::USAGE, Some("`muster host list` shows the hosts")),
        Reason::NoHostMatches => (
            exit::USAGE,
            Some("`muster host list` shows hosts with their labels"),
        ),
        Reason::SelectorInvalid => (
            exit::USAGE,
            Some(
                "a selector is all, names (web-1,web-2) or requirements (env=prod,role in (web,api),!retired)",
            ),
        ),
        Reason::JobNotFound => (exit::USAGE, Some("`muster job list` shows the jobs")),
        Reason::TaskNotFound => (exit::USAGE, Some("`muster job get JOB` shows its tasks")),
        Reason::TokenNotFound => (exit::USAGE, Some("`muster token list` shows the tokens")),
        Reason::RequestIdReused => (
            exit::USAGE,
            Some("choose another --request-id, or leave it out"),
        ),
        Reason::EtagMismatch => (
            exit::USAGE,
            Some("somebody changed it meanwhile: read it again, merge, and use its new etag"),
        ),
        Reason::NameTaken => (exit::USAGE, Some("choose another name")),
        Reason::PatternInvalid => (
            exit::USAGE,
            Some("the pattern is a regular expression; escape . * + ? ( ) [ ] { } | ^ $ with \\"),
        ),
        Reason::JoinTokenInvalid | Reason::JoinTokenExpired | Reason::JoinTokenUsed => (
            exit::NOT_ALLOWED,
            Some("make a new one where the control plane runs: `muster token create host NAME`"),
        ),
        Reason::HostRemoved => (
            exit::NOT_ALLOWED,
            Some("join again with a new join token, in a new data directory"),
        ),
        Reason::LedgerUnavailable => (
            exit::UNAVAILABLE,
            Some(
                "it may have started: repeat the command with the same --request-id; look at the control plane's disk",
            ),
        ),
        Reason::PolicyDenied | Reason::ModeTooHigh => (
            exit::NOT_ALLOWED,
            Some(
                "`muster policy explain me ACTION` says why, and who could grant it; `muster grant request` asks for it",
            ),
        ),
        Reason::ModeDisabled => (
            exit::NOT_ALLOWED,
            Some("`muster host get HOST` says why; `muster host mode HOST own` takes it back"),
        ),
        Reason::PrincipalSuspended => (
            exit::NOT_ALLOWED,
            Some("an admin lifts it: `muster policy resume PRINCIPAL`"),
        ),
        Reason::PolicyInvalid => (
            exit::USAGE,
            Some("`muster policy show schema` says what policies speak of"),
        ),
        Reason::RateLimited => (exit::UNAVAILABLE, Some("try again after a minute")),
        Reason::ShuttingDown | Reason::Overloaded => {
            (exit::UNAVAILABLE, Some("try again in a moment"))
        }
        Reason::Internal => (
            exit::INTERNAL,
            Some("the control plane's log says what broke"),
        ),
        Reason::VersionUnsupported => (exit::USAGE, Some("use the same version on both sides")),
        _ => (exit::USAGE, None),
    }
}

fn judge_connection(error: &ConnectError) -> (u8, Option<&'static str>) {
    match error {
        ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. } => (
            exit::UNAVAILABLE,
            Some(
                "is the control plane running? start it with `muster up`, or name another --address",
            ),
        ),
        ConnectError::Untrusted { .. } => (
            exit::NOT_ALLOWED,
            Some("check the address, and that the credential comes from that control plane"),
        ),
        ConnectError::Refused { .. } => (
            exit::NOT_ALLOWED,
            Some(
                "log in again (`muster login`), or start `muster up` or `muster control-plane` again on the control plane's machine",
            ),
        ),
        ConnectError::Handshake { .. } => (
            exit::UNAVAILABLE,
            Some("does a Muster control plane listen there? its log may say more"),
        ),
    }
}

fn judge_other(error: &ClientError) -> (u8, Option<&'static str>) {
    match error {
        ClientError::Identity(IdentityError::Missing(_)) => (
            exit::NOT_ALLOWED,
            Some("run `muster up` on this machine, `muster login`, or set MUSTER_TOKEN and --ca"),
        ),
        ClientError::Identity(_) | ClientError::Tls(_) => (exit::NOT_ALLOWED, None),
        ClientError::Token => (exit::USAGE, None),
        _ if error.is_transient() => (exit::UNAVAILABLE, Some("try again in a moment")),
        _ => (exit::INTERNAL, None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn refused(reason: Reason, message: &str, metadata: &[(&str, &str)]) -> ClientError {
        let metadata: HashMap<_, _> = metadata
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let details = ErrorDetails::with_error_info(reason.name(), "muster", metadata);
        Status::with_error_details(Code::InvalidArgument, message, details).into()
    }

    #[test]
    fn a_failure_is_a_line_with_a_reason_and_a_next_step() {
        let failure = Failure::from(refused(
            Reason::HostNotFound,
            "no host \u{1b}[31mweb-9",
            &[],
        ));
        assert_eq!(
            failure.to_string(),
            "error: no host \\u{1b}[31mweb-9 [HOST_NOT_FOUND]\n  next: `muster host list` shows the hosts"
        );
        assert_eq!(failure.code, exit::USAGE);
    }

    #[test]
    fn a_wrong_selector_is_pointed_at() {
        let error = refused(
            Reason::SelectorInvalid,
            "a key is missing",
            &[("position", "4")],
        );
        let text = Failure::in_selector(error, "a=b,=c").to_string();
        assert!(
            text.contains("[SELECTOR_INVALID]\n    a=b,=c\n        ^\n  next: "),
            "{text}"
        );
    }

    #[test]
    fn exit_codes_follow_the_reason() {
        for (reason, code) in [
            (Reason::CredentialExpired, exit::NOT_ALLOWED),
            (Reason::LedgerUnavailable, exit::UNAVAILABLE),
            (Reason::Internal, exit::INTERNAL),
            (Reason::ArgumentInvalid, exit::USAGE),
        ] {
            assert_eq!(Failure::from(refused(reason, "no", &[])).code, code);
        }
        let status = Status::unavailable("gone");
        assert_eq!(Failure::from(status).code, exit::UNAVAILABLE);
    }
}
