//! A file as an answer: text with line numbers, an image, or what it is and a dump; and the exact call that reads on. Hosts
//! whose files are equal are merged.

use std::fmt::Write as _;

use muster_client::files::{self, FileFault};
use muster_proto::v1::{FileRead, FileReadResult, Job, Mode, Task, file_read::Part, task};

use super::{
    clean,
    dump::dump,
    image::{self, Image},
    job::{self, FENCE_MAX, Sheet, TaskView, fence},
    lines::{self, Lines},
    words,
};

/// The largest image that is shown, bytes: with base64 and the text beside it, below the 1 MiB that one client takes of
/// a whole answer.
pub(crate) const IMAGE_MAX: i64 = 740_000;
/// The most pixels of an image's side; whoever shows a model more loses the whole conversation.
const SIDE_MAX: u32 = 8_000;
/// Bytes of a file that is no text, unless a place in it is asked for.
const DUMP: usize = 256;
/// Room for what stands behind a file, bytes.
const AFTER_MAX: usize = 500;
/// The least room in which a group of hosts says anything, bytes.
const GROUP_MIN: usize = 1_000;
/// Names of hosts that are written out in a call.
const TARGETS_MAX: usize = 6;

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// What stands first.
    pub(crate) text: String,
    /// Images that follow, with their formats.
    pub(crate) images: Vec<(Vec<u8>, &'static str)>,
}

/// What was read on every host.
pub(crate) fn answer(job: &Job, file: &FileRead, tasks: &[TaskView], sheet: &Sheet) -> Answer {
    let mut answer = Answer {
        text: job::status_line(job, tasks, sheet.now),
        images: Vec::new(),
    };
    answer.text.push('\n');
    let end = job::next_steps(job, tasks);
    let groups = job::alike(tasks);
    let room = sheet
        .max_bytes
        .saturating_sub(answer.text.len() + end.len());
    let mut left = room.saturating_sub(200);
    let shown = groups.len().min((left / GROUP_MIN).max(1));
    for (place, group) in groups[..shown].iter().enumerate() {
        let reader = Reader {
            job,
            file,
            group,
            hosts: tasks.len(),
            sheet,
        };
        let before = answer.text.len();
        reader.write(left / (shown - place), &mut answer);
        left = left.saturating_sub(answer.text.len() - before);
    }
    let rest: u64 = groups[shown..].iter().map(|group| group.len() as u64).sum();
    if rest > 0 {
        let _ = writeln!(
            answer.text,
            "… {} with other answers not shown; file_read with a narrower target shows them …",
            words::plural(rest, "host")
        );
    }
    answer.text.push_str(&end);
    answer
}

/// Nothing of what was asked for can be shown, on any host.
pub(crate) fn nothing_read(tasks: &[TaskView]) -> bool {
    let is_broken = |view: &TaskView| {
        view.task.state() == task::State::Succeeded && content(view).checked(&view.task).is_err()
    };
    !tasks.is_empty() && (job::nothing_done(tasks) || tasks.iter().all(is_broken))
}

/// The task's file is an image that was not read whole and can be shown.
pub(crate) fn is_image_in_part(view: &TaskView) -> bool {
    let content = content(view);
    match content.checked(&view.task) {
        Ok(read) => {
            let size = read.stat.as_ref().map_or(0, |stat| stat.size);
            let begins = read.offset == 0 && read.has_more && size <= IMAGE_MAX;
            begins && image::recognise(&content.bytes).is_some()
        }
        Err(_) => false,
    }
}

/// What came of a file.
struct Content {
    bytes: Vec<u8>,
    /// Bytes behind these that came and were not kept.
    passed: u64,
    /// Bytes that came in all.
    came: u64,
}

fn content(view: &TaskView) -> Content {
    let Some(kept) = &view.output else {
        return Content {
            bytes: Vec::new(),
            passed: 0,
            came: 0,
        };
    };
    let (bytes, between, tail) = kept.parts();
    Content {
        bytes,
        passed: between.bytes + tail.len() as u64,
        came: kept.total() - between.lost,
    }
}

impl Content {
    fn checked<'a>(&self, task: &'a Task) -> Result<&'a FileReadResult, FileFault> {
        files::checked(task, self.came)
    }
}

