//! What a request for a job says, as orders take it.

mod confinement;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use muster_proto::{
    ids::JobId,
    v1::{Action, CreateJobRequest, ReleaseJobsRequest, action},
};
use prost::Message as _;

use tonic::Status;

use crate::{jobs::digest, model::Refusal, orders::Wanted, selector::Selector, times};

/// Characters of a request id.
const REQUEST_ID_MAX: usize = 128;
/// Bytes of a selector.
const SELECTOR_MAX: usize = 256 << 10;
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

/// Which jobs to release; `None` for all of them.
pub(super) fn released(request: &ReleaseJobsRequest) -> Result<Option<Vec<JobId>>, Status> {
    match (request.all, request.job_ids.len()) {
        (true, 0) => Ok(None),
        (true, _) => Err(Refusal::invalid("job_ids", "is empty where `all` is set").into()),
        (false, 0) => Err(Refusal::invalid("job_ids", "is empty; `all` means every job").into()),
        (false, count) if count > RELEASED_MAX => {
            Err(Refusal::too_long("job_ids", "1,000 jobs").into())
        }
        (false, _) => request
            .job_ids
            .iter()
            .map(|id| super::job_id(id))
            .collect::<Result<_, _>>()
            .map(Some),
    }
}

/// What a request wants done; refused if its words are none. Whether an action can be carried out, orders check.
pub(super) fn create(request: CreateJobRequest) -> Result<Wanted, Refusal> {
    let id = &request.request_id;
    if id.is_empty()
        || id.len() > REQUEST_ID_MAX
        || !id.bytes().all(|c| c.is_ascii_graphic() || c == b' ')
    {
        return Err(Refusal::invalid(
            "request_id",
            "has 1 to 128 printable ASCII characters; a UUID does well",
        ));
    }
    if request.selector.len() > SELECTOR_MAX {
        return Err(Refusal::too_long("selector", "256 KiB"));
    }
    let selector = Selector::parse(&request.selector)?;
    let digest = digest_of(&request);
    let confinement = confinement::check(&request)?;
    if request.reason.chars().count() > REASON_MAX {
        return Err(Refusal::too_long("reason", "1,000 characters"));
    }
    let start_deadline = match &request.start_deadline {
        None => START_DEADLINE,
        Some(given) => Duration::try_from(*given)
            .ok()
            .filter(|given| !given.is_zero() && *given <= START_DEADLINE_MAX)
            .ok_or_else(|| Refusal::invalid("start_deadline", "is more than 0 and at most 7 d"))?,
    };
    let lost_after = match &request.lost_after {
        None => LOST_AFTER,
        Some(given) => Duration::try_from(*given)
            .ok()
            .filter(|given| !given.is_zero())
            .ok_or_else(|| Refusal::invalid("lost_after", "is more than 0"))?,
    };
    Ok(Wanted {
        digest,
        selector,
        action: request.action.unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use muster_proto::v1::{Command, Reason};

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

    #[test]
    fn a_request_without_a_name_of_its_own_is_refused() {
        create(request(command(&["true"]))).unwrap();
        let anonymous = CreateJobRequest {
            request_id: String::new(),
            ..request(command(&["true"]))
        };
        let refusal = create(anonymous).unwrap_err();
        assert_eq!(refusal.reason, Reason::ArgumentInvalid);
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
