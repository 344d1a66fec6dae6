//! `job_cancel`: ends what runs, and waits until the hosts confirm it.

use std::fmt::Write as _;

use muster_proto::v1::{CancelJobRequest, ListTasksRequest};
use rmcp::model::CallToolResult;

use super::{Arguments, Call, WAIT_MAX, job_get, seconds, sheet, text};
use crate::{
    error::Refusal,
    render::{job, words},
    watch::{self, Seen},
};

/// How long it waits for the hosts unless told otherwise, seconds.
const WAIT: i64 = 10;
/// The longest grace, seconds.
const GRACE_MAX: i64 = 3_600;
/// The answer's size; it carries no output.
const ANSWER_BYTES: i64 = 4_000;

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let job_id = job_get::job_id(&mut arguments)?.ok_or_else(|| {
        Refusal::new("job_id is missing", "job_get without job_id lists the jobs")
    })?;
    let host = arguments.word("host")?.unwrap_or_default();
    let grace = arguments.number("grace_s", 0..=GRACE_MAX)?;
    let wait = arguments.number("wait_s", 0..=WAIT_MAX)?.unwrap_or(WAIT);

    let deadline = watch::deadline(wait);
    let request = CancelJobRequest {
        job_id: job_id.clone(),
        selector: host.clone(),
        grace: grace.map(seconds),
    };
    let mut jobs = call.client.jobs();
    let answer = call.ask(jobs.cancel_job(request)).await?;
    let tasks = ListTasksRequest {
        job_id: job_id.clone(),
        selector: host,
        page_size: 1_000,
        ..ListTasksRequest::default()
    };
    let tasks = call.ask(jobs.list_tasks(tasks)).await?.tasks;
    let seen = Seen::states(answer.job.unwrap_or_default(), tasks);
    let seen = watch::follow(call, seen, deadline).await?;

    let sheet = sheet(ANSWER_BYTES);
    let mut answer = job::answer(&seen.job, &seen.tasks, &sheet);
    let open = seen
        .tasks
        .iter()
        .filter(|view| !words::is_final(view.task.state()))
        .count() as u64;
    if open > 0 {
        let _ = writeln!(
            answer,
            "{} not confirmed yet: cancelling goes on and needs no second call",
            words::plural(open, "host")
        );
    }
    Ok(text(answer, false))
}
