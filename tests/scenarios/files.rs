//! Reading files of hosts, by whoever may: through gRPC, `muster fs` and the tool `file_read`.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use muster_client::{Client, files::FileContent};
use muster_proto::v1::{
    FileRead, FileReadResult, LineRange, Mode, OutputStream, Reason, file_read::Part,
    file_stat::Type, task::State,
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    mcp::{Era, McpClient},
    operator::{file_read, request},
    process::Ended,
};
use nix::{sys::stat::Mode as Permissions, unistd::mkfifo};
use serde_json::{Value, json};

/// The smallest image there is: a PNG of one pixel.
const DOT: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

/// A directory of files that every user of the machine may enter.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        text(&path)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// `muster fs cat` of a file of web-1, with these options.
async fn cat(fleet: &Fleet, path: &str, options: &[&str]) -> Ended {
    let place = format!("web-1:{path}");
    fleet.cli(&[&["fs", "cat", &place], options].concat()).await
}

/// What `muster fs stat --json` says of a file of web-1.
async fn stat(fleet: &Fleet, path: &str, options: &[&str]) -> Value {
    let place = format!("web-1:{path}");
    let ended = fleet
        .cli(&[&["fs", "stat", &place, "--json"], options].concat())
        .await;
    assert_eq!(ended.code(), 0, "{path}: {}", ended.stderr);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    document["tasks"][0]["result"]["file_read"]["stat"].clone()
}

/// Reads a file of the hosts that match, through the SDK.
async fn read(fleet: &Fleet, selector: &str, file: FileRead, mode: Mode) -> Vec<FileContent> {
    let directory = fleet.data_dir().join("operator");
    let client = Client::from_directory(&directory).await.unwrap();
    let mut request = request(selector, file_read(file));
    request.set_mode(mode);
    let reading = client.read_file(request).await.unwrap();
    let files = tokio::time::timeout(PATIENCE, reading.finish()).await;
    files.expect("every host answers").unwrap()
}

fn file(path: &str) -> FileRead {
    FileRead {
        path: path.to_owned(),
        ..FileRead::default()
    }
}

/// It was refused with this reason and this exit code, which is told in one line.
fn is_refused(ended: &Ended, reason: Reason, code: i32) {
    assert_eq!(ended.code(), code, "{reason:?}: {}", ended.stderr);
    assert!(ended.stderr.contains(reason.name()), "{}", ended.stderr);
    assert!(ended.bytes.is_empty(), "{}", ended.stdout);
}

#[tokio::test]
async fn a_file_comes_as_it_is_in_every_mode() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let files = Files::new();
    let every_byte: Vec<u8> = (0..300_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    for (name, content) in [
        ("text", "one\ntwo\n".as_bytes()),
        ("without-end", "one\ntwö".as_bytes()),
        ("empty", b""),
        ("binary", &every_byte),
        ("a b 'c'", b"blanks\n"),
    ] {
        let path = files.write(name, content);
        for mode in ["read-only", "edit", "unrestricted"] {
            let ended = cat(&fleet, &path, &["--mode", mode]).await;
            if ended.stderr.contains("MODE_UNENFORCEABLE") {
                continue;
            }
            assert_eq!(ended.code(), 0, "{name} {mode}: {}", ended.stderr);
            assert!(ended.bytes == content, "{name} {mode}");
            assert_eq!(ended.stderr, "", "nothing has to be said");
        }
    }
}

