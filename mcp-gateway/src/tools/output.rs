//! Reading kept output of one task from the control plane, no more of it than an answer can show.

use std::time::Duration;

use muster_proto::v1::{
    OutputLine, ReadOutputRequest, ReadOutputResponse, Task,
    read_output_request::{self, Part, Range, Tail},
};

use super::Call;
use crate::{
    error::Refusal,
    render::{
        clean, excerpt,
        kept::{Between, Kept},
        part::{Found, Page},
        words,
    },
};

/// The least room in which a part of an output says anything, bytes.
pub(super) const PART_MIN: usize = 400;
/// Kept for one answer, over all tasks.
const KEPT_MAX: usize = 8 << 20;
/// The control plane gives no more at once.
const READ_MAX: usize = 1 << 20;
/// Room for the lines around a page, bytes.
const FRAME_BYTES: usize = 900;
/// Matching lines asked for at most.
const MATCHES_MAX: i32 = 1_000;

/// A search.
pub(super) struct Grep {
    /// A regular expression.
    pub(super) pattern: String,
    /// Lines around each match.
    pub(super) context: i32,
    /// Goes on after an earlier answer; empty begins.
    pub(super) page_token: String,
}

/// How much of each end is kept where so many tasks share an answer.
pub(super) fn keep(tasks: usize, max_bytes: usize) -> usize {
    max_bytes.min(KEPT_MAX / 2 / tasks.max(1)).max(256)
}

/// All bytes that a task has written so far.
pub(super) fn length(task: &Task) -> u64 {
    let size = task.output_size.unwrap_or_default();
    (size.stdout_bytes.max(0) + size.stderr_bytes.max(0)) as u64
}

/// Head and tail of a task's output. With `compare`, short outputs can be told apart.
pub(super) async fn ends(
    call: &Call,
    task: &Task,
    keep: usize,
    compare: bool,
) -> Result<Kept, Refusal> {
    let total = length(task);
    let range = |from: u64, length: usize| {
        let range = Range {
            from: from as i64,
            length: length as i64,
        };
        request(task, Part::Range(range), length)
    };
    if total <= 2 * keep as u64 {
        let answer = read(call, range(0, total as usize)).await?;
        let mut kept = Kept::new(keep, compare);
        for segment in segments(&answer) {
            match segment {
                Segment::Bytes(chunk) => kept.push(chunk.stream(), &chunk.data),
                Segment::Gap(gap) => kept.gap(gap.length.max(0) as u64),
            }
        }
        return Ok(kept);
    }
    let (head, tail) = tokio::try_join!(
        read(call, range(0, keep)),
        read(call, range(total - keep as u64, keep))
    )?;
    let (head, _) = touching(segments(&head));
    let (tail, _) = touching_end(segments(&tail));
    let lost = task.output_size.unwrap_or_default().dropped_bytes.max(0) as u64;
    let between = Between {
        bytes: total.saturating_sub(head.len() as u64 + tail.len() as u64 + lost),
        lines: None,
        lost,
    };
    Ok(Kept::from_ends(head, between, tail))
}

/// A page of output from a position, as much as an answer of `max_bytes` shows; waits for more if
/// there is none yet.
pub(super) async fn page(
    call: &Call,
    task: &Task,
    from: u64,
    wait: Duration,
    max_bytes: usize,
) -> Result<Page, Refusal> {
    let room = max_bytes.saturating_sub(FRAME_BYTES).max(PART_MIN / 4);
    let range = Range {
        from: i64::try_from(from).unwrap_or(i64::MAX),
        length: 0,
    };
    let mut request = request(task, Part::Range(range), max_bytes);
    if !wait.is_zero() {
        request.wait = prost_types::Duration::try_from(wait).ok();
    }
    let answer = read(call, request).await?;
    let mut text = String::new();
    let mut next = from;
    for segment in segments(&answer) {
        let left = room.saturating_sub(text.len());
        match segment {
            Segment::Gap(gap) if left > 200 => {
                text.push_str(&excerpt::gap(gap.length.max(0) as u64, &gap.cause));
                next = next.max((gap.position + gap.length).max(0) as u64);
            }
            Segment::Bytes(_) | Segment::Gap(_) => break,
        }
    }
    let (bytes, _) = touching(segments(&answer).skip_while(|s| matches!(s, Segment::Gap(_))));
    if clean::is_binary(&bytes) {
        text.push_str(&excerpt::binary(&bytes, bytes.len() as u64, 0).text);
        next += bytes.len() as u64;
    } else if !bytes.is_empty() {
        let (shown, used) = excerpt::page(&bytes, room.saturating_sub(text.len()));
        text.push_str(&shown);
        next += used as u64;
    }
    let task = answer.task.unwrap_or_else(|| task.clone());
    let total = answer.size.map_or(length(&task), |size| {
        (size.stdout_bytes.max(0) + size.stderr_bytes.max(0)) as u64
    });
    Ok(Page {
        task,
        text,
        from,
        next,
        total,
        complete: answer.output_complete,
    })
}

