//! What a job may ask for.

mod confinement;
mod living;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_proto::{
    ids::JobId,
    v1::{Action, Command, CreateJobRequest, Reason, ReleaseJobsRequest, action},
};
use prost::Message as _;
use tonic::Status;

use crate::{jobs::digest, model::redaction::REDACTED, selector::Selector, times, wire::status};

/// Characters of a request id.
const REQUEST_ID_MAX: usize = 128;
/// Bytes of a selector.
const SELECTOR_MAX: usize = 256 << 10;
/// Bytes of arguments and environment, as of standard input.
const TEXT_MAX: usize = 1 << 20;
/// Bytes of a path or a user.
const NAME_MAX: usize = 4096;
/// How long hosts may take to start, if the caller does not say.
const START_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// And at most.
const START_DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long a silent host is believed, if the caller does not say.
const LOST_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Characters of the reason for a job.
const REASON_MAX: usize = 1000;

/// Jobs in one release.
const RELEASED_MAX: usize = 1000;

/// A request that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) request_id: Arc<str>,
    pub(super) digest: [u8; 32],
    pub(super) selector_text: Arc<str>,
    pub(super) selector: Selector,
    /// What is to be done, as it came.
    pub(super) kind: Action,
    /// What a person confirmed; empty if nobody did.
    pub(super) confirmed_digest: Bytes,
    /// A serialized `Confinement`; empty if nothing was asked for.
    pub(super) confinement: Bytes,
    pub(super) reason: Arc<str>,
    /// Milliseconds.
    pub(super) start_deadline: i64,
    /// Milliseconds.
    pub(super) lost_after: i64,
}

/// Which jobs to release; `None` for all of them.
pub(super) fn released(request: &ReleaseJobsRequest) -> Result<Option<Vec<JobId>>, Status> {
    match (request.all, request.job_ids.len()) {
        (true, 0) => Ok(None),
        (true, _) => Err(status::invalid("job_ids", "is empty where `all` is set")),
        (false, 0) => Err(status::invalid(
            "job_ids",
            "is empty; `all` means every job",
        )),
        (false, count) if count > RELEASED_MAX => Err(too_long("job_ids", "1,000 jobs")),
        (false, _) => request
            .job_ids
            .iter()
            .map(|id| super::job_id(id))
            .collect::<Result<_, _>>()
            .map(Some),
    }
}

/// Checks a request.
pub(super) fn create(request: CreateJobRequest) -> Result<Checked, Status> {
    let id = &request.request_id;
    if id.is_empty()
        || id.len() > REQUEST_ID_MAX
        || !id.bytes().all(|c| c.is_ascii_graphic() || c == b' ')
    {
        return Err(status::invalid(
            "request_id",
            "has 1 to 128 printable ASCII characters; a UUID does well",
        ));
    }
    if request.selector.len() > SELECTOR_MAX {
        return Err(too_long("selector", "256 KiB"));
    }
    let selector = Selector::parse(&request.selector).map_err(|error| status::of(&error))?;
    let digest = digest_of(&request);
    let Some(Action {
        kind: Some(action::Kind::Command(command)),
    }) = &request.action
    else {
        return Err(status::invalid("action", "is missing; set action.command"));
    };
    check_command(command)?;
    let confinement = confinement::check(&request)?;
    if request.reason.chars().count() > REASON_MAX {
        return Err(too_long("reason", "1,000 characters"));
    }
    let start_deadline = match &request.start_deadline {
        None => START_DEADLINE,
        Some(given) => Duration::try_from(*given)
            .ok()
            .filter(|given| !given.is_zero() && *given <= START_DEADLINE_MAX)
            .ok_or_else(|| status::invalid("start_deadline", "is more than 0 and at most 7 d"))?,
    };
    let lost_after = match &request.lost_after {
        None => LOST_AFTER,
        Some(given) => Duration::try_from(*given)
            .ok()
            .filter(|given| !given.is_zero())
            .ok_or_else(|| status::invalid("lost_after", "is more than 0"))?,
    };
    Ok(Checked {
        digest,
        selector,
        kind: request.action.unwrap_or_default(),
        confirmed_digest: request.confirmed_digest,
        confinement,
        reason: request.reason.into(),
        request_id: request.request_id.into(),
        selector_text: request.selector.into(),
        start_deadline: times::duration_millis(&times::duration(start_deadline)),
        lost_after: times::duration_millis(&times::duration(lost_after)),
    })
}

/// SHA-256 of the request, whatever the order of its maps.
fn digest_of(request: &CreateJobRequest) -> [u8; 32] {
    let mut request = request.clone();
    // A request that was confirmed is the one that had to be.
    request.confirmed_digest = Bytes::new();
    let mut env = BTreeMap::new();
    if let Some(Action {
        kind: Some(action::Kind::Command(command)),
    }) = &mut request.action
    {
        env.extend(std::mem::take(&mut command.env));
    }
    let env: Vec<String> = env
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    // The encoding comes last: it alone may hold a NUL.
    digest(&[env.join("\0").as_bytes(), &request.encode_to_vec()])
}