#[tokio::test]
async fn what_a_file_is_stands_in_the_result() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let files = Files::new();
    let path = files.write("notes.txt", "one\ntwo\nthree\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let lines = Part::Lines(LineRange { first: 2, count: 1 });
    let asked = FileRead {
        part: Some(lines),
        sha256: true,
        ..file(&path)
    };
    let found = read(&fleet, "web-1", asked.clone(), Mode::Unspecified).await;
    let [found] = found.as_slice() else {
        panic!("one host: {found:?}");
    };
    let result: &FileReadResult = found.checked().unwrap();
    assert_eq!(found.content, b"two\n");
    assert_eq!((result.offset, result.length), (4, 4));
    assert_eq!((result.first_line, result.lines), (2, 1));
    assert!(result.is_text && result.has_more && !result.changed);
    let stat = result.stat.as_ref().unwrap();
    assert_eq!(
        (stat.r#type(), stat.size, stat.mode),
        (Type::Regular, 14, 0o640)
    );
    assert_eq!(stat.mime_type, "text/plain");
    assert_eq!(stat.sha256, digest(&SHA256, b"one\ntwo\nthree\n").as_ref());
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap();
    assert_eq!(stat.owner, user.unwrap().name);

    // The task keeps both, for whoever looks later.
    let operator = fleet.operator();
    let job = operator.create(request("web-1", file_read(asked))).await;
    let job = job.unwrap();
    let task = job.succeeds().await;
    assert_eq!(muster_client::files::result(&task), Some(result));
    assert_eq!(job.output(OutputStream::Stdout).await, b"two\n");
    assert_eq!(task.exit_code, Some(0), "its worker ended well");
    let listed = fleet.cli(&["job", "get", &job.job_id]).await.stdout;
    assert!(
        listed.contains(&format!("read {path}, lines 2..2")) && listed.contains("14 bytes"),
        "{listed}"
    );
}

#[tokio::test]
async fn a_part_of_a_file_is_some_bytes_or_some_lines() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let files = Files::new();
    let log: String = (1..=1_000).map(|n| format!("entry {n}\n")).collect();
    let path = files.write("log", &log);
    for (options, part) in [
        (["--bytes", "2..5"], "try"),
        (["--bytes", "..5"], "entry"),
        (["--bytes", "-5.."], "1000\n"),
        (["--bytes", "-5..-1"], "1000"),
        (["--bytes", "99999.."], ""),
        (["--lines", "2..3"], "entry 2\nentry 3\n"),
        (["--lines", "7"], "entry 7\n"),
        (["--lines", "999.."], "entry 999\nentry 1000\n"),
        (["--lines", "-2.."], "entry 999\nentry 1000\n"),
        (["--lines", "-2..-2"], "entry 999\n"),
        (["--lines", "1001.."], ""),
    ] {
        let ended = cat(&fleet, &path, &options).await;
        assert_eq!(ended.code(), 0, "{options:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, part, "{options:?}");
        assert_eq!(ended.stderr, "", "{options:?}");
    }
    // What was cut is told with the way to read on, which leads to the end without a gap.
    let first = cat(&fleet, &path, &["--max-bytes", "4K"]).await;
    assert_eq!((first.code(), first.bytes.len()), (0, 4_096));
    let (_, next) = first.stderr.trim().split_once("--bytes ").unwrap();
    let rest = cat(&fleet, &path, &["--bytes", next]).await;
    assert_eq!(first.stdout + &rest.stdout, log);

    for wrong in [
        &["--bytes", "5..2"][..],
        &["--lines", "0"],
        &["--max-bytes", "1G"],
    ] {
        assert_eq!(cat(&fleet, &path, wrong).await.code(), 64, "{wrong:?}");
    }
}

#[tokio::test]
async fn a_file_of_ten_gigabytes_is_read_where_it_is_asked_for() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let files = Files::new();
    let path = files.path("sparse");
    let size: u64 = 10 << 30;
    let mut sparse = File::create(&path).unwrap();
    sparse.set_len(size).unwrap();
    sparse.seek(SeekFrom::End(-9)).unwrap();
    sparse.write_all(b"\nthe end\n").unwrap();
    sparse.write_all_at(b"the beginning\n", 0).unwrap();
    let path = text(&path);

    for (options, part) in [
        (["--bytes", "-8.."], "the end\n"),
        (["--lines", "-1.."], "the end\n"),
        (["--lines", "..1"], "the beginning\n"),
    ] {
        let ended = cat(&fleet, &path, &options).await;
        assert_eq!(ended.code(), 0, "{options:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, part, "{options:?}");
    }
    let beginning = cat(&fleet, &path, &["--max-bytes", "64K"]).await;
    assert_eq!((beginning.code(), beginning.bytes.len()), (0, 64 << 10));
    assert!(
        beginning.stderr.contains("64.0 KiB of 10.0 GiB")
            && beginning.stderr.contains("--bytes 65536.."),
        "{}",
        beginning.stderr
    );
    assert_eq!(stat(&fleet, &path, &[]).await["size"], size);
}

#[tokio::test]
async fn what_is_no_file_is_told_apart() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let files = Files::new();
    let target = files.write("target", "content\n");
    let (pipe, link, broken) = (files.path("pipe"), files.path("link"), files.path("broken"));
    mkfifo(&pipe, Permissions::S_IRWXU).unwrap();
    symlink("target", &link).unwrap();
    symlink("nowhere", &broken).unwrap();
    let directory = text(files.0.path());
    let (pipe, link, broken) = (text(&pipe), text(&link), text(&broken));

    for missing in [&format!("{directory}/none/at/all"), &broken] {
        is_refused(&cat(&fleet, missing, &[]).await, Reason::FileNotFound, 66);
    }
    // Nobody writes to the pipe: opened like a file, it would wait for ever.
    for other in [&directory, &pipe, "/dev/zero"] {
        is_refused(&cat(&fleet, other, &[]).await, Reason::FileType, 65);
    }
    let below = format!("{target}/x");
    let ended = cat(&fleet, &below, &[]).await;
    assert!(matches!(ended.code(), 65 | 66), "{}", ended.stderr);

    for (path, options, kind) in [
        (&directory, &[][..], "directory"),
        (&pipe, &[], "pipe"),
        (&link, &[], "regular"),
        (&link, &["--no-follow"], "link"),
        (&broken, &["--no-follow"], "link"),
    ] {
        assert_eq!(stat(&fleet, path, options).await["type"], kind, "{path}");
    }
    assert_eq!(
        stat(&fleet, &link, &["--no-follow"]).await["link_target"],
        "target"
    );
    assert_eq!(cat(&fleet, &link, &[]).await.stdout, "content\n");
    let above = format!(
        "{directory}/../{}/target",
        files.0.path().file_name().unwrap().display()
    );
    assert_eq!(cat(&fleet, &above, &[]).await.stdout, "content\n");
    let shown = fleet.cli(&["fs", "stat", &format!("web-1:{target}")]).await;
    assert!(shown.stdout.contains("regular file"), "{}", shown.stdout);
}

