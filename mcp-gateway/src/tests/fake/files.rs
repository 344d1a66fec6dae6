//! A few files, the same on every host but for `/etc/hostname`, and reading them as the contract says.

use muster_proto::v1::{
    FileRead, FileReadResult, FileStat, Reason, Task, TaskResult, file_read::Part, file_stat::Type,
    task, task_result,
};

/// Lines of `/var/log/app.log`.
pub(in crate::tests) const LOG_LINES: usize = 5_000;

/// The beginning of an image of that size, in pixels.
fn png(width: u32, height: u32, length: usize) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.resize(length, 7);
    bytes
}

fn content(path: &str, host: &str) -> Result<(Vec<u8>, &'static str), (Reason, &'static str)> {
    let text = |text: String| Ok((text.into_bytes(), "text/plain"));
    match path {
        "/etc/os-release" => text("NAME=Fake\nVERSION=1\n".to_owned()),
        "/etc/hostname" => text(format!("{host}\n")),
        "/var/log/app.log" => text((1..=LOG_LINES).map(|n| format!("entry {n}\n")).collect()),
        "/srv/app.min.js" => text("x".repeat(60_000)),
        "/srv/empty" => text(String::new()),
        "/srv/windows.txt" => text("one\r\ntwo\r\n".to_owned()),
        "/srv/logo.png" | "/srv/logo" => Ok((png(640, 480, 60_000), "image/png")),
        "/srv/poster.png" => Ok((png(6_000, 4_000, 2_000_000), "image/png")),
        "/srv/ribbon.png" => Ok((png(9_000, 20, 30_000), "image/png")),
        "/bin/tool" => {
            let mut bytes = b"\x7fELF\x02\x01\x01\0".to_vec();
            bytes.resize(1_000, 0);
            Ok((bytes, "application/x-executable"))
        }
        "/srv/torn" => text("torn\n".to_owned()),
        "/etc/shadow" => Err((Reason::FileNotPermitted, "/etc/shadow may not be opened")),
        "/etc" => Err((Reason::FileType, "/etc is a directory")),
        _ => Err((Reason::FileNotFound, "there is no such file")),
    }
}

/// What the host answers: the content, which becomes the task's output.
pub(super) fn read(file: &FileRead, host: &str, task: &mut Task) -> Vec<u8> {
    task.output_complete = true;
    let (bytes, mime) = match content(&file.path, host) {
        Ok(found) => found,
        Err((reason, message)) => {
            task.set_state(task::State::Failed);
            task.set_reason(reason);
            task.message = message.to_owned();
            return Vec::new();
        }
    };
    let (from, to, first_line) = part(&bytes, file.part.as_ref());
    let limit = usize::try_from(file.max_bytes).unwrap();
    let end = to.min(from + limit);
    let read = &bytes[from..end];
    let mut result = FileReadResult {
        stat: Some(FileStat {
            path: file.path.clone(),
            r#type: Type::Regular.into(),
            size: bytes.len() as i64,
            mime_type: mime.to_owned(),
            ..FileStat::default()
        }),
        offset: from as i64,
        length: read.len() as i64,
        first_line,
        is_text: std::str::from_utf8(read).is_ok_and(|text| !text.contains('\0')),
        has_more: end < bytes.len(),
        ..FileReadResult::default()
    };
    if first_line > 0 {
        result.lines = read.split_inclusive(|&byte| byte == b'\n').count() as i64;
    }
    if file.path == "/srv/torn" {
        result.length += 3;
    }
    task.set_state(task::State::Succeeded);
    task.result = Some(TaskResult {
        kind: Some(task_result::Kind::FileRead(result)),
    });
    read.to_vec()
}

/// From which byte to which, and the number of the first line if lines were asked for.
fn part(bytes: &[u8], part: Option<&Part>) -> (usize, usize, i64) {
    let length = bytes.len() as i64;
    let from_end = |place: i64, all: i64| if place < 0 { place + all } else { place };
    match part {
        None => (0, bytes.len(), 0),
        Some(Part::Bytes(range)) => {
            let from = from_end(range.offset, length).clamp(0, length);
            let to = match range.length {
                0 => length,
                more => (from + more).min(length),
            };
            (from as usize, to as usize, 0)
        }
        Some(Part::Lines(range)) => {
            let ends: Vec<usize> = bytes
                .split_inclusive(|&byte| byte == b'\n')
                .scan(0, |end, line| {
                    *end += line.len();
                    Some(*end)
                })
                .collect();
            let all = ends.len() as i64;
            let first = match range.first {
                first @ 1.. => first - 1,
                first => from_end(first, all).max(0),
            };
            let last = match range.count {
                0 => all,
                count => (first + count).min(all),
            };
            let at = |line: i64| match line {
                ..=0 => 0,
                line => ends.get(line as usize - 1).copied().unwrap_or(bytes.len()),
            };
            (at(first), at(last.max(first)), first + 1)
        }
    }
}
