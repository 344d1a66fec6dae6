//! Reads one file: its content is what the task writes, and what the file is comes as its result.
//!
//! What may be read is for the user's rights and the task's sandbox to say, when the file is opened; nothing here decides
//! about a path. Whatever is not a regular file is never opened for reading: that could block, and more with a device.

mod content;
mod found;
mod mime;
mod names;
mod part;
mod refusal;
mod source;

use std::{os::fd::AsFd as _, time::Duration};

use muster_proto::v1::{
    FileRead, FileReadResult, FileStat, Mode, OutputLimit, Reason, TaskResult, file_stat::Type,
    output_limit::Policy, task_result,
};

use self::{
    content::{Content, Digest, Failure},
    found::Found,
    part::Part,
    source::Source,
};
use super::{Action, Declared, Kind, Work, action};
use crate::process::{Outcome, Place, StartError};

pub(super) const DECLARED: Declared = Declared {
    name: "file_read",
    needs: Mode::ReadOnly,
    starts_programs: false,
};

/// How long reading may take where nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Content at most, bytes: where nobody says, and if asked for.
const CONTENT: u64 = 1 << 20;
const CONTENT_MAX: u64 = 256 << 20;

/// A path has at most so many bytes, as for the kernel.
const PATH_MAX: usize = 4096;

/// Bytes at the beginning by which is told what the file holds.
const HEAD: usize = 8 << 10;

impl Kind for FileRead {
    fn declared(&self) -> &'static Declared {
        &DECLARED
    }

    fn user(&self) -> &str {
        &self.user
    }

    fn timeout(&self) -> Option<Duration> {
        let asked = self.timeout.and_then(|timeout| timeout.try_into().ok());
        Some(asked.unwrap_or(TIMEOUT))
    }

    /// Nothing of a file is dropped: whoever reads it waits until there is room.
    fn output_limit(&self) -> OutputLimit {
        OutputLimit {
            policy: Policy::Block.into(),
            max_bytes: 0,
        }
    }

    fn work(self: Box<Self>) -> Result<Work, StartError> {
        check(&self).map_err(|message| StartError {
            reason: Reason::ArgumentInvalid,
            message,
        })?;
        let kind = Some(action::Kind::FileRead(*self));
        Ok(Work::Worker(Box::new(Action { kind })))
    }
}

/// What is wrong with what is asked for.
fn check(wanted: &FileRead) -> Result<(), String> {
    let wrong = |words: &str| Err(words.to_owned());
    if wanted.path.is_empty() {
        return wrong("path: names a file");
    }
    if wanted.path.len() > PATH_MAX || wanted.path.contains('\0') {
        return Err(format!("path: at most {PATH_MAX} bytes, and none is NUL"));
    }
    let part = Part::of(wanted)?;
    if !(0..=CONTENT_MAX as i64).contains(&wanted.max_bytes) {
        return Err(format!("max_bytes: from 0 to {CONTENT_MAX}"));
    }
    if wanted.stat_only && (part != Part::ALL || wanted.max_bytes != 0) {
        return wrong(
            "stat_only: leaves content out, so a part or max_bytes makes no sense with it",
        );
    }
    if wanted.no_follow && (!wanted.stat_only || wanted.sha256) {
        return wrong(
            "no_follow: goes with stat_only and without sha256; a link itself has no content",
        );
    }
    let timeout = wanted.timeout.map(Duration::try_from);
    if timeout.is_some_and(|timeout| !timeout.is_ok_and(|timeout| !timeout.is_zero())) {
        return wrong("timeout: is longer than no time");
    }
    Ok(())
}

/// Does the work.
pub(super) fn read(wanted: &FileRead, place: &Place<'_>) -> Outcome {
    match result(wanted, place) {
        Ok(result) => Outcome::done(&TaskResult {
            kind: Some(task_result::Kind::FileRead(result)),
        }),
        Err(refused) => refused,
    }
}

