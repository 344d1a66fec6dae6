//! Files that are read: what comes as output, what comes as result, and what is refused; in every mode, as root and as
//! others.

use std::{
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
};

use muster_proto::v1::{
    ByteRange, Confinement, FileRead, FileReadResult, FileStat, LineRange, Mode, TaskResult,
    file_read::Part, file_stat::Type, task_result,
};
use nix::sys::stat::Mode as Permissions;
use prost::Message as _;

use super::{worker::Read, *};

fn asking(mode: Mode) -> Confinement {
    Confinement {
        mode: mode.into(),
        ..Confinement::default()
    }
}

pub(super) fn reading(path: impl AsRef<Path>) -> FileRead {
    FileRead {
        path: path.as_ref().display().to_string(),
        ..FileRead::default()
    }
}

fn bytes(path: &Path, offset: i64, length: i64) -> FileRead {
    FileRead {
        part: Some(Part::Bytes(ByteRange { offset, length })),
        ..reading(path)
    }
}

fn lines(path: &Path, first: i64, count: i64) -> FileRead {
    FileRead {
        part: Some(Part::Lines(LineRange { first, count })),
        ..reading(path)
    }
}

fn stat_of(path: impl AsRef<Path>) -> FileRead {
    FileRead {
        stat_only: true,
        ..reading(path)
    }
}

/// The result that a task has; the default, if it has none.
pub(super) fn result(task: &Reported) -> FileReadResult {
    let result = task.ended.as_ref().unwrap().result.clone();
    match TaskResult::decode(result).unwrap().kind {
        Some(task_result::Kind::FileRead(result)) => result,
        None => FileReadResult::default(),
    }
}

fn stat(task: &Reported) -> FileStat {
    result(task).stat.unwrap_or_default()
}

#[track_caller]
fn was_read(task: &Reported) {
    let ended = task.ended.as_ref().unwrap();
    assert_eq!(task.state(), State::Succeeded, "{}", ended.message);
    assert_eq!(ended.exit_code, Some(0));
}

/// How it was refused.
#[track_caller]
fn refused(task: &Reported) -> (Reason, String) {
    let ended = task.ended.clone().unwrap();
    assert_eq!(task.state(), State::Failed, "{}", ended.message);
    assert_eq!((ended.exit_code, &*ended.signal), (None, ""));
    assert_eq!(task.stdout, b"");
    assert!(ended.result.is_empty());
    (ended.reason(), ended.message)
}

/// Whether this kernel does not confine, so that there is nothing more to see.
fn cannot_confine(task: &Reported) -> bool {
    let ended = task.ended.as_ref().unwrap();
    ended.reason() == Reason::ModeUnenforceable
}

async fn read(control_plane: &FakeControlPlane, wanted: FileRead) -> Reported {
    read_in(control_plane, wanted, Mode::Unspecified).await
}

