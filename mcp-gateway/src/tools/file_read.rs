//! `file_read`: a file of one host or many, as text, as an image, or what it is.

use std::time::Duration;

use data_encoding::BASE64;
use muster_client::files;
use muster_proto::v1::{ByteRange, CreateJobRequest, FileRead, LineRange, Mode, file_read::Part};
use rmcp::model::{CallToolResult, ContentBlock};
use tokio::time::Instant;

use super::{
    Arguments, Call, MAX_BYTES, MAX_BYTES_LIMITS, WAIT, WAIT_MAX, create, random_hex, run, sheet,
    text,
};
use crate::{
    error::Refusal,
    render::file::{self, Answer, IMAGE_MAX},
    watch::{self, Seen},
};

/// The highest number of a line or byte that is asked for.
const PLACE_MAX: i64 = 1 << 53;
/// How names of images end; of another one the first bytes tell.
const IMAGES: [&str; 5] = [".png", ".jpg", ".jpeg", ".gif", ".webp"];

/// `isError` says that no host gave its file. A host that is away among others that are not is a line of the answer.
pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let wait = arguments.number("wait_s", 0..=WAIT_MAX)?.unwrap_or(WAIT);
    let max_bytes = arguments
        .number("max_bytes", MAX_BYTES_LIMITS)?
        .unwrap_or(MAX_BYTES);
    let key = arguments.word("key")?;
    let mut file = FileRead {
        path: path(&mut arguments)?,
        part: part(&mut arguments)?,
        ..FileRead::default()
    };
    file.max_bytes = match file.part {
        None if is_named_as_image(&file.path) => IMAGE_MAX,
        _ => max_bytes,
    };
    let mode = match run::mode(&mut arguments)? {
        // The lowest that lets anybody read.
        Mode::Unspecified => Mode::ReadOnly,
        mode => mode,
    };
    let request = CreateJobRequest {
        request_id: key.unwrap_or_else(|| format!("mcp-{}", random_hex::<16>())),
        selector: arguments.required("target", "web-1")?,
        mode: mode.into(),
        reason: arguments.word("reason")?.unwrap_or_default(),
        ..CreateJobRequest::default()
    };
    let wait_for = Duration::from_secs(wait.max(0) as u64);
    let deadline = Instant::now() + wait_for;
    let request = asking(request, &file);
    let keep = file.max_bytes.max(0) as usize;
    let Some(mut seen) = create::job(call, request.clone(), wait_for, keep).await? else {
        return Ok(text(String::new(), false));
    };
    if seen.tasks.iter().any(file::is_image_in_part) && file.part.is_none() {
        seen = whole(call, request, &mut file, deadline, seen).await;
    }
    let answer = file::answer(&seen.job, &file, &seen.tasks, &sheet(max_bytes));
    let is_error = wait > 0 && file::nothing_read(&seen.tasks);
    Ok(result(answer, is_error))
}

fn asking(request: CreateJobRequest, file: &FileRead) -> CreateJobRequest {
    CreateJobRequest {
        action: Some(files::action(file.clone())),
        ..request
    }
}

/// The same file once more, now that it is known to be an image; what was seen before if that does not work out.
async fn whole(
    call: &mut Call,
    request: CreateJobRequest,
    file: &mut FileRead,
    deadline: Instant,
    before: Seen,
) -> Seen {
    let wait = deadline.saturating_duration_since(Instant::now());
    let mut all = file.clone();
    all.max_bytes = IMAGE_MAX;
    let mut request = asking(request, &all);
    request.request_id = format!("mcp-{}", random_hex::<16>());
    match watch::run(call, request, wait, IMAGE_MAX as usize).await {
        Ok(seen) if seen.is_over() => {
            *file = all;
            seen
        }
        _ => before,
    }
}

fn is_named_as_image(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    IMAGES.iter().any(|end| path.ends_with(end))
}

/// As it is given: blanks belong to a name.
fn path(arguments: &mut Arguments) -> Result<String, Refusal> {
    let path = arguments.text("path")?.filter(|path| !path.is_empty());
    path.ok_or_else(|| Refusal::new("path is missing", "give path, as path=/etc/hosts"))
}

fn part(arguments: &mut Arguments) -> Result<Option<Part>, Refusal> {
    let first = arguments.number("from_line", -PLACE_MAX..=PLACE_MAX)?;
    let count = arguments.number("lines", 1..=PLACE_MAX)?;
    let offset = arguments.number("offset", -PLACE_MAX..=PLACE_MAX)?;
    match (first, count, offset) {
        (None, None, None) => Ok(None),
        (None, None, Some(offset)) => Ok(Some(Part::Bytes(ByteRange { offset, length: 0 }))),
        (first, count, None) => Ok(Some(Part::Lines(LineRange {
            // Some count from 0.
            first: first.filter(|first| *first != 0).unwrap_or(1),
            count: count.unwrap_or(0),
        }))),
        (_, _, Some(_)) => Err(Refusal::new(
            "offset does not go with from_line or lines",
            "give from_line and lines, or offset",
        )),
    }
}

fn result(answer: Answer, is_error: bool) -> CallToolResult {
    let mut content = vec![ContentBlock::text(answer.text)];
    for (data, mime) in answer.images {
        content.push(ContentBlock::image(BASE64.encode(&data), mime));
    }
    match is_error {
        true => CallToolResult::error(content),
        false => CallToolResult::success(content),
    }
}
