//! Why a file is not read, in words that name it and the next step.

use std::{
    ffi::OsString,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use muster_proto::v1::{Reason, file_stat::Type};
use nix::errno::Errno;

use super::{content::Failure, names};
use crate::process::{Outcome, Place, Sandbox};

/// Where a confined task has a directory of its own in the place of the host's.
const SHARED_MEMORY: &str = "/dev/shm";

/// No more links are followed, as the kernel has it.
const LINKS: usize = 40;

/// The words for one file.
#[derive(Debug)]
pub(super) struct Refusals<'a> {
    /// As it was asked for, and absolute.
    path: PathBuf,
    place: &'a Place<'a>,
}

impl<'a> Refusals<'a> {
    pub(super) fn new(path: PathBuf, place: &'a Place<'a>) -> Self {
        Self { path, place }
    }

    fn refused(&self, reason: Reason, words: impl std::fmt::Display) -> Outcome {
        Outcome::refused(reason, format!("{} {words}", self.path.display()))
    }

    /// What the path names could not be found.
    pub(super) fn not_found(&self, error: &io::Error) -> Outcome {
        let closed = self
            .place
            .sandbox
            .and_then(|_| self.of_closed(&leads_to(&self.path)));
        match errno(error) {
            Errno::ENOENT | Errno::EACCES | Errno::EPERM if closed.is_some() => {
                closed.unwrap_or_default()
            }
            Errno::ENOENT
                if self.place.sandbox.is_some() && self.path.starts_with(SHARED_MEMORY) =>
            {
                let words = "is not there: a task of this mode has a /dev/shm of its own; ask for mode unrestricted";
                self.refused(Reason::FileNotFound, words)
            }
            Errno::ENOENT => self.refused(
                Reason::FileNotFound,
                "is not there, or a link on the way leads nowhere",
            ),
            Errno::ENOTDIR => self.refused(
                Reason::FileNotFound,
                "is not there: something on the way is no directory",
            ),
            Errno::EACCES | Errno::EPERM => self.not_permitted(
                "cannot be reached: a directory on the way lets nobody through but others",
                "",
            ),
            Errno::ELOOP => self.refused(
                Reason::FileUnreadable,
                "cannot be reached: the links on the way lead in a circle",
            ),
            errno => self.unreadable("cannot be reached", errno),
        }
    }

    /// What was found could not be opened.
    pub(super) fn not_opened(&self, error: &io::Error, found: &Metadata) -> Outcome {
        match errno(error) {
            Errno::EACCES | Errno::EPERM => {
                let owner = names::of_user(found.uid());
                let owner = match owner.is_empty() {
                    true => format!("user {}", found.uid()),
                    false => owner,
                };
                let rights = format!(" (mode {:o}, owner {owner})", found.mode() & 0o7777);
                self.not_permitted("may not be read", &rights)
            }
            Errno::ENOENT => {
                let words = "cannot be read: this host has no /proc, which finds it again";
                self.refused(Reason::FileUnreadable, words)
            }
            errno => self.unreadable("cannot be opened", errno),
        }
    }

    fn not_permitted(&self, what: &str, rights: &str) -> Outcome {
        let user = self.place.user;
        let next = match self.place.sandbox {
            None => "name a user who may".to_owned(),
            Some(sandbox) if !sandbox.readable.is_empty() && !self.is_among(&sandbox.readable) => {
                "the policy of this host lists what may be read ([paths] allow of its policy.toml), and this is not \
                 among it; its owner can add it"
                    .to_owned()
            }
            Some(sandbox) if user == "root" => format!(
                "in mode {} root reads what others may and what is its own; name a user who may, or ask for mode \
                 unrestricted",
                mode(sandbox)
            ),
            Some(_) => "name a user who may, or ask for mode unrestricted".to_owned(),
        };
        let words = format!("{what} by {user}{rights}; {next}");
        self.refused(Reason::FileNotPermitted, words)
    }

    fn is_among(&self, paths: &[String]) -> bool {
        paths.iter().any(|path| self.path.starts_with(path))
    }

    /// The refusal of a file whose place the sandbox gives to something else; `None` if it is none.
    pub(super) fn of_closed(&self, real: &Path) -> Option<Outcome> {
        let sandbox = self.place.sandbox?;
        let is_below = |path: &String| real.starts_with(path);
        let words = if is_below(&sandbox.covered) {
            "is among the agent's own files, which are closed to every task that is confined"
                .to_owned()
        } else if sandbox.hidden.iter().any(is_below) {
            format!(
                "is closed to tasks of mode {} by the policy of this host ([paths] or [programs] deny of its \
                 policy.toml); its owner can open it",
                mode(sandbox)
            )
        } else {
            return None;
        };
        Some(self.refused(Reason::FileNotPermitted, words))
    }