/// The last lines of a task's output.
pub(super) async fn tail(
    call: &Call,
    task: &Task,
    lines: i32,
    room: usize,
) -> Result<Found, Refusal> {
    let answer = read(call, request(task, Part::Tail(Tail { lines }), room)).await?;
    let (bytes, first) = touching_end(segments(&answer));
    let (text, left) = if clean::is_binary(&bytes) {
        (excerpt::binary(&bytes, bytes.len() as u64, 0).text, 0)
    } else {
        excerpt::end(&bytes, room)
    };
    let before = first.max(0) as u64 + left;
    let note = match before {
        0 => "all of it".to_owned(),
        before => format!(
            "the end; {} before, from cursor=0",
            words::plural(before, "byte")
        ),
    };
    Ok(Found {
        note: if text.is_empty() { String::new() } else { note },
        text,
        next: String::new(),
        task: answer.task,
    })
}

/// The lines of a task's output that match.
pub(super) async fn grep(
    call: &Call,
    task: &Task,
    grep: &Grep,
    room: usize,
) -> Result<Found, Refusal> {
    let mut max_bytes = room;
    loop {
        let search = read_output_request::Grep {
            pattern: grep.pattern.clone(),
            before: grep.context,
            after: grep.context,
            max_matches: MATCHES_MAX,
            ..read_output_request::Grep::default()
        };
        let mut request = request(task, Part::Grep(search), max_bytes);
        request.page_token = grep.page_token.clone();
        let answer = read(call, request).await?;
        let text = lines(&answer.lines);
        if text.len() > room && max_bytes > PART_MIN / 4 && answer.lines.len() > 1 {
            // Line numbers and escapes made it too long: fewer lines, so that the cursor fits them.
            max_bytes = (max_bytes * room / text.len() * 9 / 10).max(PART_MIN / 4);
            continue;
        }
        let more = if answer.next_page_token.is_empty() {
            ""
        } else {
            ", and more follow"
        };
        return Ok(Found {
            text,
            note: format!(
                "{}{more}",
                match answer.match_count {
                    1 => "1 match".to_owned(),
                    matches => format!("{} matches", words::count(matches.max(0) as u64)),
                }
            ),
            next: if words::is_final(task.state()) || !answer.lines.is_empty() {
                answer.next_page_token
            } else {
                String::new()
            },
            task: answer.task,
        });
    }
}

/// `12:a line that matches`, `13-a line beside it`, and `--` where lines are left out.
fn lines(lines: &[OutputLine]) -> String {
    let mut text = String::new();
    let mut last = None;
    for line in lines {
        if last.is_some_and(|last| last + 1 != line.number) {
            text.push_str("--\n");
        }
        last = Some(line.number);
        let mark = if line.r#match { ':' } else { '-' };
        text.push_str(&format!(
            "{}{mark}{}\n",
            line.number,
            excerpt::single(&line.data)
        ));
    }
    text
}

fn request(task: &Task, part: Part, max_bytes: usize) -> ReadOutputRequest {
    ReadOutputRequest {
        task_id: task.task_id.clone(),
        part: Some(part),
        max_bytes: max_bytes.min(READ_MAX) as i32,
        ..ReadOutputRequest::default()
    }
}

async fn read(call: &Call, request: ReadOutputRequest) -> Result<ReadOutputResponse, Refusal> {
    let wait = request.wait.as_ref().map(words::wire_duration);
    let mut jobs = call.client.jobs();
    let answer = jobs.read_output(request);
    call.ask_for(wait.unwrap_or_default(), answer).await
}

enum Segment<'a> {
    Bytes(&'a muster_proto::v1::OutputChunk),
    Gap(&'a muster_proto::v1::OutputGap),
}

impl Segment<'_> {
    fn position(&self) -> i64 {
        match self {
            Self::Bytes(chunk) => chunk.position,
            Self::Gap(gap) => gap.position,
        }
    }
}

/// Chunks and gaps, in order.
fn segments(answer: &ReadOutputResponse) -> impl Iterator<Item = Segment<'_>> {
    let mut segments: Vec<Segment<'_>> = answer.chunks.iter().map(Segment::Bytes).collect();
    segments.extend(answer.gaps.iter().map(Segment::Gap));
    segments.sort_by_key(Segment::position);
    segments.into_iter()
}

/// The bytes up to the first gap, and the position where they begin.
fn touching<'a>(segments: impl Iterator<Item = Segment<'a>>) -> (Vec<u8>, i64) {
    let (mut bytes, mut first) = (Vec::new(), None);
    for segment in segments {
        let Segment::Bytes(chunk) = segment else {
            break;
        };
        first.get_or_insert(chunk.position);
        bytes.extend_from_slice(&chunk.data);
    }
    (bytes, first.unwrap_or(0))
}

/// The bytes after the last gap, and the position where they begin.
fn touching_end<'a>(segments: impl Iterator<Item = Segment<'a>>) -> (Vec<u8>, i64) {
    let (mut bytes, mut first) = (Vec::new(), None);
    for segment in segments {
        match segment {
            Segment::Bytes(chunk) => {
                first.get_or_insert(chunk.position);
                bytes.extend_from_slice(&chunk.data);
            }
            Segment::Gap(_) => (bytes, first) = (Vec::new(), None),
        }
    }
    (bytes, first.unwrap_or(0))
}
