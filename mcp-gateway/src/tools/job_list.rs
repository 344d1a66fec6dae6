//! `job_get` without a job id: the jobs there are.

use std::fmt::Write as _;

use muster_proto::v1::{Job, ListJobsRequest, job};
use rmcp::model::CallToolResult;

use super::{Arguments, Call, text};
use crate::{
    error::Refusal,
    render::{clean, job::counts, words},
};

/// Jobs shown at most.
const JOBS_MAX: i64 = 50;
/// The longest line about a job, bytes; its parts are cut so that it holds.
const LINE_MAX: i64 = 480;

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
    max_bytes: i64,
) -> Result<CallToolResult, Refusal> {
    let request = ListJobsRequest {
        states: states(&arguments.list("state")?)?,
        selector: arguments.word("host")?.unwrap_or_default(),
        page_size: ((max_bytes - 200) / LINE_MAX).clamp(1, JOBS_MAX) as i32,
        page_token: arguments.word("cursor")?.unwrap_or_default(),
        ..ListJobsRequest::default()
    };
    if arguments.word("grep")?.is_some() || arguments.word("tail")?.is_some() {
        return Err(Refusal::new(
            "tail and grep need a job_id",
            "job_get without other arguments lists the jobs",
        ));
    }
    let mut jobs = call.client.jobs();
    let answer = call.ask(jobs.list_jobs(request)).await?;
    let mut lines = format!(
        "{}, newest first\n",
        words::plural(answer.jobs.len() as u64, "job")
    );
    for job in &answer.jobs {
        lines.push_str(&line(job));
    }
    if !answer.next_page_token.is_empty() {
        let _ = writeln!(
            lines,
            "next: job_get cursor={} lists older ones (same state and host)",
            answer.next_page_token
        );
    }
    Ok(text(lines, false))
}

fn states(given: &[String]) -> Result<Vec<i32>, Refusal> {
    given
        .iter()
        .flat_map(|text| text.split([',', ' ']))
        .filter(|word| !word.is_empty())
        .map(|word| {
            let lower = word.to_ascii_lowercase();
            let known = words::JOB_STATES.iter().find(|(name, _)| *name == lower);
            known.map(|(_, state)| i32::from(*state)).ok_or_else(|| {
                let names = words::JOB_STATES.map(|(name, _)| name).join(", ");
                Refusal::new(
                    format!("there is no state {:?}", words::shortened(word, 40)),
                    format!("a job is {names}"),
                )
            })
        })
        .collect()
}

/// `j-… failed 2026-11-21T06:40:01Z ai/claude on env=prod (14 succeeded, 2 failed): uname -r`.
fn line(job: &Job) -> String {
    let when = job
        .create_time
        .as_ref()
        .map_or_else(String::new, words::time);
    let states = job.counts.iter().flat_map(|count| {
        std::iter::repeat_n(count.state(), count.tasks.clamp(0, 100_000) as usize)
    });
    let state = job::State::try_from(job.state).unwrap_or_default();
    format!(
        "{} {} {when} {} on {} ({}): {}\n",
        job.job_id,
        words::job_state(state),
        words::shortened(&clean::words(&job.principal), 60),
        words::shortened(&clean::words(&job.selector), 60),
        counts(states),
        words::action(job.action.as_ref()),
    )
}
