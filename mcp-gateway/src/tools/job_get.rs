//! `job_get`: where a job stands and what its hosts wrote: head and tail, a page from a cursor, the
//! last lines, or the lines that match. Equal answers of many hosts are merged here too.
//!
//! `isError` says that reading failed. What became of the job stands in the answer.

use futures_util::{StreamExt as _, stream};
use muster_proto::{
    ids::JobId,
    v1::{GetJobRequest, ListTasksRequest, Task},
};
use rmcp::model::CallToolResult;
use tokio::time::Instant;

use super::{
    Arguments, Call, MAX_BYTES, MAX_BYTES_LIMITS, WAIT_MAX, job_list, output, sheet, text,
};
use crate::{
    error::Refusal,
    render::{job, part, words},
    watch::{self, Seen},
};

/// Tasks whose output one answer looks at.
const OUTPUTS_MAX: usize = 500;
/// Outputs read at the same time.
const AT_ONCE: usize = 16;
/// Tasks of a page of the control plane, and pages taken.
const TASKS_PER_PAGE: i32 = 1_000;
const PAGES_MAX: usize = 20;
/// The most lines of a tail.
const TAIL_MAX: i64 = 10_000;
/// The most lines around a match.
const CONTEXT_MAX: i64 = 20;
/// Room for what stands around the parts of several hosts, bytes.
const FRAME_BYTES: usize = 600;
/// Hosts with different answers that share the room.
const SHARES: usize = 24;

/// What of the output is asked for.
enum Part {
    /// Head and tail.
    Ends,
    /// From this position.
    Page(u64),
    /// The last lines.
    Tail(i32),
    /// Lines that match.
    Grep(output::Grep),
}

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let max_bytes = arguments
        .number("max_bytes", MAX_BYTES_LIMITS)?
        .unwrap_or(MAX_BYTES);
    let Some(job_id) = job_id(&mut arguments)? else {
        return job_list::call(call, arguments, max_bytes).await;
    };
    if arguments.word("state")?.is_some() {
        return Err(Refusal::new(
            "state is for lists of jobs",
            "leave out state, or job_id",
        ));
    }
    let host = arguments.word("host")?;
    let wait = arguments.number("wait_s", 0..=WAIT_MAX)?.unwrap_or(0);
    let part = part(&mut arguments)?;
    let deadline = watch::deadline(wait);

    let mut seen = states(call, &job_id, host.as_deref()).await?;
    if wait > 0 && !matches!(part, Part::Page(_)) {
        seen = watch::follow(call, seen, deadline).await?;
    }
    let several = seen.tasks.len() > 1;
    let sheet = sheet(max_bytes);
    let answer = match part {
        Part::Ends => {
            read_ends(call, &mut seen, sheet.max_bytes).await?;
            job::answer(&seen.job, &seen.tasks, &sheet)
        }
        Part::Page(from) => {
            let task = only(&seen, "cursor")?;
            let wait = deadline.saturating_duration_since(Instant::now());
            let page = output::page(call, task, from, wait, sheet.max_bytes).await?;
            part::page(&seen.job, page, &sheet)
        }
        Part::Tail(_) | Part::Grep(_) => {
            if several && matches!(&part, Part::Grep(grep) if !grep.page_token.is_empty()) {
                only(&seen, "cursor")?;
            }
            let found = read_parts(call, &seen, &part, sheet.max_bytes).await?;
            part::several(&seen.job, &seen.tasks, found, &sheet)
        }
    };
    Ok(text(answer, false))
}

/// A job with head and tail of its output.
pub(super) async fn overview(call: &Call, job_id: &str) -> Result<String, Refusal> {
    let mut seen = states(call, job_id, None).await?;
    let sheet = sheet(MAX_BYTES);
    read_ends(call, &mut seen, sheet.max_bytes).await?;
    Ok(job::answer(&seen.job, &seen.tasks, &sheet))
}

/// The job id, if one is given.
pub(super) fn job_id(arguments: &mut Arguments) -> Result<Option<String>, Refusal> {
    let Some(id) = arguments.word("job_id")? else {
        return Ok(None);
    };
    match id.parse::<JobId>() {
        Ok(id) => Ok(Some(id.to_string())),
        Err(error) => Err(Refusal::new(
            error.to_string(),
            "job_get without job_id lists the jobs",
        )),
    }
}