#[tokio::test]
async fn what_may_not_be_read_is_reached_by_no_way() {
    let files = Files::new();
    let secret = files.write("secret", "hidden\n");
    let link = files.path("link");
    symlink("secret", &link).unwrap();
    let policy = files.write(
        "policy.toml",
        format!("mode = \"edit\"\n[paths]\ndeny = [{secret:?}]\n"),
    );
    let fleet = Fleet::plan()
        .set_agents("MUSTER_POLICY", policy)
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let directory = files.0.path().file_name().unwrap().display().to_string();
    let around = text(&files.path(&format!("../{directory}/secret")));
    let key = text(&host.directory().join("agent/key.pem"));
    for mode in ["read-only", "edit"] {
        for path in [&secret, &text(&link), &around, &key] {
            let ended = cat(&fleet, path, &["--mode", mode]).await;
            if ended.stderr.contains("MODE_UNENFORCEABLE") {
                return;
            }
            is_refused(&ended, Reason::FileNotPermitted, 77);
        }
    }
}

#[tokio::test]
async fn a_user_reads_what_the_user_may() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let files = Files::new();
    let policy = files.write("policy.toml", "users = [\"nobody\"]\n");
    let fleet = Fleet::plan()
        .set_agents("MUSTER_POLICY", policy)
        .start()
        .await;
    let _host = fleet.host("web-1").await;
    let public = files.write("public", "for all\n");
    let private = files.write("private", "for root\n");
    fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    let ended = cat(&fleet, &public, &["--user", "nobody"]).await;
    assert_eq!(ended.stdout, "for all\n", "{}", ended.stderr);
    let ended = cat(&fleet, &private, &["--user", "nobody"]).await;
    is_refused(&ended, Reason::FileNotPermitted, 77);
    assert_eq!(cat(&fleet, &private, &[]).await.stdout, "for root\n");
    let ended = cat(&fleet, &public, &["--user", "daemon"]).await;
    assert_eq!(ended.code(), 125, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("USER_NOT_PERMITTED"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn several_hosts_are_told_apart_and_each_has_its_say() {
    let (fleet, _one) = Fleet::with_host("web-1").await;
    let _two = fleet.host("web-2").await;
    let files = Files::new();
    let path = files.write("motd", "hello\nworld\n");
    let all = fleet.cli(&["fs", "cat", &format!("all:{path}")]).await;
    assert_eq!(all.code(), 0, "{}", all.stderr);
    let mut lines: Vec<&str> = all.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "web-1 | hello",
            "web-1 | world",
            "web-2 | hello",
            "web-2 | world"
        ]
    );
    let found = read(&fleet, "all", file(&path), Mode::Unspecified).await;
    let names: Vec<&str> = found
        .iter()
        .map(|one| one.task.host_name.as_str())
        .collect();
    assert_eq!(names, ["web-1", "web-2"]);
    assert!(found.iter().all(|one| one.content == b"hello\nworld\n"));

    let shown = fleet.cli(&["fs", "stat", "all", &path, "--sha256"]).await;
    assert_eq!(shown.stdout.lines().count(), 3, "{}", shown.stdout);
    let missing = fleet.cli(&["fs", "cat", "all:/none"]).await;
    assert_eq!(missing.code(), 1, "{}", missing.stderr);
    assert_eq!(missing.stderr.matches("FILE_NOT_FOUND").count(), 2);
}

