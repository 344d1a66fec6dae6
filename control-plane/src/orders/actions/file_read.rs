//! The kind `file_read`: reads one file, or a part of it.

use std::time::Duration;

use muster_proto::v1::{FileRead, file_read::Part};

use crate::model::Refusal;

/// Bytes of a path or a user.
const NAME_MAX: usize = 4096;
/// Bytes of content.
const CONTENT_MAX: i64 = 256 << 20;

/// Refuses what no host could read.
pub(super) fn check(read: &FileRead) -> Result<(), Refusal> {
    check_name("action.file_read.path", &read.path)?;
    if read.path.is_empty() {
        return Err(Refusal::invalid("action.file_read.path", "is empty"));
    }
    check_name("action.file_read.user", &read.user)?;
    if !(0..=CONTENT_MAX).contains(&read.max_bytes) {
        return Err(Refusal::invalid(
            "action.file_read.max_bytes",
            "is 0 to 256 MiB",
        ));
    }
    if read.no_follow && !read.stat_only {
        return Err(Refusal::invalid(
            "action.file_read.no_follow",
            "goes with stat_only: what a link leads to is what can be read",
        ));
    }
    if read.no_follow && read.sha256 {
        return Err(Refusal::invalid(
            "action.file_read.sha256",
            "goes without no_follow: a link has no content of its own",
        ));
    }
    if read.stat_only && read.part.is_some() {
        return Err(Refusal::invalid(
            "action.file_read.stat_only",
            "reads no content, so it goes without bytes and lines",
        ));
    }
    if let Some(timeout) = read.timeout
        && Duration::try_from(timeout).map_or(true, |timeout| timeout.is_zero())
    {
        return Err(Refusal::invalid(
            "action.file_read.timeout",
            "is more than 0",
        ));
    }
    read.part.as_ref().map_or(Ok(()), check_part)
}

fn check_name(field: &'static str, text: &str) -> Result<(), Refusal> {
    if text.contains('\0') {
        return Err(Refusal::invalid(field, "holds no NUL"));
    }
    if text.len() > NAME_MAX {
        return Err(Refusal::too_long(field, "4,096 bytes"));
    }
    Ok(())
}

fn check_part(part: &Part) -> Result<(), Refusal> {
    match part {
        Part::Bytes(range) if range.length < 0 => Err(Refusal::invalid(
            "action.file_read.bytes.length",
            "is not negative; 0 reads to the end",
        )),
        Part::Lines(range) if range.count < 0 => Err(Refusal::invalid(
            "action.file_read.lines.count",
            "is not negative; 0 reads to the end",
        )),
        Part::Bytes(_) | Part::Lines(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{ByteRange, LineRange, Reason};

    use super::*;

    fn read(path: &str, change: impl FnOnce(&mut FileRead)) -> FileRead {
        let mut read = FileRead {
            path: path.to_owned(),
            ..FileRead::default()
        };
        change(&mut read);
        read
    }

    #[test]
    fn what_can_be_read_is_let_through() {
        for good in [
            read("/etc/hosts", |_| {}),
            read("~/notes/../notes/a b\n", |_| {}),
            read("/x", |read| {
                read.part = Some(Part::Lines(LineRange {
                    first: -20,
                    count: 0,
                }));
            }),
            read("/x", |read| {
                read.part = Some(Part::Bytes(ByteRange {
                    offset: -1,
                    length: 0,
                }));
            }),
            read("/x", |read| (read.stat_only, read.no_follow) = (true, true)),
        ] {
            check(&good).unwrap();
        }
    }

    #[test]
    fn what_cannot_is_refused() {
        for bad in [
            read("", |_| {}),
            read("a\0b", |_| {}),
            read("/x", |read| read.max_bytes = -1),
            read("/x", |read| read.max_bytes = CONTENT_MAX + 1),
            read("/x", |read| read.no_follow = true),
            read("/x", |read| {
                read.timeout = Some(prost_types::Duration::default())
            }),
            read("/x", |read| {
                read.part = Some(Part::Lines(LineRange {
                    first: 0,
                    count: -1,
                }));
            }),
            read("/x", |read| {
                read.part = Some(Part::Bytes(ByteRange {
                    offset: 0,
                    length: -1,
                }));
            }),
        ] {
            let refusal = check(&bad).unwrap_err();
            assert_eq!(refusal.reason, Reason::ArgumentInvalid, "{bad:?}");
        }
        let long = read(&"x".repeat(NAME_MAX + 1), |_| {});
        assert_eq!(check(&long).unwrap_err().reason, Reason::LimitExceeded);
    }
}
