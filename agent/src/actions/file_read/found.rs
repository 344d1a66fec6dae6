//! A file as its path finds it, and what it is. Finding a file opens nothing that could block or be changed by it.

use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use muster_proto::v1::{FileStat, file_stat::Type};
use nix::libc;
use prost_types::Timestamp;

use super::{names, refusal::Refusals};
use crate::process::{Outcome, Place};

/// A file that was found.
pub(super) struct Found<'a> {
    /// Names the file, whatever becomes of its path, and cannot be read.
    place: File,
    metadata: Metadata,
    /// Without links.
    path: PathBuf,
    /// What a link that was named leads to.
    target: Option<PathBuf>,
    refusals: Refusals<'a>,
}

impl<'a> Found<'a> {
    /// Finds what a path names, and what it leads to if that is followed.
    pub(super) fn at(path: &str, follow: bool, place: &'a Place<'a>) -> Result<Self, Outcome> {
        let path = absolute(path, place.home);
        let refusals = Refusals::new(path.clone(), place);
        let found = find(&path, follow).map_err(|error| refusals.not_found(&error))?;
        let known = found.metadata().and_then(|metadata| {
            let path = fs::read_link(by_number(&found))?;
            Ok((metadata, path))
        });
        let (metadata, real) = known.map_err(|error| refusals.not_found(&error))?;
        // The kernel has put something else in its place, which says nothing about it.
        if let Some(refusal) = refusals.of_closed(&real) {
            return Err(refusal);
        }
        Ok(Self {
            place: found,
            metadata,
            target: fs::read_link(&path).ok(),
            path: real,
            refusals,
        })
    }

    /// The file's path, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The words for what goes wrong with it.
    pub(super) fn refusals(&self) -> &Refusals<'a> {
        &self.refusals
    }

    /// Opens it for reading, and never waits. It is the file that was found, though another may have its path now.
    pub(super) fn open(&self) -> Result<File, Outcome> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(by_number(&self.place));
        file.map_err(|error| self.refusals.not_opened(&error, &self.metadata))
    }

    /// Whether it is as it was when it was found.
    pub(super) fn is_as_before(&self, file: &File) -> bool {
        let look = |found: &Metadata| {
            let modified = (found.mtime(), found.mtime_nsec());
            (found.len(), modified, found.ctime(), found.ctime_nsec())
        };
        file.metadata()
            .is_ok_and(|now| look(&now) == look(&self.metadata))
    }

    /// All that is known of the file, but for its content.
    pub(super) fn stat(&self) -> FileStat {
        let found = &self.metadata;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        FileStat {
            path: text(&self.path),
            r#type: type_of(found).into(),
            size: i64::try_from(found.len()).unwrap_or(i64::MAX),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            owner: names::of_user(found.uid()),
            group: names::of_group(found.gid()),
            modify_time: time(found.mtime(), found.mtime_nsec()),
            change_time: time(found.ctime(), found.ctime_nsec()),
            access_time: time(found.atime(), found.atime_nsec()),
            link_target: self.target.as_deref().map(text).unwrap_or_default(),
            links: found.nlink(),
            ..FileStat::default()
        }
    }
}

/// What a path means to a user with this home.
fn absolute(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => home.join(path),
    }
}

fn find(path: &Path, follow: bool) -> io::Result<File> {
    let flags = match follow {
        true => libc::O_PATH,
        false => libc::O_PATH | libc::O_NOFOLLOW,
    };
    File::options().read(true).custom_flags(flags).open(path)
}

/// The path of a file by its descriptor.
fn by_number(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn type_of(found: &Metadata) -> Type {
    match found.mode() & libc::S_IFMT {
        libc::S_IFREG => Type::Regular,
        libc::S_IFDIR => Type::Directory,
        libc::S_IFLNK => Type::Link,
        libc::S_IFIFO => Type::Pipe,
        libc::S_IFSOCK => Type::Socket,
        libc::S_IFBLK => Type::BlockDevice,
        libc::S_IFCHR => Type::CharacterDevice,
        _ => Type::Unspecified,
    }
}

fn time(seconds: i64, nanos: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds,
        nanos: i32::try_from(nanos).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_at_the_root_or_at_home() {
        let absolute = |path| absolute(path, Path::new("/home/ada"));
        let home = PathBuf::from("/home/ada");
        assert_eq!(absolute("/etc/hosts"), Path::new("/etc/hosts"));
        assert_eq!(absolute("~"), home);
        assert_eq!(absolute("~/a"), home.join("a"));
        assert_eq!(absolute("~//a"), home.join("a"));
        assert_eq!(absolute("a/../b"), home.join("a/../b"));
        assert_eq!(
            absolute("~bob/a"),
            home.join("~bob/a"),
            "a name like others"
        );
    }

    #[test]
    fn every_type_is_told_and_nothing_is_opened_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "four").unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let place = Place {
            user: "ada",
            home: directory.path(),
            sandbox: None,
        };
        let stat = |path: &str, follow| Found::at(path, follow, &place).map(|found| found.stat());
        for (path, expected) in [
            ("file", Type::Regular),
            ("~", Type::Directory),
            ("pipe", Type::Pipe),
            ("socket", Type::Socket),
            ("/dev/null", Type::CharacterDevice),
            ("link", Type::Regular),
        ] {
            assert_eq!(stat(path, true).unwrap().r#type(), expected, "{path}");
        }
        let link = stat("link", false).unwrap();
        assert_eq!((link.r#type(), &*link.link_target), (Type::Link, "file"));
        let followed = stat("link", true).unwrap();
        assert!(followed.path.ends_with("/file") && followed.link_target == "file");
        assert_eq!((followed.size, followed.links), (4, 1));
        assert!(stat("none", true).is_err());
    }
}