fn check_command(command: &Command) -> Result<(), Status> {
    match (command.argv.as_slice(), &command.script) {
        ([], None) => return Err(status::invalid("action.command", "needs argv or script")),
        ([_, ..], Some(_)) => {
            return Err(status::invalid(
                "action.command",
                "has argv or script, not both",
            ));
        }
        ([program, ..], None) if program.is_empty() => {
            return Err(status::invalid(
                "action.command.argv",
                "begins with a program",
            ));
        }
        ([], Some(script)) if script.text.is_empty() => {
            return Err(status::invalid("action.command.script.text", "is empty"));
        }
        _ => {}
    }
    let script = command
        .script
        .iter()
        .flat_map(|script| [&script.text, &script.shell]);
    let env = command.env.iter().flat_map(|(name, value)| [name, value]);
    let texts = command.argv.iter().chain(script).chain(env);
    let mut bytes = 0;
    for text in texts.chain([&command.cwd, &command.user]) {
        if text.contains('\0') {
            return Err(status::invalid("action.command", "no text may hold a NUL"));
        }
        bytes += text.len() + 1;
    }
    if bytes > TEXT_MAX {
        return Err(too_long(
            "action.command: argv, script and env",
            "1 MiB in all",
        ));
    }
    if command.stdin.len() > TEXT_MAX {
        return Err(too_long("action.command.stdin", "1 MiB"));
    }
    if command
        .env
        .keys()
        .any(|name| name.is_empty() || name.contains('='))
    {
        return Err(status::invalid(
            "action.command.env",
            "a name is not empty and holds no \"=\"",
        ));
    }
    if command.env.values().any(|value| value == REDACTED) {
        return Err(status::invalid(
            "action.command.env",
            "holds \"[redacted]\", which is what history shows of a secret; give its value",
        ));
    }
    if !command.cwd.is_empty() && !command.cwd.starts_with('/') {
        return Err(status::invalid("action.command.cwd", "is an absolute path"));
    }
    if command.cwd.len() > NAME_MAX || command.user.len() > NAME_MAX {
        return Err(too_long("action.command: cwd and user", "4096 bytes"));
    }
    let timeout = command.timeout.map(Duration::try_from);
    if timeout.is_some_and(|timeout| timeout.is_err() || timeout.is_ok_and(|time| time.is_zero())) {
        return Err(status::invalid("action.command.timeout", "is more than 0"));
    }
    if command
        .grace
        .is_some_and(|grace| Duration::try_from(grace).is_err())
    {
        return Err(status::invalid("action.command.grace", "is not negative"));
    }
    living::check(command)
}

fn too_long(field: &str, limit: &str) -> Status {
    status::refuse(
        Reason::LimitExceeded,
        &format!("{field}: has at most {limit}"),
    )
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn request(command: Command) -> CreateJobRequest {
        CreateJobRequest {
            request_id: "r-1".into(),
            selector: "all".into(),
            action: Some(Action {
                kind: Some(action::Kind::Command(command)),
            }),
            ..CreateJobRequest::default()
        }
    }

    fn command(argv: &[&str]) -> Command {
        Command {
            argv: argv.iter().map(ToString::to_string).collect(),
            ..Command::default()
        }
    }

    fn reason(request: CreateJobRequest) -> String {
        let status = create(request).unwrap_err();
        status.get_details_error_info().unwrap().reason
    }

    #[test]
    fn a_request_is_checked() {
        create(request(command(&["true"]))).unwrap();
        assert_eq!(reason(request(command(&[]))), "ARGUMENT_INVALID");
        assert_eq!(reason(request(command(&["a\0b"]))), "ARGUMENT_INVALID");
        let long = "x".repeat(TEXT_MAX);
        assert_eq!(reason(request(command(&[&long]))), "LIMIT_EXCEEDED");
        let relative = Command {
            cwd: "tmp".into(),
            ..command(&["true"])
        };
        assert_eq!(reason(request(relative)), "ARGUMENT_INVALID");
        let copied = Command {
            env: [("API_TOKEN".into(), REDACTED.into())].into(),
            ..command(&["true"])
        };
        assert_eq!(reason(request(copied)), "ARGUMENT_INVALID");
        let anonymous = CreateJobRequest {
            request_id: String::new(),
            ..request(command(&["true"]))
        };
        assert_eq!(reason(anonymous), "ARGUMENT_INVALID");
    }

    #[test]
    fn the_digest_covers_how_a_process_is_lived_in() {
        let changes: [fn(&mut Command); 6] = [
            |command| command.terminal = Some(Default::default()),
            |command| command.open_stdin = true,
            |command| command.limits = Some(Default::default()),
            |command| command.environment = Some(Default::default()),
            |command| command.output_limit = Some(Default::default()),
            |command| command.record = true,
        ];
        let digests = changes.map(|change| {
            let mut command = command(&["true"]);
            change(&mut command);
            digest_of(&request(command))
        });
        let plain = digest_of(&request(command(&["true"])));
        let all: std::collections::BTreeSet<_> = digests.into_iter().chain([plain]).collect();
        assert_eq!(all.len(), changes.len() + 1);
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_the_environment() {
        let with = |names: &[&str]| {
            let env = names.iter().map(|n| (n.to_string(), "1".to_owned()));
            digest_of(&request(Command {
                env: env.collect(),
                ..command(&["true"])
            }))
        };
        assert_eq!(with(&["a", "b", "c", "d"]), with(&["d", "c", "b", "a"]));
        assert_ne!(with(&["a"]), with(&["b"]));
        assert_ne!(with(&[]), with(&["b"]));
    }
}
