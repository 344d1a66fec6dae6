//! Asking the person at the client to confirm what policy wants confirmed. A confirmation is bound to the digest that
//! the control plane named, which checks it against the very request; it is never an approval.
//!
//! Newer clients are asked by a result that wants input and call again; older ones by a request within the call.

use std::{collections::BTreeMap, time::Duration};

use data_encoding::HEXLOWER;
use rmcp::{
    Peer, RoleServer,
    model::{
        CallToolRequestParams, ClientCapabilities, ClientResult, ElicitRequest,
        ElicitRequestParams, ElicitResult, ElicitationAction, ElicitationSchema, InputRequest,
        InputRequiredResult, ServerRequest,
    },
};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Confirmation, Refusal},
    render::clean,
};

/// How long a person may take in an older client, whose call waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);

/// The name of the question, and of the field to tick.
const QUESTION: &str = "confirm";

/// Characters of a command that a question can show; nobody confirms what they cannot see.
const COMMAND_MAX: usize = 4_000;

/// Whom to ask, and what was answered.
pub(crate) struct Asker {
    peer: Peer<RoleServer>,
    /// The caller has gone.
    stop: CancellationToken,
    /// The client can show a form.
    can_ask: bool,
    /// The client is asked by a result, and calls again.
    by_result: bool,
    answer: Option<(ElicitResult, String)>,
    /// What the call has to answer with instead.
    pub(crate) wanted: Option<InputRequiredResult>,
}

impl Asker {
    /// Asks whoever made a request.
    pub(crate) fn new(
        peer: &Peer<RoleServer>,
        capabilities: Option<&ClientCapabilities>,
        modern: bool,
        stop: CancellationToken,
    ) -> Self {
        // A client that says no more than "elicitation" shows forms.
        let elicitation = capabilities.and_then(|all| all.elicitation.as_ref());
        Self {
            peer: peer.clone(),
            stop,
            can_ask: elicitation.is_some_and(|one| one.form.is_some() || one.url.is_none()),
            by_result: modern,
            answer: None,
            wanted: None,
        }
    }

    /// Takes what came with a call that was made again.
    pub(crate) fn take(&mut self, request: &mut CallToolRequestParams) {
        let responses = request.input_responses.take().unwrap_or_default();
        let state = request.request_state.take();
        let answer = responses.get(QUESTION).cloned();
        let answer = answer.and_then(|answer| serde_json::from_value(answer).ok());
        self.answer = answer.zip(state);
    }

    /// The request id and the digest of a call that was made again with a person's answer.
    pub(crate) fn answered(&mut self) -> Result<Option<(String, Vec<u8>)>, Refusal> {
        let Some((answer, state)) = self.answer.take() else {
            return Ok(None);
        };
        let parts = state.split_once(' ');
        let (digest, id) = parts.ok_or_else(|| {
            Refusal::new("the requestState is none of ours", "call again without it")
        })?;
        judge(&answer)?;
        Ok(Some((id.to_owned(), bytes(digest))))
    }

    /// Asks. The digest if the person confirmed; `None` if the call has to end with `wanted`.
    pub(crate) async fn ask(
        &mut self,
        what: &Confirmation,
        command: &str,
        request_id: &str,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        if !self.can_ask {
            return Err(Refusal::new(
                "policy wants a person to confirm this, and this client cannot ask one (CONFIRMATION_REQUIRED)",
                "ask the person you work for to run it with muster run; do not try another way",
            ));
        }
        if command.chars().count() > COMMAND_MAX {
            return Err(Refusal::new(
                "policy wants a person to confirm this, and it is too long to be shown whole",
                "put it into a file on the host and run that, or have a person run it: muster run",
            ));
        }
        let question = ElicitRequest::new(question(what, command));
        if self.by_result {
            let inputs =
                BTreeMap::from([(QUESTION.to_owned(), InputRequest::Elicitation(question))]);
            // Whoever forges this confirms nothing: the control plane holds the digest against the request.
            let state = format!("{} {request_id}", what.digest);
            self.wanted = Some(InputRequiredResult::new(Some(inputs), Some(state)));
            return Ok(None);
        }
        let asked = self
            .peer
            .send_request(ServerRequest::ElicitRequest(question));
        let answered = tokio::select! {
            answered = timeout(PATIENCE, asked) => answered,
            () = self.stop.cancelled() => {
                return Err(Refusal::new("the caller has gone; nothing ran", "call again"));
            }
        };
        match answered {
            Ok(Ok(ClientResult::ElicitResult(answer))) => {
                judge(&answer)?;
                Ok(Some(bytes(&what.digest)))
            }
            Ok(_) => Err(Refusal::new(
                "policy wants a person to confirm this, and the client did not ask its own (CONFIRMATION_REQUIRED)",
                "ask the person you work for to run it with muster run; do not try another way",
            )),
            Err(_) => Err(Refusal::new(
                "nobody answered within 10 minutes; nothing ran",
                "ask the person, then call again",
            )),
        }
    }
}

/// Accepted and ticked is a yes; all else is none, and says which.
fn judge(answer: &ElicitResult) -> Result<(), Refusal> {
    let ticked =
        answer.content.as_ref().map(|content| &content[QUESTION]) == Some(&Value::Bool(true));
    match answer.action {
        ElicitationAction::Accept if ticked => Ok(()),
        ElicitationAction::Accept | ElicitationAction::Decline => Err(Refusal::new(
            "the person declined; nothing ran",
            "do not call it again: ask them what to do instead",
        )),
        _ => Err(Refusal::new(
            "the person closed the question without an answer; nothing ran",
            "ask whether they want it before you call again",
        )),
    }
}

fn question(what: &Confirmation, command: &str) -> ElicitRequestParams {
    let command = clean::words(command);
    let mode = match what.mode.as_str() {
        "" => "as the hosts allow",
        mode => mode,
    };
    let message = format!(
        "Muster asks you to confirm this.\nwhat: {command}\nhosts ({}): {}\nmode: {mode}",
        what.host_count,
        clean::words(&what.hosts),
    );
    ElicitRequestParams::FormElicitationParams {
        meta: None,
        message,
        requested_schema: ElicitationSchema::builder()
            .required_bool(QUESTION)
            .build_unchecked(),
    }
}

/// The bytes of a digest in hex. Any other text becomes a digest that the control plane does not know.
fn bytes(hex: &str) -> Vec<u8> {
    HEXLOWER.decode(hex.as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_was_accepted_and_ticked_is_confirmed() {
        let answer = |action: &str, content: Value| -> ElicitResult {
            serde_json::from_value(json!({"action": action, "content": content})).unwrap()
        };
        judge(&answer("accept", json!({"confirm": true}))).unwrap();
        for (action, content, says) in [
            ("accept", json!({"confirm": false}), "declined"),
            ("accept", json!({}), "declined"),
            ("accept", json!({"confirm": "true"}), "declined"),
            ("decline", json!({"confirm": true}), "declined"),
            ("cancel", json!({"confirm": true}), "closed"),
        ] {
            let refused = judge(&answer(action, content)).unwrap_err();
            assert!(refused.cause.contains(says), "{action}: {}", refused.cause);
        }
    }
}