    /// It is of a type that has no content.
    pub(super) fn of_type(&self, found: Type) -> Outcome {
        let what = match found {
            Type::Directory => "a directory: name a file in it",
            Type::Link => "a link",
            Type::Pipe => "a named pipe, which has to be waited for",
            Type::Socket => "a socket",
            Type::BlockDevice => "a block device",
            Type::CharacterDevice => "a character device",
            Type::Regular | Type::Unspecified => "no regular file",
        };
        let words =
            format!("is {what}; there is no content to read, and stat_only says what it is");
        self.refused(Reason::FileType, words)
    }

    /// Reading broke off.
    pub(super) fn failed(&self, failure: Failure) -> Outcome {
        match failure {
            Failure::Read(error) => match errno(&error) {
                Errno::EAGAIN => self.refused(
                    Reason::FileUnreadable,
                    "has nothing to read now, and would have to be waited for; run a command that does",
                ),
                Errno::EACCES | Errno::EPERM => self.not_permitted("may not be read", ""),
                errno => self.unreadable("cannot be read", errno),
            },
            Failure::Write(errno) => self.unreadable("was read, and nobody takes it", errno),
        }
    }

    fn unreadable(&self, what: &str, errno: Errno) -> Outcome {
        self.refused(Reason::FileUnreadable, format!("{what}: {}", errno.desc()))
    }
}

/// Where a path leads, as far as its links can be followed; for words alone.
fn leads_to(path: &Path) -> PathBuf {
    let mut rest: Vec<OsString> = path.iter().rev().map(OsString::from).collect();
    let (mut reached, mut links) = (PathBuf::new(), 0);
    while let Some(name) = rest.pop() {
        if name == ".." {
            reached.pop();
            continue;
        }
        reached.push(name);
        if links < LINKS
            && let Ok(target) = fs::read_link(&reached)
        {
            links += 1;
            reached.pop();
            rest.extend(target.iter().rev().map(OsString::from));
        }
    }
    reached
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A mode's name as people write it.
fn mode(sandbox: &Sandbox) -> String {
    let name = sandbox.mode().as_str_name();
    name.trim_start_matches("MODE_")
        .to_lowercase()
        .replace('_', "-")
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Mode;

    use super::*;

    fn confined(change: impl FnOnce(&mut Sandbox)) -> Sandbox {
        let mut sandbox = Sandbox {
            mode: Mode::ReadOnly.into(),
            covered: "/var/lib/muster".to_owned(),
            hidden: vec!["/etc/shadow".to_owned()],
            ..Sandbox::default()
        };
        change(&mut sandbox);
        sandbox
    }

    fn words(sandbox: Option<&Sandbox>, path: &str, errno: Errno) -> (Reason, String) {
        let place = Place {
            user: "ada",
            home: Path::new("/home/ada"),
            sandbox,
        };
        let refusals = Refusals::new(path.into(), &place);
        let outcome = refusals.not_found(&errno.into());
        (outcome.reason(), outcome.message)
    }

    #[test]
    fn a_refusal_names_the_file_and_the_next_step() {
        let sandbox = confined(|_| {});
        let closed = Some(&sandbox);
        for (sandbox, path, errno, reason, next) in [
            (
                None,
                "/a",
                Errno::ENOENT,
                Reason::FileNotFound,
                "is not there",
            ),
            (
                None,
                "/a/b",
                Errno::ENOTDIR,
                Reason::FileNotFound,
                "no directory",
            ),
            (
                None,
                "/a",
                Errno::EACCES,
                Reason::FileNotPermitted,
                "by ada; name a user",
            ),
            (None, "/a", Errno::ELOOP, Reason::FileUnreadable, "circle"),
            (None, "/a", Errno::EIO, Reason::FileUnreadable, "I/O error"),
            (
                closed,
                "/a",
                Errno::EACCES,
                Reason::FileNotPermitted,
                "mode unrestricted",
            ),
            (
                closed,
                "/etc/shadow",
                Errno::EACCES,
                Reason::FileNotPermitted,
                "policy.toml",
            ),
            (
                closed,
                "/var/lib/muster/agent/key.pem",
                Errno::ENOENT,
                Reason::FileNotPermitted,
                "the agent's own",
            ),
            (
                closed,
                "/dev/shm/x",
                Errno::ENOENT,
                Reason::FileNotFound,
                "of its own",
            ),
        ] {
            let (said, message) = words(sandbox, path, errno);
            assert_eq!(said, reason, "{message}");
            assert!(
                message.starts_with(path) && message.contains(next),
                "{message}"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("../../../../etc/./shadow", &link).unwrap();
        assert_eq!(leads_to(&link), Path::new("/etc/shadow"));
        let (_, message) = words(closed, link.to_str().unwrap(), Errno::EACCES);
        assert!(message.contains("policy.toml"), "{message}");

        let lists = confined(|sandbox| sandbox.readable = vec!["/usr".to_owned()]);
        let (_, message) = words(Some(&lists), "/srv/a", Errno::EACCES);
        assert!(message.contains("[paths] allow"), "{message}");
    }
}