#[tokio::test]
async fn nobody_reads_for_whoever_has_gone() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let files = Files::new();
    let path = files.path("endless");
    File::create(&path).unwrap().set_len(10 << 30).unwrap();
    let place = format!("web-1:{}", path.display());
    let cat = fleet.muster(&["fs", "cat", &place]);
    let cat = cat.spawn_unread(&fleet.logs());
    assert_eq!(cat.ended(PATIENCE).await.code(), 141);
    let jobs = fleet.cli(&["job", "list", "--json"]).await.stdout;
    let jobs: Value = serde_json::from_str(&jobs).unwrap();
    let job = fleet
        .operator()
        .job(jobs["jobs"][0]["job_id"].as_str().unwrap());
    let task = eventually(PATIENCE, "the reading is over", || async {
        let task = job.task().await;
        (task.state() != State::Running && task.state() != State::Pending).then_some(task)
    })
    .await;
    assert_eq!(
        task.state(),
        State::Cancelled,
        "nobody wants the rest: {task:?}"
    );
}

#[tokio::test]
async fn a_model_reads_text_images_and_what_else_there_is() {
    let fleet = Fleet::plan().start_up().await;
    let _one = fleet.host("web-1").await;
    let _two = fleet.host("web-2").await;
    let files = Files::new();
    let client = McpClient::new(fleet.mcp_address(), Era::Modern, &fleet.mcp_token());
    let read = async |target: &str, path: &str| {
        let arguments = json!({"target": target, "path": path});
        client.call("file_read", arguments).await
    };

    let notes = files.write("notes", "one\n\x1b[31mtwo\n");
    let answer = read("web-1", &notes).await;
    if answer.text.contains("MODE_UNENFORCEABLE") {
        return;
    }
    assert!(!answer.is_error, "{}", answer.text);
    assert!(
        answer.text.contains("\n1\tone\n2\t\\x1b[31mtwo\n")
            && answer.text.ends_with("end of file\n"),
        "{}",
        answer.text
    );
    assert!(answer.text.contains("mode=read-only"), "{}", answer.text);
    let id = answer.text.split(' ').nth(1).unwrap();
    let again = client.call("job_get", json!({"job_id": id})).await;
    assert!(
        !again.is_error && again.text.contains("regular file, 13 bytes"),
        "{}",
        again.text
    );
    let both = read("web-1,web-2", &notes).await;
    assert!(
        both.text.contains("2 hosts (web-1, web-2)"),
        "{}",
        both.text
    );
    assert_eq!(both.text.matches("1\tone").count(), 1);

    let dot = files.write("dot.png", STANDARD.decode(DOT).unwrap());
    let params = json!({"name": "file_read", "arguments": {"target": "web-1", "path": dot}});
    let image = client.request("tools/call", params).await.message;
    let content = &image["result"]["content"];
    assert_eq!(content[1]["mimeType"], "image/png", "{image}");
    assert_eq!(content[1]["data"], DOT);
    let words = content[0]["text"].as_str().unwrap();
    assert!(words.contains("image/png, 1 × 1 pixels"), "{words}");

    let binary = files.write("binary", b"\x7fELF\0\0\0\0".repeat(500));
    let answer = read("web-1", &binary).await;
    assert!(
        answer.text.contains("00000000  7f 45 4c 46 00")
            && answer.text.contains("offset=256 dumps on"),
        "{}",
        answer.text
    );
    let directory = text(files.0.path());
    for (path, reason) in [("/none", "FILE_NOT_FOUND"), (&*directory, "FILE_TYPE")] {
        let answer = read("web-1", path).await;
        assert!(
            answer.is_error && answer.text.contains(reason) && answer.text.contains("next: "),
            "{}",
            answer.text
        );
    }
}
