//! Creating a job for a tool, and asking the person at the client where policy wants that.

use std::time::Duration;

use muster_client::actions;
use muster_proto::v1::CreateJobRequest;

use super::Call;
use crate::{
    error::Refusal,
    watch::{self, Seen},
};

/// Creates a job and follows it for `wait`, keeping so many bytes of each end of each output. `None` if the call has to
/// end with a question to a person, and will be made again with the answer.
pub(super) async fn job(
    call: &mut Call,
    mut create: CreateJobRequest,
    wait: Duration,
    keep: usize,
) -> Result<Option<Seen>, Refusal> {
    if let Some((request_id, digest)) = call.asker.answered()? {
        (create.request_id, create.confirmed_digest) = (request_id, digest.into());
    }
    let question = match watch::run(call, create.clone(), wait, keep).await {
        Err(Refusal {
            question: Some(question),
            ..
        }) => question,
        other => return other.map(Some),
    };
    let what = actions::exactly(create.action.as_ref());
    let asked = call.asker.ask(&question, &what, &create.request_id).await?;
    let Some(digest) = asked else {
        return Ok(None);
    };
    create.confirmed_digest = digest.into();
    watch::run(call, create, wait, keep).await.map(Some)
}