async fn read_in(control_plane: &FakeControlPlane, wanted: FileRead, mode: Mode) -> Reported {
    let task_id = control_plane.offer_read(wanted, asking(mode)).await;
    control_plane.settled(&task_id).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_read_and_described() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let path = host.path("poem.md");
    fs::write(&path, "one\ntwo\nthrée").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let wanted = FileRead {
        sha256: true,
        ..reading(&path)
    };
    let task = read(&control_plane, wanted).await;
    was_read(&task);
    assert_eq!(task.out(), "one\ntwo\nthrée");
    assert!(task.started.as_ref().unwrap().pid > 0);
    let result = result(&task);
    assert_eq!((result.offset, result.length), (0, 14));
    assert_eq!((result.first_line, result.lines), (0, 3));
    assert!(result.is_text && !result.has_more && !result.changed);
    let stat = result.stat.unwrap();
    assert_eq!(
        stat.path,
        path.canonicalize().unwrap().display().to_string()
    );
    assert_eq!((stat.r#type(), stat.size), (Type::Regular, 14));
    assert_eq!((stat.mode, stat.links), (0o640, 1));
    assert_eq!(stat.uid, nix::unistd::geteuid().as_raw());
    if stat.uid == 0 {
        assert_eq!((&*stat.owner, &*stat.group), ("root", "root"));
    }
    assert_eq!(stat.mime_type, "text/markdown");
    assert_eq!(
        stat.sha256,
        muster_client::audit::sha256("one\ntwo\nthrée".as_bytes())
    );
    assert!(stat.modify_time.is_some() && stat.change_time.is_some() && stat.access_time.is_some());
    let hello = control_plane
        .until("a hello", |seen| seen.hellos.first().cloned())
        .await;
    assert!(hello.capabilities.contains(&"action.file_read".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_read_by_bytes_or_by_lines() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let path = host.path("numbers");
    let text: String = (1..=1000).map(|number| format!("{number}\n")).collect();
    fs::write(&path, &text).unwrap();
    let cases = [
        (bytes(&path, 2, 4), "2\n3\n", (2, 0), true),
        (bytes(&path, -5, 0), "1000\n", (3888, 0), false),
        (bytes(&path, 9999, 5), "", (9999, 0), false),
        (lines(&path, 10, 2), "10\n11\n", (18, 10), true),
        (lines(&path, 0, 1), "1\n", (0, 1), true),
        (lines(&path, 999, 0), "999\n1000\n", (3884, 999), false),
        (lines(&path, -2, 1), "999\n", (3884, -2), true),
        (lines(&path, 2000, 1), "", (3893, 0), false),
    ];
    for (wanted, content, (offset, first_line), has_more) in cases {
        let task = read(&control_plane, wanted.clone()).await;
        was_read(&task);
        assert_eq!(task.out(), content, "{wanted:?}");
        let result = result(&task);
        assert_eq!((result.offset, result.first_line), (offset, first_line));
        assert_eq!(result.length, content.len() as i64);
        assert_eq!(result.lines, content.lines().count() as i64);
        assert_eq!(result.has_more, has_more, "{wanted:?}");
    }
    let cut = FileRead {
        max_bytes: 3,
        ..lines(&path, 1000, 1)
    };
    let task = read(&control_plane, cut).await;
    assert_eq!(task.out(), "100");
    assert!(result(&task).has_more);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_text_comes_as_it_is() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut image = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    image.extend((0..2_000_000u32).map(|number| (number * 7) as u8));
    fs::write(host.path("image"), &image).unwrap();
    let wanted = FileRead {
        max_bytes: 8 << 20,
        ..reading(host.path("image"))
    };
    let task = read(&control_plane, wanted).await;
    was_read(&task);
    assert!(task.stdout == image);
    assert!(!result(&task).is_text && !result(&task).has_more);
    assert_eq!(stat(&task).mime_type, "image/png");

    // Where nobody says how much, 1 MiB is enough.
    let task = read(&control_plane, reading(host.path("image"))).await;
    assert!(task.stdout == image[..1 << 20] && result(&task).has_more);
    fs::write(host.path("empty"), "").unwrap();
    let task = read(&control_plane, reading(host.path("empty"))).await;
    was_read(&task);
    assert!(task.stdout.is_empty() && result(&task).is_text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_content_says_what_it_is_and_is_not_waited_for() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    nix::unistd::mkfifo(&host.path("pipe"), Permissions::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(host.path("socket")).unwrap();
    fs::create_dir(host.path("directory")).unwrap();
    symlink("directory", host.path("link")).unwrap();
    let cases = [
        (host.path("pipe"), Type::Pipe, "named pipe"),
        (host.path("socket"), Type::Socket, "socket"),
        (host.path("directory"), Type::Directory, "directory"),
        (host.path("link"), Type::Directory, "directory"),
        (
            "/dev/zero".into(),
            Type::CharacterDevice,
            "character device",
        ),
    ];
    for (path, expected, words) in cases {
        let task = read(&control_plane, reading(&path)).await;
        let (reason, message) = refused(&task);
        assert_eq!(reason, Reason::FileType);
        assert!(
            message.contains(words) && message.contains("stat_only"),
            "{message}"
        );
        let task = read(&control_plane, stat_of(&path)).await;
        was_read(&task);
        assert_eq!(stat(&task).r#type(), expected);
        assert!(task.stdout.is_empty());
    }
    // A digest is for those that have content.
    let wanted = FileRead {
        sha256: true,
        ..stat_of("/dev/zero")
    };
    assert!(stat(&read(&control_plane, wanted).await).sha256.is_empty());
    let itself = FileRead {
        no_follow: true,
        ..stat_of(host.path("link"))
    };
    let task = read(&control_plane, itself).await;
    assert_eq!(stat(&task).r#type(), Type::Link);
    assert_eq!(stat(&task).link_target, "directory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_leads_over_links_and_dots_and_begins_at_home() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    fs::create_dir(host.path("a")).unwrap();
    fs::write(host.path("a/file"), "found").unwrap();
    symlink("a/file", host.path("link")).unwrap();
    for path in ["link", "a/../a/file", "a/./file"] {
        let task = read(&control_plane, reading(host.path(path))).await;
        was_read(&task);
        assert_eq!(task.out(), "found");
        assert!(stat(&task).path.ends_with("/a/file"));
    }
    let home = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap();
    let home = home.unwrap().dir.canonicalize().unwrap();
    for path in ["~", "~/", "."] {
        let task = read(&control_plane, stat_of(path)).await;
        was_read(&task);
        assert_eq!(stat(&task).path, home.display().to_string());
    }
    let round = host.path("round");
    symlink("round", &round).unwrap();
    for (path, reason) in [
        (host.path("none"), Reason::FileNotFound),
        (host.path("link/none"), Reason::FileNotFound),
        (host.path("none/none"), Reason::FileNotFound),
        (round, Reason::FileUnreadable),
    ] {
        let task = read(&control_plane, reading(&path)).await;
        let (said, message) = refused(&task);
        assert_eq!(said, reason, "{message}");
        assert!(
            message.starts_with(&path.display().to_string()),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_makes_up_is_read_whole() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let version = fs::read_to_string("/proc/version").unwrap();
    let task = read(&control_plane, reading("/proc/version")).await;
    assert_eq!(task.out(), version);
    assert_eq!(stat(&task).size, 0);
    let task = read(&control_plane, bytes(Path::new("/proc/version"), -6, 0)).await;
    assert_eq!(task.out(), version[version.len() - 6..]);
    let task = read(
        &control_plane,
        bytes(Path::new("/proc/sys/kernel/ostype"), 1, 0),
    )
    .await;
    assert_eq!(task.out(), "inux\n");
    let task = read(&control_plane, lines(Path::new("/proc/self/status"), -1, 0)).await;
    assert!(task.out().starts_with("nonvoluntary_ctxt_switches"));
    let path = Path::new("/sys/class/net/lo/mtu");
    if let Ok(mtu) = fs::read_to_string(path) {
        let task = read(&control_plane, bytes(path, -2, 0)).await;
        assert_eq!(task.out(), mtu[mtu.len() - 2..]);
        assert!(!result(&task).has_more && !result(&task).changed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_gigabytes_take_no_more_than_a_part_of_them() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let path = host.path("sparse");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"first\n").unwrap();
    file.set_len(10 << 30).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"\nlast but one\nlast\n").unwrap();
    for (wanted, content) in [
        (lines(&path, 1, 1), "first\n"),
        (lines(&path, -2, 0), "last but one\nlast\n"),
        (bytes(&path, -5, 0), "last\n"),
    ] {
        let task = read(&control_plane, wanted).await;
        was_read(&task);
        assert_eq!(task.out(), content);
        assert_eq!(stat(&task).size, (10 << 30) + 19);
    }
    let middle = FileRead {
        max_bytes: 2 << 20,
        ..bytes(&path, 5 << 30, 0)
    };
    let task = read(&control_plane, middle).await;
    assert!(task.stdout == vec![0; 2 << 20] && result(&task).has_more);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_is_read_is_said_to() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let read = Read::start(&control_plane, &host.path("sparse")).await;
    read.finish();
    let task = control_plane.settled(&read.task_id).await;
    was_read(&task);
    assert!(result(&task).changed);
    assert_eq!(stat(&task).size, 8 << 40, "when it was opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_that_make_no_sense_start_nothing() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let cases = [
        (reading(""), "path"),
        (bytes(Path::new("/etc/hostname"), 0, -1), "bytes"),
        (
            FileRead {
                max_bytes: 1 << 40,
                ..reading("/etc/hostname")
            },
            "max_bytes",
        ),
    ];
    for (wanted, field) in cases {
        let task = read(&control_plane, wanted).await;
        let (reason, message) = refused(&task);
        assert_eq!(reason, Reason::ArgumentInvalid);
        assert!(message.starts_with(field), "{message}");
        assert_eq!(task.started, None);
    }
    let as_nobody_known = FileRead {
        user: "nobody-of-that-name".to_owned(),
        ..reading("/etc/hostname")
    };
    let task = read(&control_plane, as_nobody_known).await;
    assert_eq!(refused(&task).0, Reason::UserNotPermitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mode_but_disabled_reads_what_it_may() {
    let control_plane = FakeControlPlane::start().await;
    let denied = tempfile::tempdir().unwrap();
    fs::write(denied.path().join("secret"), "secret").unwrap();
    let policy = format!(
        "mode = \"unrestricted\"\n[paths]\ndeny = [{:?}]",
        denied.path()
    );
    let host = Host::start_with(&control_plane, &policy).await;
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(open.path().join("file"), "open").unwrap();
    symlink(denied.path().join("secret"), open.path().join("link")).unwrap();
    let secret = denied.path().join("secret");
    for mode in [Mode::ReadOnly, Mode::Edit] {
        let task = read_in(&control_plane, reading(open.path().join("file")), mode).await;
        if cannot_confine(&task) {
            return;
        }
        was_read(&task);
        assert_eq!(task.out(), "open");
        assert_eq!(task.started.unwrap().confinement.unwrap().mode(), mode);
        for path in [&secret, &open.path().join("link")] {
            for wanted in [reading(path), stat_of(path)] {
                let (reason, message) = refused(&read_in(&control_plane, wanted, mode).await);
                assert_eq!(reason, Reason::FileNotPermitted, "{message}");
                assert!(message.contains("policy.toml"), "{message}");
            }
        }
        for own in ["agent/journal", "agent/key.pem"] {
            let task = read_in(&control_plane, reading(host.path(own)), mode).await;
            let (reason, message) = refused(&task);
            assert_eq!(reason, Reason::FileNotPermitted, "{message}");
            assert!(message.contains("agent's own"), "{message}");
        }
    }
    let task = read_in(&control_plane, reading(&secret), Mode::Unrestricted).await;
    assert_eq!(task.out(), "secret", "no command is kept from it either");
    let task = read_in(&control_plane, reading("/etc/hostname"), Mode::Disabled).await;
    assert_eq!(task.ended.unwrap().reason(), Reason::ModeDisabled);
    assert_eq!(task.started, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_reads_what_that_user_may() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be others");
        return;
    }
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (public, private) = (
        directory.path().join("public"),
        directory.path().join("private"),
    );
    fs::write(&public, "public").unwrap();
    fs::write(&private, "private").unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    let as_nobody = |path: &Path| FileRead {
        user: "nobody".to_owned(),
        ..reading(path)
    };
    for mode in [Mode::ReadOnly, Mode::Edit, Mode::Unrestricted] {
        let task = read_in(&control_plane, as_nobody(&public), mode).await;
        if cannot_confine(&task) {
            continue;
        }
        was_read(&task);
        assert_eq!(task.out(), "public");
        let (reason, message) = refused(&read_in(&control_plane, as_nobody(&private), mode).await);
        assert_eq!(reason, Reason::FileNotPermitted);
        assert!(
            message.contains("by nobody (mode 600, owner root)"),
            "{message}"
        );
        // Root itself has no more rights than others unless it is free.
        nix::unistd::chown(&private, Some(65534.into()), None).unwrap();
        let task = read_in(&control_plane, reading(&private), mode).await;
        match mode {
            Mode::Unrestricted => assert_eq!(task.out(), "private"),
            _ => assert!(refused(&task).1.contains("mode unrestricted")),
        }
        nix::unistd::chown(&private, Some(0.into()), None).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_says_whether_files_are_read() {
    let control_plane = FakeControlPlane::start().await;
    for (policy, may) in [
        ("[actions]\ndeny = [\"file_read\"]", false),
        ("[actions]\nallow = [\"command\"]", false),
        (
            "mode = \"edit\"\n[programs]\ndeny = [\"/usr/bin/env\"]",
            false,
        ),
        (
            "mode = \"edit\"\n[programs]\ndeny = [\"/usr/bin/env\"]\n[actions]\nallow = [\"file_read\"]",
            true,
        ),
    ] {
        let mut host = Host::start_with(&control_plane, policy).await;
        let task = read(&control_plane, reading("/etc/passwd")).await;
        if !cannot_confine(&task) {
            let ended = task.ended.unwrap();
            let expected = if may {
                Reason::Unspecified
            } else {
                Reason::ActionDenied
            };
            assert_eq!(ended.reason(), expected, "{policy}: {}", ended.message);
        }
        host.stop().await.unwrap();
        control_plane.forget_session();
    }
}