fn result(wanted: &FileRead, place: &Place<'_>) -> Result<FileReadResult, Outcome> {
    let found = Found::at(&wanted.path, !wanted.no_follow, place)?;
    let mut stat = found.stat();
    let is_regular = stat.r#type() == Type::Regular;
    if wanted.stat_only && !(wanted.sha256 && is_regular) {
        return Ok(FileReadResult {
            stat: Some(stat),
            ..FileReadResult::default()
        });
    }
    if !is_regular {
        return Err(found.refusals().of_type(stat.r#type()));
    }
    let file = found.open()?;
    let failed = |failure| found.refusals().failed(failure);
    let source = Source::new(&file).map_err(|error| failed(Failure::Read(error)))?;
    let (content, digest) = read_content(wanted, &source, &mut stat, &found).map_err(failed)?;
    stat.sha256 = digest.into();
    let changed = !found.is_as_before(&file);
    Ok(FileReadResult {
        changed,
        ..content.result(stat)
    })
}

/// Sends what is wanted of the content, and says what it is. Returns the digest of the file, if that is wanted.
fn read_content(
    wanted: &FileRead,
    source: &Source<'_>,
    stat: &mut FileStat,
    found: &Found<'_>,
) -> Result<(Content, Vec<u8>), Failure> {
    let mut head = vec![0; HEAD];
    // What cannot be read from its beginning, as the memory of a process, may have its parts.
    if let Ok(length) = source.read_whole_at(0, &mut head) {
        stat.mime_type = mime::of(&head[..length], found.path()).to_owned();
    }
    let mut digest = wanted.sha256.then(Digest::default);
    let content = match wanted.stat_only {
        true => Content::default(),
        false => {
            let most = match wanted.max_bytes {
                0 => CONTENT,
                most => most.unsigned_abs(),
            };
            let part = Part::of(wanted).unwrap_or(Part::ALL);
            let beginning = part.find(source)?;
            let stdout = rustix::stdio::stdout();
            content::send(source, &beginning, most, digest.as_mut(), stdout.as_fd())?
        }
    };
    let digest = digest.map(|digest| digest.finish(source)).transpose()?;
    Ok((content, digest.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{ByteRange, LineRange, file_read::Part as Wire};

    use super::*;

    fn asking(change: impl FnOnce(&mut FileRead)) -> Result<(), String> {
        let mut wanted = FileRead {
            path: "/etc/hostname".to_owned(),
            ..FileRead::default()
        };
        change(&mut wanted);
        check(&wanted)
    }

    fn bytes(offset: i64, length: i64) -> Option<Wire> {
        Some(Wire::Bytes(ByteRange { offset, length }))
    }

    fn lines(first: i64, count: i64) -> Option<Wire> {
        Some(Wire::Lines(LineRange { first, count }))
    }

    #[test]
    fn what_makes_sense_is_taken() {
        asking(|_| {}).unwrap();
        asking(|wanted| wanted.path = "x".repeat(PATH_MAX)).unwrap();
        asking(|wanted| wanted.part = bytes(-5, 3)).unwrap();
        asking(|wanted| wanted.part = lines(0, 10)).unwrap();
        asking(|wanted| wanted.part = lines(-3, 0)).unwrap();
        asking(|wanted| wanted.max_bytes = 256 << 20).unwrap();
        asking(|wanted| {
            wanted.stat_only = true;
            wanted.sha256 = true;
        })
        .unwrap();
        asking(|wanted| {
            wanted.stat_only = true;
            wanted.no_follow = true;
        })
        .unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let wrong = |field: &str, change: fn(&mut FileRead)| {
            let words = asking(change).unwrap_err();
            assert!(words.starts_with(&format!("{field}: ")), "{words}");
        };
        wrong("path", |wanted| wanted.path.clear());
        wrong("path", |wanted| wanted.path = "a\0b".to_owned());
        wrong("path", |wanted| wanted.path = "x".repeat(PATH_MAX + 1));
        wrong("max_bytes", |wanted| wanted.max_bytes = -1);
        wrong("max_bytes", |wanted| wanted.max_bytes = (256 << 20) + 1);
        wrong("bytes", |wanted| wanted.part = bytes(0, -1));
        wrong("bytes", |wanted| wanted.part = bytes(i64::MIN, 0));
        wrong("lines", |wanted| wanted.part = lines(1, -1));
        wrong("lines", |wanted| wanted.part = lines(i64::MIN, 1));
        wrong("stat_only", |wanted| {
            wanted.stat_only = true;
            wanted.part = bytes(0, 1);
        });
        wrong("stat_only", |wanted| {
            wanted.stat_only = true;
            wanted.max_bytes = 1;
        });
        wrong("no_follow", |wanted| wanted.no_follow = true);
        wrong("no_follow", |wanted| {
            wanted.stat_only = true;
            wanted.no_follow = true;
            wanted.sha256 = true;
        });
        wrong("timeout", |wanted| {
            wanted.timeout = Some(prost_types::Duration::default());
        });
        wrong("timeout", |wanted| {
            wanted.timeout = Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            });
        });
    }
}