fn part(arguments: &mut Arguments) -> Result<Part, Refusal> {
    let cursor = arguments.word("cursor")?;
    let tail = arguments.number("tail", 1..=TAIL_MAX)?;
    let grep = arguments
        .text("grep")?
        .filter(|pattern| !pattern.is_empty());
    let context = arguments.number("context", 0..=CONTEXT_MAX)?;
    if context.is_some() && grep.is_none() {
        return Err(Refusal::new(
            "context needs grep",
            "give grep, or leave out context",
        ));
    }
    match (cursor, tail, grep) {
        (None, None, None) => Ok(Part::Ends),
        (None, Some(lines), None) => Ok(Part::Tail(lines as i32)),
        (cursor, None, Some(pattern)) => Ok(Part::Grep(output::Grep {
            pattern,
            context: context.unwrap_or(0) as i32,
            page_token: cursor.unwrap_or_default(),
        })),
        (Some(cursor), None, None) => cursor.parse().map(Part::Page).map_err(|_| {
            Refusal::new(
                format!("cursor is {:?}", words::shortened(&cursor, 40)),
                "use the cursor of the last answer, together with the same grep if there was one",
            )
        }),
        (_, Some(_), _) => Err(Refusal::new(
            "tail does not go with cursor or grep",
            "give one of cursor, tail and grep",
        )),
    }
}

/// The job and its tasks, or those on the hosts that match.
pub(crate) async fn states(call: &Call, job_id: &str, host: Option<&str>) -> Result<Seen, Refusal> {
    let mut jobs = call.client.jobs();
    let get = GetJobRequest {
        job_id: job_id.to_owned(),
    };
    let (job, tasks) = tokio::try_join!(call.ask(jobs.get_job(get)), tasks(call, job_id, host))?;
    if tasks.is_empty() {
        let host = words::shortened(host.unwrap_or_default(), 80);
        return Err(Refusal::new(
            format!("{host:?} is no host of this job"),
            format!("job_get job_id={job_id} shows its hosts"),
        ));
    }
    Ok(Seen::states(job.job.unwrap_or_default(), tasks))
}

async fn tasks(call: &Call, job_id: &str, host: Option<&str>) -> Result<Vec<Task>, Refusal> {
    let mut request = ListTasksRequest {
        job_id: job_id.to_owned(),
        selector: host.unwrap_or_default().to_owned(),
        page_size: TASKS_PER_PAGE,
        ..ListTasksRequest::default()
    };
    let mut jobs = call.client.jobs();
    let mut tasks = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = call.ask(jobs.list_tasks(request.clone())).await?;
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(tasks)
}

pub(super) fn only<'a>(seen: &'a Seen, argument: &str) -> Result<&'a Task, Refusal> {
    match seen.tasks.as_slice() {
        [one] => Ok(&one.task),
        several => Err(Refusal::new(
            format!(
                "{argument} is for one host, and this job has {}",
                words::plural(several.len() as u64, "host")
            ),
            "add host=NAME",
        )),
    }
}

async fn read_ends(call: &Call, seen: &mut Seen, max_bytes: usize) -> Result<(), Refusal> {
    let several = seen.tasks.len() > 1;
    let keep = output::keep(seen.tasks.len(), max_bytes);
    let wanted: Vec<(usize, Task)> = seen
        .tasks
        .iter()
        .enumerate()
        .filter(|(_, view)| output::length(&view.task) > 0)
        .take(OUTPUTS_MAX)
        .map(|(place, view)| (place, view.task.clone()))
        .collect();
    let mut reads = stream::iter(wanted)
        .map(|(place, task)| async move {
            let kept = output::ends(call, &task, keep, several).await?;
            Ok::<_, Refusal>((place, kept))
        })
        .buffer_unordered(AT_ONCE);
    while let Some(read) = reads.next().await {
        let (place, kept) = read?;
        seen.tasks[place].output = Some(kept);
    }
    Ok(())
}

async fn read_parts(
    call: &Call,
    seen: &Seen,
    part: &Part,
    max_bytes: usize,
) -> Result<Vec<part::Found>, Refusal> {
    let room = max_bytes.saturating_sub(FRAME_BYTES) / seen.tasks.len().clamp(1, SHARES);
    let room = room.max(output::PART_MIN);
    stream::iter(0..seen.tasks.len().min(OUTPUTS_MAX))
        .map(|place| async move {
            let view = &seen.tasks[place];
            match part {
                Part::Grep(grep) => output::grep(call, &view.task, grep, room).await,
                Part::Tail(lines) => output::tail(call, &view.task, *lines, room).await,
                Part::Ends | Part::Page(_) => Ok(part::Found::default()),
            }
        })
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}
