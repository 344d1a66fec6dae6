//! `grant_request`: a model asks for more than it may. People give it, or do not; nothing here can.

use muster_proto::v1::{Approval, ApprovalAnswer, Mode, Reason, RequestGrantRequest, approval};
use rmcp::model::CallToolResult;

use super::{Arguments, Call, random_hex, run, seconds, text};
use crate::{
    error::Refusal,
    render::{clean, words},
};

/// How long a grant lasts unless told otherwise, minutes.
const MINUTES: i64 = 60;
/// And at most: 7 days.
const MINUTES_MAX: i64 = 7 * 24 * 60;

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let selector = arguments.required("target", "env=dev")?;
    let reason = arguments.required("reason", "the deploy restarts a service")?;
    let mode = match run::mode(&mut arguments)? {
        Mode::Unspecified => {
            return Err(Refusal::new(
                "mode is missing",
                "give the lowest mode that is enough: read-only, edit or unrestricted",
            ));
        }
        mode => mode,
    };
    let actions = match arguments.word("tool")?.as_deref() {
        // The control plane takes commands to be meant.
        None | Some("run") => Vec::new(),
        Some("file_read") => vec!["file.read".to_owned()],
        Some(other) => {
            return Err(Refusal::new(
                format!("tool is {:?}", words::shortened(other, 40)),
                "tool is run or file_read",
            ));
        }
    };
    let minutes = arguments.number("minutes", 1..=MINUTES_MAX)?;
    let key = arguments.word("key")?;
    let request = RequestGrantRequest {
        reason,
        selector,
        mode: mode.into(),
        actions,
        ttl: Some(seconds(minutes.unwrap_or(MINUTES) * 60)),
        request_id: key.unwrap_or_else(|| format!("mcp-{}", random_hex::<16>())),
    };
    let key = request.request_id.clone();
    let mut grants = call.client.grants();
    let answer = call.ask(grants.request_grant(request)).await?;
    let approval = answer.approval.unwrap_or_default();
    let over = !matches!(
        approval.state(),
        approval::State::Awaiting | approval::State::Approved
    );
    Ok(text(told(&approval, &key), over))
}

/// How it stands, and what to do meanwhile.
fn told(approval: &Approval, key: &str) -> String {
    let id = clean::words(&approval.approval_id);
    let grant = approval.grant.clone().unwrap_or_default();
    let until = |time: Option<&prost_types::Timestamp>| {
        time.map_or_else(|| "unknown".to_owned(), words::time)
    };
    match approval.state() {
        approval::State::Awaiting => {
            let who = match approval.answerers.as_slice() {
                [] => "nobody can answer now".to_owned(),
                who => format!("{} can answer", clean::words(&who.join(", "))),
            };
            format!(
                "{id} awaiting: a person has to give it, until {}; {who}: muster approval show {id}\n\
                 next: do not ask again and do not try another way; tell the person you work for, and see how it \
                 stands with grant_request, the same arguments and key={key}\n",
                until(approval.expire_time.as_ref()),
            )
        }
        approval::State::Approved => format!(
            "{id} given, until {}\nnext: do it now, with the mode that was given\n",
            until(grant.expire_time.as_ref()),
        ),
        state => {
            let declined = (approval.answers.iter())
                .find(|answer| answer.answer() == ApprovalAnswer::Decline)
                .map(|answer| answer.principal.as_str());
            let reason = match state {
                approval::State::Declined => Reason::ApprovalDeclined,
                approval::State::Expired => Reason::ApprovalExpired,
                _ => Reason::ApprovalDrift,
            };
            let by = declined.map_or_else(String::new, |who| format!(" by {who}"));
            let word = approval::State::as_str_name(&state).trim_start_matches("STATE_");
            format!(
                "{id} {}{}: {} ({})\nnext: do without it, and tell the person you work for\n",
                word.to_lowercase(),
                clean::words(&by),
                words::shortened(&clean::words(&approval.cause), 400),
                reason.name(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_grant_stands_is_told_with_what_to_do() {
        let with = |state: approval::State, answerers: &[&str]| Approval {
            approval_id: "p-1".to_owned(),
            state: state.into(),
            cause: "declined by operator/ada: no".to_owned(),
            answerers: answerers.iter().map(ToString::to_string).collect(),
            ..Approval::default()
        };
        let waits = told(&with(approval::State::Awaiting, &["operator/ada"]), "k");
        assert!(waits.contains("operator/ada can answer") && waits.contains("do not ask again"));
        let alone = told(&with(approval::State::Awaiting, &[]), "k");
        assert!(alone.contains("nobody can answer now"));
        assert!(told(&with(approval::State::Approved, &[]), "k").contains("do it now"));
        let declined = told(&with(approval::State::Declined, &[]), "k");
        assert!(declined.contains("APPROVAL_DECLINED") && declined.contains("do without it"));
    }
}
