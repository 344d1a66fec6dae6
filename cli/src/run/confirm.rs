//! What policy wants confirmed: the person at this terminal is shown it and asked, or has said so before.

use data_encoding::HEXLOWER;
use muster_client::{ClientError, actions, draw_request_id};
use muster_proto::v1::{CreateJobRequest, Reason};

use crate::{
    failure::{Failure, exit},
    json,
    screen::{self, Fields},
};

/// Whether somebody confirms what policy wants confirmed.
#[derive(clap::Args, Debug, Clone, Copy, Default)]
pub(crate) struct Confirm {
    /// Confirm it where policy wants that, without being asked. It is no approval, which somebody else gives
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Asks for a job by `call`, and once more with what was confirmed where policy wants that.
    pub(crate) async fn run<T, F>(
        self,
        mut request: CreateJobRequest,
        call: impl Fn(CreateJobRequest) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        if request.request_id.is_empty() {
            request.request_id = draw_request_id();
        }
        let wrong =
            |error, request: &CreateJobRequest| Failure::in_selector(error, &request.selector);
        let refusal = match call(request.clone()).await {
            Err(error) if error.reason() == Some(Reason::ConfirmationRequired) => error,
            done => return done.map_err(|error| wrong(error, &request)),
        };
        let digest = refusal.metadata("digest").and_then(|digest| unhex(&digest));
        let Some(digest) = digest else {
            return Err(wrong(refusal, &request));
        };
        if !self.yes {
            self.ask(&request, refusal).await?;
        }
        request.confirmed_digest = digest.into();
        let again = call(request.clone()).await;
        again.map_err(|error| {
            let changed = error.reason() == Some(Reason::ConfirmationRequired);
            let failure = wrong(error, &request);
            match changed {
                true => failure.next("hosts or policies changed meanwhile: look at it anew"),
                false => failure,
            }
        })
    }

    /// Shows exactly what is to happen, and asks.
    async fn ask(self, request: &CreateJobRequest, refusal: ClientError) -> Result<(), Failure> {
        if !screen::can_ask() {
            return Err(Failure::from(refusal)
                .next("whoever has looked at it adds --yes, and is not asked"));
        }
        screen::say(&shown(request, &refusal));
        match screen::ask("Policy wants this confirmed. Run it? [y/N]")
            .await?
            .as_str()
        {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::new(
                exit::NOT_ALLOWED,
                "not confirmed; nothing ran",
            )),
        }
    }
}

/// What is to happen, where and how far.
fn shown(request: &CreateJobRequest, refusal: &ClientError) -> String {
    let told = |key| refusal.metadata(key).unwrap_or_default();
    let mut fields = Fields::new();
    if let Some(action) = &request.action {
        fields
            .add("what", actions::quoted(Some(action)))
            .add("exactly", json::document(action).to_string());
    }
    fields
        .add(
            "hosts",
            format!("{}: {}", told("host_count"), told("hosts")),
        )
        .add("mode", told("mode"))
        .add("wanted by", told("rule"));
    fields.render().trim_end().to_owned()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
    (bytes.len() == 32).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn refusal() -> ClientError {
        use tonic_types::{ErrorDetails, StatusExt as _};
        let metadata = [
            ("digest", "0f".repeat(32)),
            ("hosts", "web-1".to_owned()),
            ("host_count", "1".to_owned()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let details = ErrorDetails::with_error_info("CONFIRMATION_REQUIRED", "muster", metadata);
        let code = tonic::Code::FailedPrecondition;
        tonic::Status::with_error_details(code, "confirm it", details).into()
    }

    #[tokio::test]
    async fn the_second_call_carries_what_was_confirmed_and_the_same_id() {
        let calls = RefCell::new(Vec::new());
        let call = |request: CreateJobRequest| {
            calls.borrow_mut().push(request.clone());
            async move {
                match request.confirmed_digest.is_empty() {
                    true => Err(refusal()),
                    false => Ok(()),
                }
            }
        };
        let yes = Confirm { yes: true };
        yes.run(CreateJobRequest::default(), call).await.unwrap();
        let calls = calls.into_inner();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].request_id, calls[1].request_id);
        assert_eq!(calls[1].confirmed_digest, vec![15; 32]);
    }

    #[tokio::test]
    async fn without_anybody_to_ask_nothing_is_confirmed() {
        // The test has no terminal.
        let refused = Confirm::default()
            .run(CreateJobRequest::default(), |_| async {
                Err::<(), _>(refusal())
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code, exit::NOT_ALLOWED);
        assert!(refused.next.unwrap().contains("--yes"));
    }
}