/// One group of hosts whose files are equal.
struct Reader<'a> {
    job: &'a Job,
    file: &'a FileRead,
    group: &'a [&'a TaskView],
    /// Hosts of the whole job.
    hosts: usize,
    sheet: &'a Sheet,
}

impl Reader<'_> {
    fn write(&self, room: usize, answer: &mut Answer) {
        let view = self.group[0];
        let tasks: Vec<&Task> = self.group.iter().map(|view| &view.task).collect();
        let (who, label) = job::names(&tasks);
        let header = match self.hosts {
            1 => job::details(&view.task),
            _ => job::header(self.group, &who, self.sheet.now),
        };
        answer.text.push_str(&header);
        let content = content(view);
        let read = match content.checked(&view.task) {
            Ok(read) => read,
            Err(FileFault::NotRead) => return,
            Err(fault) => {
                let _ = writeln!(answer.text, "{fault}\nnext: {} again", self.call());
                return;
            }
        };
        let room = room
            .saturating_sub(header.len() + FENCE_MAX + AFTER_MAX)
            .max(200);
        match image::recognise(&content.bytes) {
            Some(image) if read.offset == 0 => self.image(image, content, read, answer),
            _ => {
                let (body, after) = self.body(&content, read, room);
                answer.text.push_str(&fence(&label, &body, self.sheet));
                answer.text.push_str(&after);
            }
        }
    }

    /// What stands in the fence and what behind it.
    fn body(&self, content: &Content, read: &FileReadResult, room: usize) -> (String, String) {
        let bytes = &content.bytes;
        if bytes.is_empty() {
            let words = match read.stat.as_ref().map_or(0, |stat| stat.size) {
                0 => "the file is empty\n",
                _ => "nothing of the file stands there: it ends before\n",
            };
            return (String::new(), words.to_owned());
        }
        let goes_on = read.has_more || content.passed > 0;
        if !read.is_text && clean::is_binary(bytes) {
            return self.dumped(bytes, read, room);
        }
        let first = match (&self.file.part, read.first_line) {
            (Some(Part::Bytes(_)), _) => None,
            (_, first @ 1..) => Some(first as u64),
            (None, _) => Some(1),
            (Some(Part::Lines(_)), _) => None,
        };
        let lines = match first {
            Some(first) => {
                let is_end = !goes_on || self.has_all_lines(read, content);
                lines::numbered(bytes, first, is_end, room)
            }
            None => lines::plain(bytes, room),
        };
        let after = self.after(first, &lines, bytes.len(), goes_on, read);
        (lines.text, after)
    }

    /// As many lines came as were asked for, so that the last one is whole.
    fn has_all_lines(&self, read: &FileReadResult, content: &Content) -> bool {
        match &self.file.part {
            Some(Part::Lines(range)) => {
                let cut = content.passed > 0 || read.length >= self.file.max_bytes;
                range.count > 0 && read.lines >= range.count && !cut
            }
            Some(Part::Bytes(_)) | None => false,
        }
    }

    /// What was not shown, and how to read on.
    fn after(
        &self,
        first: Option<u64>,
        lines: &Lines,
        length: usize,
        goes_on: bool,
        read: &FileReadResult,
    ) -> String {
        let mut text = String::new();
        if lines.crlf {
            text.push_str("its lines end with \\r\\n\n");
        }
        if !read.is_text {
            text.push_str("it is not UTF-8: what is no character is shown as \\xNN\n");
        }
        let size = read.stat.as_ref().map_or(0, |stat| stat.size.max(0) as u64);
        let size = words::plural(size, "byte");
        let call = self.call();
        let offset = |at: usize| read.offset.max(0) as u64 + at as u64;
        if let (Some(first), Some((before, at))) = (first, lines.cut) {
            let (number, offset) = (words::count(first + before), offset(at));
            let _ = writeln!(
                text,
                "next: {call} offset={offset} reads on within line {number}, which is cut"
            );
        }
        let is_rest = goes_on || lines.used < length;
        match first {
            _ if !is_rest => text.push_str("end of file\n"),
            // Where the next line begins, nobody knows yet.
            Some(_) if lines.cut.is_some() && lines.count == 1 && lines.used >= length => {}
            Some(first) => {
                let (last, next) = (first + lines.count - 1, first + lines.count);
                let (from, last) = (words::count(first), words::count(last));
                let _ = writeln!(
                    text,
                    "next: {call} from_line={next} reads on; shown: lines {from} to {last} of a file of {size}"
                );
            }
            None => {
                let next = offset(lines.used);
                let _ = writeln!(
                    text,
                    "next: {call} offset={next} reads on; the file has {size}"
                );
            }
        }
        text
    }

    /// A file that is no text, from where it was read.
    fn dumped(&self, bytes: &[u8], read: &FileReadResult, room: usize) -> (String, String) {
        let asked = matches!(self.file.part, Some(Part::Bytes(_)));
        let most = if asked { bytes.len() } else { DUMP };
        let offset = read.offset.max(0) as u64;
        let (body, shown) = dump(&bytes[..bytes.len().min(most)], offset, room);
        let mut text = String::from("it is no text, so this is a dump\n");
        if shown < bytes.len() || read.has_more {
            let next = offset + shown as u64;
            let _ = writeln!(
                text,
                "next: {} offset={next} dumps on; run with file, strings or sha256sum tells more",
                self.call()
            );
        }
        (body, text)
    }

    fn image(&self, image: Image, content: Content, read: &FileReadResult, answer: &mut Answer) {
        let size = read.stat.as_ref().map_or(read.length, |stat| stat.size);
        let mut words = image.mime.to_owned();
        if let Some((width, height)) = image.size {
            let _ = write!(words, ", {width} × {height} pixels");
        }
        let shown: i64 = answer
            .images
            .iter()
            .map(|(data, _)| data.len() as i64)
            .sum();
        let is_whole = !read.has_more && content.passed == 0;
        let why = match image.size {
            _ if size > IMAGE_MAX => Some(format!(
                "more than the {} that clients take",
                words::plural(IMAGE_MAX as u64, "byte")
            )),
            None => Some("its size in pixels cannot be told, so it may be damaged".to_owned()),
            Some((width, height)) if width.max(height) > SIDE_MAX => Some(format!(
                "more than {} pixels wide or high, which models do not take",
                words::count(SIDE_MAX.into())
            )),
            Some((0, _) | (_, 0)) => Some("it has no pixels".to_owned()),
            Some(_) if !is_whole => Some("it was read in part only".to_owned()),
            Some(_) if shown + size > IMAGE_MAX => Some(format!(
                "others fill this answer: file_read target={} shows it",
                clean::words(&self.group[0].task.host_name)
            )),
            Some(_) => None,
        };
        match why {
            None => {
                answer.images.push((content.bytes, image.mime));
                let _ = writeln!(answer.text, "{words}: image {} below", answer.images.len());
            }
            Some(why) => {
                let _ = writeln!(
                    answer.text,
                    "{words}, not shown: {why}\nnext: a smaller copy can be shown, if the host has a program that makes one"
                );
            }
        }
    }

    /// The call that reads this file on these hosts.
    fn call(&self) -> String {
        let target = match self.group.len() {
            all @ 2.. if all == self.hosts => clean::words(&self.job.selector),
            _ => {
                let names = self.group.iter().take(TARGETS_MAX);
                let names: Vec<_> = names
                    .map(|view| clean::words(&view.task.host_name))
                    .collect();
                names.join(",")
            }
        };
        let mut call = format!(
            "file_read target={} path={}",
            argument(&target),
            argument(&clean::words(&self.file.path))
        );
        match self.job.mode() {
            Mode::Edit => call.push_str(" mode=edit"),
            Mode::Unrestricted => call.push_str(" mode=unrestricted"),
            Mode::ReadOnly | Mode::Unspecified | Mode::Disabled => {}
        }
        call
    }
}

/// A value as it stands in a call: in quotes where it would not end by itself.
fn argument(value: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./~,:=+@%".contains(c);
    match value.chars().all(plain) {
        true => value.to_owned(),
        false => serde_json::Value::from(value).to_string(),
    }
}

#[cfg(test)]
mod tests;
