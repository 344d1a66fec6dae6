//! `job_input`: text, keys, signals and the end of input for a job that runs, and what it says to that.
//!
//! It answers once a pattern was seen, nothing was written for a while, the job has ended, or nobody waits any more.
//! `isError` says that the input was not taken.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use muster_client::keys;
use muster_proto::v1::{
    CloseStdin, InputStatus, ReadOutputRequest, SendInputResponse, Task, TaskInput,
    read_output_request::{Part, Range},
    task_input::Kind,
};
use regex::{Regex, RegexBuilder};
use rmcp::model::CallToolResult;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Arguments, Call, MAX_BYTES, MAX_BYTES_LIMITS, WAIT_MAX, job_get, output, random_hex, sheet,
    text,
};
use crate::{
    call::ANSWER_LIMIT,
    error::Refusal,
    render::{clean, part},
    watch,
};

/// How long it waits at most unless told otherwise, seconds.
const WAIT: i64 = 10;
/// How long nothing must be written for the answer to be taken as whole, milliseconds.
const QUIET: i64 = 700;
/// Bytes of one input.
const PIECE: usize = 64 << 10;
/// The longest text of one call, bytes.
const TEXT_MAX: usize = 1 << 20;
/// How soon an input that found no room is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// So much of the end of what was written since is searched, bytes.
const SEARCHED: usize = 64 << 10;
/// Memory that a compiled pattern may take.
const PATTERN_SIZE_MAX: usize = 1 << 20;

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let job_id = job_get::job_id(&mut arguments)?.ok_or_else(|| {
        Refusal::new("job_id is missing", "job_get without job_id lists the jobs")
    })?;
    let host = arguments.word("host")?;
    let until = pattern(&mut arguments)?;
    let quiet = arguments
        .number("quiet_ms", 50..=WAIT_MAX * 1000)?
        .unwrap_or(QUIET);
    let quiet = Duration::from_millis(quiet.unsigned_abs());
    let wait = arguments.number("wait_s", 0..=WAIT_MAX)?.unwrap_or(WAIT);
    let max_bytes = arguments
        .number("max_bytes", MAX_BYTES_LIMITS)?
        .unwrap_or(MAX_BYTES);
    let cursor = arguments.number("cursor", 0..=i64::MAX)?;
    let deadline = watch::deadline(wait);

    let seen = job_get::states(call, &job_id, host.as_deref()).await?;
    let task = job_get::only(&seen, "job_input")?;
    let inputs = inputs(&mut arguments, keys::term(seen.job.action.as_ref()))?;
    let from = match cursor {
        Some(cursor) => cursor.unsigned_abs(),
        None => output::length(task),
    };
    for input in inputs {
        put(call, task, input, deadline).await?;
    }
    let heard = listen(call, task, from, until.as_ref(), quiet, deadline).await?;
    let sheet = sheet(max_bytes);
    let page = output::page(call, task, from, Duration::ZERO, sheet.max_bytes).await?;
    let note = match (heard, &until) {
        (Heard::Match | Heard::Quiet, _) => "",
        (Heard::End, _) => "it has ended\n",
        (Heard::Nothing, Some(_)) => "until was not seen yet\n",
        (Heard::Nothing, None) => "it still writes\n",
    };
    Ok(text(part::typed(&seen.job, page, note, &sheet), false))
}

/// What is put in, in order, for a terminal of that kind.
fn inputs(arguments: &mut Arguments, term: &str) -> Result<Vec<Kind>, Refusal> {
    let mut data = BytesMut::from(arguments.text("text")?.unwrap_or_default().as_bytes());
    for name in arguments.list("keys")? {
        let key = keys::key(&name, term).ok_or_else(|| {
            Refusal::new(
                format!("{name:?} is the name of no key"),
                "keys are enter, tab, esc, up, down, left, right, home, end, page-up, backspace, f1, ctrl-c, alt-x, or a single character",
            )
        })?;
        data.extend_from_slice(&key);
    }
    if data.len() > TEXT_MAX {
        return Err(Refusal::new(
            "text is longer than 1 MiB",
            "send it in several calls, or give it to run as stdin",
        ));
    }
    let mut data: Bytes = data.freeze();
    let mut inputs = Vec::new();
    while !data.is_empty() {
        inputs.push(Kind::Data(data.split_to(data.len().min(PIECE))));
    }
    if let Some(name) = arguments.word("signal")? {
        let name = name.to_ascii_uppercase();
        let bare = name.strip_prefix("SIG").unwrap_or(&name);
        inputs.push(Kind::Signal(format!("SIG{bare}")));
    }
    if arguments.flag("close")? {
        inputs.push(Kind::CloseStdin(CloseStdin {}));
    }
    Ok(inputs)
}

