//! What has to be said beside the content of a file: that it goes on, changed, or is not what its host read.

use muster_client::{
    actions::shell_quoted,
    files::{self, FileFault},
};
use muster_proto::v1::{Action, FileRead, FileReadResult, Task, file_read::Part};

use crate::screen::{bytes, clean};

/// A cut falls between characters, so that up to so many bytes fewer than the limit are a full answer.
const CHARACTER_MAX: i64 = 4;

/// What became of the content that a host sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Lines for a person, without the host's name.
    pub(crate) remarks: Vec<String>,
    /// What came is not what the host read.
    pub(crate) is_broken: bool,
    /// The file has more of what was asked for than comes at once.
    pub(crate) is_cut: bool,
}

/// What became of the content of a task that reads a file, of which `came` bytes reached us. Somebody who watches is also
/// told that a file goes on behind a part that came whole.
pub(crate) fn of(action: Option<&Action>, task: &Task, came: u64, watched: bool) -> Content {
    let Some(file) = files::asked(action) else {
        return Content::default();
    };
    let read = match files::checked(task, came) {
        Ok(read) => read,
        // A task that failed tells its outcome anyway.
        Err(FileFault::NotRead) => return Content::default(),
        Err(fault) => {
            return Content {
                remarks: vec![fault.to_string()],
                is_broken: true,
                is_cut: false,
            };
        }
    };
    let mut remarks = Vec::new();
    if read.changed {
        remarks.push("the file changed while it was read".to_owned());
    }
    let is_short = read.has_more && !has_whole_part(file, read);
    if is_short || (read.has_more && watched) {
        remarks.push(more(file, read, &task.host_name));
    }
    Content {
        remarks,
        is_broken: false,
        is_cut: is_short && file.max_bytes >= files::CONTENT_MAX,
    }
}

/// All came of the part that was asked for.
fn has_whole_part(file: &FileRead, read: &FileReadResult) -> bool {
    match &file.part {
        None => false,
        Some(Part::Bytes(range)) => range.length > 0 && read.length >= range.length,
        Some(Part::Lines(range)) => {
            let limit = match file.max_bytes {
                1.. => file.max_bytes,
                _ => files::CONTENT_DEFAULT,
            };
            range.count > 0 && read.lines >= range.count && read.length + CHARACTER_MAX <= limit
        }
    }
}

/// How much came, and the command that reads on: behind whole lines by line, else by byte.
fn more(file: &FileRead, read: &FileReadResult, host: &str) -> String {
    let next = if read.first_line > 0 && has_whole_part(file, read) {
        format!("--lines {}..", read.first_line.saturating_add(read.lines))
    } else {
        format!("--bytes {}..", read.offset.saturating_add(read.length))
    };
    let size = read.stat.as_ref().map_or(0, |stat| stat.size);
    let place = shell_quoted(&format!("{host}:{}", file.path));
    let user = match file.user.as_str() {
        "" => String::new(),
        user => format!(" --user {}", shell_quoted(user)),
    };
    clean(&format!(
        "{} of {} are here; more: muster fs cat {place}{user} {next}",
        bytes(read.length),
        bytes(size)
    ))
    .into_owned()
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{
        ByteRange, FileStat, LineRange, TaskResult, task::State, task_result::Kind,
    };

    use super::*;

    fn asked(part: Option<Part>, max_bytes: i64) -> Action {
        files::action(FileRead {
            path: "/var/log/a b".to_owned(),
            part,
            max_bytes,
            ..FileRead::default()
        })
    }

    fn done(read: FileReadResult) -> Task {
        let read = FileReadResult {
            stat: Some(FileStat {
                size: 4_096,
                ..FileStat::default()
            }),
            ..read
        };
        Task {
            host_name: "web-1".to_owned(),
            state: State::Succeeded.into(),
            result: Some(TaskResult {
                kind: Some(Kind::FileRead(read)),
            }),
            ..Task::default()
        }
    }

    #[test]
    fn what_was_cut_says_how_to_read_on() {
        let task = done(FileReadResult {
            length: 1_024,
            has_more: true,
            ..FileReadResult::default()
        });
        let content = of(Some(&asked(None, 1_024)), &task, 1_024, false);
        let words =
            "1.0 KiB of 4.0 KiB are here; more: muster fs cat 'web-1:/var/log/a b' --bytes 1024..";
        assert_eq!(content.remarks, [words]);
        assert!(!content.is_cut && !content.is_broken, "it was asked for");
        let content = of(Some(&asked(None, files::CONTENT_MAX)), &task, 1_024, false);
        assert!(content.is_cut, "nobody can ask for more at once");
    }

    #[test]
    fn a_part_that_came_whole_is_no_news_but_to_who_watches() {
        let lines = Part::Lines(LineRange {
            first: 11,
            count: 5,
        });
        let task = done(FileReadResult {
            offset: 100,
            length: 50,
            first_line: 11,
            lines: 5,
            has_more: true,
            ..FileReadResult::default()
        });
        let action = asked(Some(lines), 1_024);
        assert_eq!(of(Some(&action), &task, 50, false), Content::default());
        let told = of(Some(&action), &task, 50, true).remarks;
        assert!(told[0].ends_with("--lines 16.."), "{told:?}");

        // The last of the lines may have been cut within.
        let action = asked(Some(lines), 51);
        let told = of(Some(&action), &task, 50, false).remarks;
        assert!(told[0].ends_with("--bytes 150.."), "{told:?}");
    }

    #[test]
    fn bytes_that_are_missing_are_told() {
        let bytes = Part::Bytes(ByteRange {
            offset: 0,
            length: 50,
        });
        let action = asked(Some(bytes), 1_024);
        let task = done(FileReadResult {
            length: 50,
            changed: true,
            ..FileReadResult::default()
        });
        let content = of(Some(&action), &task, 50, false);
        assert_eq!(content.remarks, ["the file changed while it was read"]);
        let content = of(Some(&action), &task, 49, false);
        assert!(content.is_broken && content.remarks[0].contains("50 bytes were read and 49 came"));
    }

    #[test]
    fn other_tasks_have_no_content() {
        let failed = Task {
            state: State::Failed.into(),
            ..Task::default()
        };
        let action = asked(None, 0);
        assert_eq!(of(Some(&action), &failed, 0, true), Content::default());
        assert_eq!(of(None, &failed, 9, true), Content::default());
    }
}
