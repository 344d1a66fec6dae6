//! Output on the wire, and `ReadOutput`.

use std::{future::Future, time::Duration};

use muster_proto::{
    ids::TaskId,
    v1::{
        self, OutputStream, ReadOutputRequest, ReadOutputResponse, Reason, job_event::Event,
        read_output_request::Part as AskedPart,
    },
};
use regex::bytes::RegexBuilder;
use tokio::{sync::watch, time::Instant};
use tonic::Status;

use super::page::Query;
use crate::{
    model::{OutputSize, Stream},
    output::{Content, Item, Line, OutputError, OutputStore, Part, Resume, Search},
    times,
    wire::{status, streams},
};

const BYTES_DEFAULT: usize = 64 << 10;
const BYTES_MAX: usize = 1 << 20;
const TAIL_LINES_MAX: i32 = 10_000;
const CONTEXT_LINES_MAX: i32 = 100;
const MATCHES_DEFAULT: usize = 1_000;
const MATCHES_MAX: usize = 10_000;
const PATTERN_BYTES_MAX: usize = 4 << 10;
/// Memory that a compiled pattern may take: repetitions of repetitions grow beyond any bound.
const PATTERN_SIZE_MAX: usize = 1 << 20;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A chunk or gap as watchers get it.
pub(crate) fn event(task_id: &str, item: Item) -> Event {
    let Item {
        sequence,
        stream,
        offset,
        position,
        content,
        time,
    } = item;
    let task_id = task_id.to_owned();
    let stream = streams::named(stream).into();
    match content {
        Content::Data(data) => Event::Output(v1::OutputChunk {
            task_id,
            sequence,
            stream,
            offset,
            position,
            data,
            time: time.map(times::timestamp),
        }),
        Content::Missing { length, cause } => Event::Gap(v1::OutputGap {
            task_id,
            sequence,
            stream,
            offset,
            position,
            length,
            cause,
        }),
    }
}

/// How much output there is, on the wire.
pub(crate) fn size(size: OutputSize) -> v1::OutputSize {
    v1::OutputSize {
        stdout_bytes: size.stdout_bytes,
        stderr_bytes: size.stderr_bytes,
        dropped_bytes: size.dropped_bytes,
        last_sequence: size.last_sequence,
    }
}

/// What is read, with all limits applied.
#[derive(Debug)]
enum Asked {
    Range { from: i64, to: i64 },
    Tail { lines: usize },
    Grep { search: Box<Search>, from: Resume },
}

/// A request that was checked.
#[derive(Debug)]
struct Reading {
    task_id: TaskId,
    stream: Option<Stream>,
    asked: Asked,
    max_bytes: usize,
    wait: Duration,
}

/// Reads output of a task. `look` returns the task as it stands; `changed`, while the task is open, wakes
/// when it may stand elsewhere or has more output. Page tokens serve this principal only.
pub(crate) async fn read<Looked>(
    store: &OutputStore,
    principal: &str,
    request: ReadOutputRequest,
    look: impl Fn() -> Looked,
    changed: Option<watch::Receiver<()>>,
) -> Result<ReadOutputResponse, Status>
where
    Looked: Future<Output = Result<v1::Task, Status>>,
{
    let query = query(principal, &request);
    let reading = check(&request, &query)?;
    let deadline = Instant::now() + reading.wait;
    let mut changed = changed;
    loop {
        if let Some(changed) = &mut changed {
            // Before the look, so that no change is missed.
            changed.mark_unchanged();
        }
        // Before the reading: if the output was complete, then what is read has its end.
        let task = look().await?;
        let response = reading
            .answer(store, &query, task)
            .await
            .map_err(status::of)?;
        let nothing_new = response.chunks.is_empty() && response.gaps.is_empty();
        let may_wait =
            nothing_new && !is_done(&response) && !matches!(reading.asked, Asked::Grep { .. });
        match &mut changed {
            Some(changed) if may_wait => {
                match tokio::time::timeout_at(deadline, changed.changed()).await {
                    Ok(Ok(())) => {}
                    // It waited long enough, or nobody can change the task any more.
                    Err(_) | Ok(Err(_)) => return Ok(response),
                }
            }
            _ => return Ok(response),
        }
    }
}