fn pattern(arguments: &mut Arguments) -> Result<Option<Regex>, Refusal> {
    let Some(pattern) = arguments.text("until")?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let compiled = RegexBuilder::new(&pattern)
        .multi_line(true)
        .size_limit(PATTERN_SIZE_MAX)
        .build();
    compiled.map(Some).map_err(|error| {
        Refusal::new(
            format!("until is no regular expression: {error}"),
            "escape ( ) [ ] . * + ? with \\, as in until=\">>> $\"",
        )
    })
}

/// Puts one input in; again under the same name while it finds no room or no host, as long as there is time.
async fn put(call: &Call, task: &Task, kind: Kind, deadline: Instant) -> Result<(), Refusal> {
    let write_id = format!("mcp-{}", random_hex::<16>());
    let input = TaskInput { kind: Some(kind) };
    loop {
        let sending = call
            .client
            .send_input(&task.task_id, &write_id, input.clone());
        // One answer is waited for, whatever the deadline says.
        let limit = deadline.max(Instant::now() + ANSWER_LIMIT);
        let answer = tokio::select! {
            answer = timeout_at(limit, sending) => answer,
            () = call.stop.cancelled() => return Err(gone()),
        };
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| call.refused(error))?,
            Err(_) => {
                return Err(Refusal::new(
                    "the control plane did not answer in time, so whether the input was taken is not known",
                    "look with job_get before you send it again",
                ));
            }
        };
        let may_pass = match answer.status() {
            InputStatus::Accepted => return Ok(()),
            InputStatus::Starting | InputStatus::Full | InputStatus::Unknown => true,
            InputStatus::Closed | InputStatus::Refused | InputStatus::Unspecified => false,
        };
        if !may_pass || Instant::now() + PAUSE >= deadline {
            return Err(refused(task, &answer));
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = call.stop.cancelled() => return Err(gone()),
        }
    }
}

fn gone() -> Refusal {
    Refusal::new("the caller has gone", "call again")
}

fn refused(task: &Task, answer: &SendInputResponse) -> Refusal {
    let id = &task.job_id;
    let cause = match answer.message.as_str() {
        "" => "the input was not taken",
        message => message,
    };
    let next = match answer.status() {
        InputStatus::Closed => format!(
            "job_get job_id={id} says what became of it; only a run with pty=true, or one that reads stdin, takes input"
        ),
        InputStatus::Refused => {
            "a person works in it: ask them, or go on reading with job_get".to_owned()
        }
        InputStatus::Starting => format!("job_get job_id={id} wait_s=25, then send it again"),
        InputStatus::Full => {
            "the process does not read: wait, or send keys=[\"ctrl-c\"] or signal=INT".to_owned()
        }
        _ => format!(
            "whether it was taken is not known: look with job_get job_id={id} before you send it again"
        ),
    };
    Refusal::new(cause, next)
}

/// Why listening ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// The pattern was seen.
    Match,
    /// Nothing was written for a while.
    Quiet,
    /// Nothing more will be written.
    End,
    /// Time is up.
    Nothing,
}

/// Follows the output until there is a reason to answer.
async fn listen(
    call: &Call,
    task: &Task,
    from: u64,
    until: Option<&Regex>,
    quiet: Duration,
    deadline: Instant,
) -> Result<Heard, Refusal> {
    let mut position = i64::try_from(from).unwrap_or(i64::MAX);
    let mut searched: Vec<u8> = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = match until {
            Some(_) => left,
            None => left.min(quiet),
        };
        let part = Part::Range(Range {
            from: position,
            length: 0,
        });
        let request = ReadOutputRequest {
            task_id: task.task_id.clone(),
            part: Some(part),
            max_bytes: SEARCHED as i32,
            wait: prost_types::Duration::try_from(wait).ok(),
            ..ReadOutputRequest::default()
        };
        let mut jobs = call.client.jobs();
        let answer = call.ask_for(wait, jobs.read_output(request)).await?;
        let nothing_new = answer.chunks.is_empty() && answer.gaps.is_empty();
        position = position.max(answer.end_position);
        for chunk in &answer.chunks {
            searched.extend_from_slice(&chunk.data);
        }
        let surplus = searched.len().saturating_sub(SEARCHED);
        searched.drain(..surplus);
        if until.is_some_and(|until| until.is_match(&shown(&searched))) {
            return Ok(Heard::Match);
        }
        let lost = muster_proto::v1::task::State::Lost;
        let lost = answer.task.is_some_and(|task| task.state() == lost);
        if nothing_new && (answer.output_complete || lost) {
            return Ok(Heard::End);
        }
        if Instant::now() >= deadline {
            return Ok(if nothing_new && until.is_none() {
                Heard::Quiet
            } else {
                Heard::Nothing
            });
        }
        if nothing_new && until.is_none() {
            return Ok(Heard::Quiet);
        }
    }
}

/// What a reader would see of it.
fn shown(raw: &[u8]) -> String {
    let lines: Vec<String> = raw.split(|byte| *byte == b'\n').map(clean::line).collect();
    lines.join("\n")
}
