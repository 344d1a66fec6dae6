//! Reading a file as clients show it.

use muster_proto::v1::{FileRead, FileReadResult, file_read::Part};

use super::{ActionKind, json_quoted, shell_quoted};
use crate::files;

impl ActionKind for FileRead {
    fn name(&self) -> &'static str {
        "file_read"
    }

    fn summary(&self) -> String {
        let mut text = format!("{} {}", verb(self), shell_quoted(&self.path));
        text.push_str(&part(self));
        if !self.user.is_empty() {
            text.push_str(&format!(" as {}", self.user));
        }
        text
    }

    fn quoted(&self) -> String {
        format!("{} {}", verb(self), json_quoted(&self.path))
    }

    fn circumstances(&self) -> String {
        let mut text = part(self);
        if !self.user.is_empty() {
            text.push_str(&format!(" as {}", json_quoted(&self.user)));
        }
        if self.sha256 {
            text.push_str(" with its SHA-256");
        }
        if self.no_follow {
            text.push_str(" without following a link");
        }
        text
    }
}

fn verb(file: &FileRead) -> &'static str {
    if file.stat_only { "stat" } else { "read" }
}

/// ", lines 1..20"; empty for all of a file.
fn part(file: &FileRead) -> String {
    match &file.part {
        None => String::new(),
        Some(Part::Bytes(range)) => format!(", bytes {}", files::bytes_text(range)),
        Some(Part::Lines(range)) => format!(", lines {}", files::lines_text(range)),
    }
}

/// "regular file, 312 bytes, text/plain; bytes 0 to 312".
pub(super) fn result(read: &FileReadResult) -> String {
    let mut text = match &read.stat {
        Some(stat) => files::description(stat),
        None => "a file that its host does not describe".to_owned(),
    };
    if read.length > 0 {
        let end = read.offset.saturating_add(read.length);
        text.push_str(&format!("; bytes {} to {end}", read.offset));
        if read.first_line > 0 && read.lines > 0 {
            let last = read.first_line.saturating_add(read.lines - 1);
            text.push_str(&format!(", lines {} to {last}", read.first_line));
        }
    }
    if read.has_more {
        text.push_str("; more follows");
    }
    if read.changed {
        text.push_str("; it changed while it was read");
    }
    text
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{ByteRange, FileStat, LineRange, file_stat::Type};

    use super::*;

    #[test]
    fn what_is_read_is_one_line() {
        let mut file = FileRead {
            path: "/srv/a b".to_owned(),
            ..FileRead::default()
        };
        assert_eq!(file.summary(), "read '/srv/a b'");
        file.user = "web".to_owned();
        file.part = Some(Part::Lines(LineRange {
            first: 1,
            count: 20,
        }));
        assert_eq!(file.summary(), "read '/srv/a b', lines 1..20 as web");
        file.part = Some(Part::Bytes(ByteRange {
            offset: -100,
            length: 0,
        }));
        assert_eq!(file.quoted(), r#"read "/srv/a b""#);
        assert_eq!(file.circumstances(), r#", bytes -100.. as "web""#);
        file.stat_only = true;
        file.sha256 = true;
        file.part = None;
        assert_eq!(file.circumstances(), r#" as "web" with its SHA-256"#);
        assert_eq!(file.summary(), "stat '/srv/a b' as web");
    }

    #[test]
    fn what_was_found_out_is_one_line() {
        let mut read = FileReadResult {
            stat: Some(FileStat {
                r#type: Type::Regular.into(),
                size: 312,
                mime_type: "text/plain".to_owned(),
                ..FileStat::default()
            }),
            ..FileReadResult::default()
        };
        assert_eq!(result(&read), "regular file, 312 bytes, text/plain");
        (read.offset, read.length) = (100, 50);
        (read.first_line, read.lines) = (4, 2);
        read.has_more = true;
        assert_eq!(
            result(&read),
            "regular file, 312 bytes, text/plain; bytes 100 to 150, lines 4 to 5; more follows"
        );
    }
}