/// Nothing will come any more. The output of a lost task may stay incomplete for ever.
fn is_done(response: &ReadOutputResponse) -> bool {
    let lost = v1::task::State::Lost;
    response.output_complete
        || response
            .task
            .as_ref()
            .is_some_and(|task| task.state() == lost)
}

fn query(principal: &str, request: &ReadOutputRequest) -> Query {
    let kind = match request.part {
        None | Some(AskedPart::Range(_)) => "range",
        Some(AskedPart::Tail(_)) => "tail",
        Some(AskedPart::Grep(_)) => "grep",
    };
    Query::new(&[
        "ReadOutput",
        principal,
        &request.task_id,
        request.stream().as_str_name(),
        kind,
    ])
}

fn check(request: &ReadOutputRequest, query: &Query) -> Result<Reading, Status> {
    let task_id = request.task_id.parse().map_err(|_| {
        status::refuse(
            Reason::TaskNotFound,
            &format!("there is no task {:?}", request.task_id),
        )
    })?;
    if OutputStream::try_from(request.stream).is_err() {
        return Err(status::invalid("stream", "is no known stream"));
    }
    let max_bytes = match usize::try_from(request.max_bytes) {
        Ok(0) => BYTES_DEFAULT,
        Ok(bytes) => bytes.min(BYTES_MAX),
        Err(_) => return Err(status::invalid("max_bytes", "is negative")),
    };
    let wait = match request.wait {
        None => Duration::ZERO,
        Some(wait) => Duration::try_from(wait)
            .map_err(|_| status::invalid("wait", "is negative or malformed"))?
            .min(WAIT_MAX),
    };
    let place = query.place(&request.page_token)?;
    let asked = match &request.part {
        Some(AskedPart::Grep(grep)) => {
            if !wait.is_zero() {
                return Err(status::invalid("wait", "does not go with grep"));
            }
            Asked::Grep {
                search: Box::new(search(grep, max_bytes)?),
                from: place.map_or(Ok(Resume::default()), |place| resume(&place))?,
            }
        }
        part => match place {
            Some(place) => {
                let [from, to] = numbers(&place)?;
                Asked::Range { from, to }
            }
            None => first(part.as_ref())?,
        },
    };
    Ok(Reading {
        task_id,
        stream: streams::stream(request.stream),
        asked,
        max_bytes,
        wait,
    })
}

/// What a first page begins with.
fn first(part: Option<&AskedPart>) -> Result<Asked, Status> {
    match part {
        Some(AskedPart::Range(range)) => {
            if range.from < 0 || range.length < 0 {
                return Err(status::invalid("range", "has a negative bound"));
            }
            let to = match range.length {
                0 => i64::MAX,
                length => range.from.saturating_add(length),
            };
            Ok(Asked::Range {
                from: range.from,
                to,
            })
        }
        Some(AskedPart::Tail(tail)) => {
            if !(0..=TAIL_LINES_MAX).contains(&tail.lines) {
                let problem = format!("must be at most {TAIL_LINES_MAX}");
                return Err(status::invalid("tail.lines", &problem));
            }
            Ok(Asked::Tail {
                lines: tail.lines as usize,
            })
        }
        Some(AskedPart::Grep(_)) | None => Ok(Asked::Range {
            from: 0,
            to: i64::MAX,
        }),
    }
}

fn search(grep: &v1::read_output_request::Grep, max_bytes: usize) -> Result<Search, Status> {
    let context = |field, lines: i32| {
        if (0..=CONTEXT_LINES_MAX).contains(&lines) {
            Ok(lines as usize)
        } else {
            Err(status::invalid(
                field,
                &format!("must be at most {CONTEXT_LINES_MAX}"),
            ))
        }
    };
    let max_matches = match usize::try_from(grep.max_matches) {
        Ok(0) => MATCHES_DEFAULT,
        Ok(matches) => matches.min(MATCHES_MAX),
        Err(_) => return Err(status::invalid("grep.max_matches", "is negative")),
    };
    if grep.pattern.len() > PATTERN_BYTES_MAX {
        let problem = format!("the pattern has more than {PATTERN_BYTES_MAX} bytes");
        return Err(status::refuse(Reason::PatternInvalid, &problem));
    }
    let pattern = RegexBuilder::new(&grep.pattern)
        .case_insensitive(grep.ignore_case)
        .size_limit(PATTERN_SIZE_MAX)
        .dfa_size_limit(PATTERN_SIZE_MAX)
        .build()
        .map_err(|error| status::refuse(Reason::PatternInvalid, &error.to_string()))?;
    Ok(Search {
        pattern,
        invert: grep.invert,
        before: context("grep.before", grep.before)?,
        after: context("grep.after", grep.after)?,
        max_matches,
        max_bytes,
    })
}

/// The numbers of a token that this control plane made; another cannot pass as one by accident.
fn numbers<const N: usize>(place: &str) -> Result<[i64; N], Status> {
    let numbers: Option<Vec<i64>> = place
        .split(' ')
        .map(|number| number.parse().ok().filter(|number| *number >= 0))
        .collect();
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| {
            status::refuse(
                Reason::PageTokenInvalid,
                "page_token: it is malformed; begin without one",
            )
        })
}

fn resume(place: &str) -> Result<Resume, Status> {
    let [stdout, stderr, pty, lines, after] = numbers(place)?;
    Ok(Resume {
        offsets: [stdout, stderr, pty],
        lines,
        after: after.min(i64::from(CONTEXT_LINES_MAX)) as usize,
    })
}

fn place(resume: Resume) -> String {
    let [stdout, stderr, pty] = resume.offsets;
    format!("{stdout} {stderr} {pty} {} {}", resume.lines, resume.after)
}

impl Reading {
    async fn answer(
        &self,
        store: &OutputStore,
        query: &Query,
        task: v1::Task,
    ) -> Result<ReadOutputResponse, OutputError> {
        let complete = task.output_complete;
        let mut response = ReadOutputResponse {
            output_complete: complete,
            task: Some(task),
            ..ReadOutputResponse::default()
        };
        let (task_id, stream, max_bytes) = (self.task_id, self.stream, self.max_bytes);
        match &self.asked {
            Asked::Range { from, to } => {
                let part = store
                    .read_range(task_id, stream, *from, *to, max_bytes)
                    .await?;
                let to = if part.end < *to { *to } else { i64::MAX };
                self.fill(store, query, &mut response, part, to).await?;
            }
            Asked::Tail { lines } => {
                let part = store.read_tail(task_id, stream, *lines, max_bytes).await?;
                self.fill(store, query, &mut response, part, i64::MAX)
                    .await?;
            }
            Asked::Grep { search, from } => {
                let search = search.as_ref().clone();
                let (found, ended) = store.grep(task_id, stream, search, *from, complete).await?;
                if !(ended && complete) {
                    response.next_page_token = query.token(&place(found.resume()));
                }
                response.end_position = found.end;
                response.match_count = i32::try_from(found.matches).unwrap_or(i32::MAX);
                response.gaps = found
                    .gaps
                    .into_iter()
                    .filter_map(|item| match event(&task_id.to_string(), item) {
                        Event::Gap(gap) => Some(gap),
                        Event::Output(_) | Event::Job(_) | Event::Task(_) => None,
                    })
                    .collect();
                response.lines = found.lines.into_iter().map(line).collect();
            }
        }
        response.size = Some(size(store.size(task_id).await?));
        Ok(response)
    }

    /// Puts a part into the answer; `to` is where the next page ends at the latest.
    async fn fill(
        &self,
        store: &OutputStore,
        query: &Query,
        response: &mut ReadOutputResponse,
        part: Part,
        to: i64,
    ) -> Result<(), OutputError> {
        response.end_position = part.end;
        for item in part.items {
            match event(&self.task_id.to_string(), item) {
                Event::Output(chunk) => response.chunks.push(chunk),
                Event::Gap(gap) => response.gaps.push(gap),
                Event::Job(_) | Event::Task(_) => {}
            }
        }
        let end = store.end(self.task_id, self.stream).await?;
        if !response.output_complete || part.end < end {
            response.next_page_token = query.token(&format!("{} {to}", part.end));
        }
        Ok(())
    }
}

fn line(line: Line) -> v1::OutputLine {
    v1::OutputLine {
        stream: streams::named(line.stream).into(),
        position: line.position,
        number: line.number,
        data: line.data,
        r#match: line.is_match,
    }
}

#[cfg(test)]
mod tests;
