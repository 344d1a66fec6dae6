//! Reading files by `file_read`.

use data_encoding::BASE64;
use muster_proto::v1::{FileRead, Mode, file_read::Part};
use serde_json::{Value, json};

use super::{client::World, fake::files::LOG_LINES};

/// What is asked for of files, in order, and in which mode.
fn asked(world: &World) -> Vec<(FileRead, Mode)> {
    let state = world.fake.state.lock();
    let jobs = state.jobs.iter().map(|job| &job.job);
    jobs.map(|job| {
        let file = muster_client::files::asked(job.action.as_ref()).unwrap();
        (file.clone(), job.mode())
    })
    .collect()
}

/// What stands in the only fence of an answer.
fn fenced(text: &str) -> &str {
    let (_, rest) = text.split_once("<<<").unwrap_or_else(|| panic!("{text}"));
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once(">>>").unwrap().0
}

/// The value of an argument in the call that an answer ends with.
fn next(text: &str, argument: &str) -> Option<i64> {
    let line = text.lines().find(|line| line.starts_with("next: "))?;
    let word = line.split(' ').find_map(|word| {
        let (name, value) = word.split_once('=')?;
        (name == argument).then_some(value)
    })?;
    Some(word.parse().unwrap())
}

#[tokio::test]
async fn a_text_has_its_numbers_and_ends_as_a_file_does() {
    let world = World::start().await;
    let client = world.modern();
    let call = json!({"target": "web-1", "path": "/etc/os-release"});
    let (text, is_error) = client.text("file_read", call).await;
    assert!(!is_error, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("job j-") && lines[0].contains(" web-1 succeeded"));
    assert_eq!(
        lines[1],
        "regular file, 20 bytes, text/plain; bytes 0 to 20"
    );
    assert_eq!(fenced(&text), "1\tNAME=Fake\n2\tVERSION=1\n");
    assert_eq!(lines.last(), Some(&"end of file"));
    let (file, mode) = asked(&world).remove(0);
    assert_eq!(mode, Mode::ReadOnly, "an ai needs no more");
    assert_eq!((&*file.path, file.max_bytes), ("/etc/os-release", 16_000));

    let id = lines[0].split(' ').nth(1).unwrap();
    let (again, is_error) = client.text("job_get", json!({"job_id": id})).await;
    assert!(
        !is_error && again.contains("regular file, 20 bytes") && again.contains("\nNAME=Fake\n"),
        "{again}"
    );
    let (list, _) = client.text("job_get", json!({})).await;
    assert!(list.contains("read /etc/os-release"), "{list}");
}

#[tokio::test]
async fn a_long_file_is_read_on_to_its_last_line() {
    let world = World::start().await;
    let client = world.modern();
    let mut read = String::new();
    let mut from = None;
    for _ in 0..100 {
        let mut call = json!({"target": "web-1", "path": "/var/log/app.log", "max_bytes": 9_000});
        if let Some(from) = from {
            call["from_line"] = json!(from);
        }
        let (text, is_error) = client.text("file_read", call).await;
        assert!(!is_error && text.len() <= 9_000, "{} {text}", text.len());
        read.push_str(fenced(&text));
        from = next(&text, "from_line");
        if from.is_none() {
            assert!(text.ends_with("end of file\n"), "{text}");
            break;
        }
    }
    let whole: String = (1..=LOG_LINES)
        .map(|n| format!("{n}\tentry {n}\n"))
        .collect();
    assert!(read == whole, "nothing twice, nothing left out");
}

#[tokio::test]
async fn a_part_is_some_lines_or_begins_at_a_byte() {
    let world = World::start().await;
    let client = world.modern();
    let log = |more: Value| {
        let mut call = json!({"target": "web-1", "path": "/var/log/app.log"});
        call.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        call
    };
    let (some, _) = client
        .text("file_read", log(json!({"from_line": 10, "lines": "2"})))
        .await;
    assert_eq!(fenced(&some), "10\tentry 10\n11\tentry 11\n");
    assert_eq!(next(&some, "from_line"), Some(12), "{some}");
    let (last, _) = client
        .text("file_read", log(json!({"from_line": -2})))
        .await;
    assert_eq!(fenced(&last), "4999\tentry 4999\n5000\tentry 5000\n");
    assert!(last.ends_with("end of file\n"), "{last}");
    let (bytes, _) = client.text("file_read", log(json!({"offset": -5}))).await;
    assert_eq!(fenced(&bytes), "5000\n", "no numbers are known there");
    let (behind, is_error) = client
        .text("file_read", log(json!({"from_line": 9_999})))
        .await;
    assert!(
        !is_error && behind.contains("nothing of the file stands there"),
        "{behind}"
    );
    let (both, is_error) = client
        .text("file_read", log(json!({"from_line": 1, "offset": 1})))
        .await;
    assert!(is_error && both.contains("or offset"), "{both}");
    let parts: Vec<Option<Part>> = asked(&world)
        .into_iter()
        .map(|(file, _)| file.part)
        .collect();
    assert_eq!(parts.len(), 4, "what is refused reaches nobody");
}

#[tokio::test]
async fn a_line_without_end_goes_on_by_bytes() {
    let world = World::start().await;
    let client = world.modern();
    let (mut read, mut offset) = (String::new(), None);
    for _ in 0..100 {
        let mut call = json!({"target": "web-1", "path": "/srv/app.min.js"});
        if let Some(offset) = offset {
            call["offset"] = json!(offset);
        }
        let (text, is_error) = client.text("file_read", call).await;
        assert!(!is_error && text.len() <= 16_000, "{}", text.len());
        let body = fenced(&text).trim_end_matches('\n');
        let body = body.strip_prefix("1\t").unwrap_or(body);
        read.push_str(body.split('…').next().unwrap());
        offset = next(&text, "offset");
        if offset.is_none() {
            break;
        }
    }
    assert_eq!(read.len(), 60_000);
}

#[tokio::test]
async fn what_is_odd_about_a_text_is_told() {
    let world = World::start().await;
    let client = world.modern();
    for (path, words) in [
        ("/srv/empty", "the file is empty"),
        ("/srv/windows.txt", "its lines end with \\r\\n"),
        ("/srv/torn", "8 bytes were read and 5 came"),
    ] {
        let call = json!({"target": "web-1", "path": path});
        let (text, is_error) = client.text("file_read", call).await;
        assert!(text.contains(words), "{path}: {text}");
        assert_eq!(is_error, path == "/srv/torn", "{text}");
    }
}

#[tokio::test]
async fn an_image_is_shown_as_one() {
    let world = World::start().await;
    let client = world.modern();
    for (path, reads) in [("/srv/logo.png", 1), ("/srv/logo", 2)] {
        let before = asked(&world).len();
        let call = json!({"target": "web-1", "path": path});
        let result = client.tool("file_read", call).await;
        assert_eq!(result["isError"], false, "{result}");
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(
            text.contains("image/png, 640 × 480 pixels: image 1 below"),
            "{text}"
        );
        let image = &result["content"][1];
        assert_eq!(
            (&image["type"], &image["mimeType"]),
            (&json!("image"), &json!("image/png"))
        );
        let data = BASE64
            .decode(image["data"].as_str().unwrap().as_bytes())
            .unwrap();
        assert_eq!(data.len(), 60_000);
        assert_eq!(asked(&world).len() - before, reads, "{path}");
    }
}

#[tokio::test]
async fn an_image_that_clients_do_not_take_is_described() {
    let world = World::start().await;
    let client = world.modern();
    for (path, words) in [
        (
            "/srv/poster.png",
            "6000 × 4000 pixels, not shown: more than the 740,000 bytes",
        ),
        (
            "/srv/ribbon.png",
            "9000 × 20 pixels, not shown: more than 8,000 pixels",
        ),
    ] {
        let call = json!({"target": "web-1", "path": path});
        let result = client.tool("file_read", call).await;
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(text.contains(words), "{path}: {text}");
        assert_eq!(result["content"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_is_no_text_is_dumped() {
    let world = World::start().await;
    let client = world.modern();
    let call = json!({"target": "web-1", "path": "/bin/tool"});
    let (text, is_error) = client.text("file_read", call).await;
    assert!(
        !is_error && text.contains("application/x-executable"),
        "{text}"
    );
    let dump = fenced(&text);
    assert!(dump.starts_with("00000000  7f 45 4c 46 02"), "{dump}");
    assert_eq!(dump.lines().count(), 16);
    assert_eq!(next(&text, "offset"), Some(256));
    let call = json!({"target": "web-1", "path": "/bin/tool", "offset": 256});
    let (text, _) = client.text("file_read", call).await;
    assert!(fenced(&text).starts_with("00000100  00 00"), "{text}");
    assert_eq!(next(&text, "offset"), None, "all of the rest fits: {text}");
}

#[tokio::test]
async fn equal_files_of_many_hosts_are_one_answer() {
    let world = World::start().await;
    let client = world.modern();
    let call = json!({"target": "web", "path": "/etc/os-release"});
    let (text, is_error) = client.text("file_read", call).await;
    assert!(
        !is_error && text.contains("3 hosts (web-1, web-2, web-3): succeeded"),
        "{text}"
    );
    assert_eq!(text.matches("NAME=Fake").count(), 1);
    let call = json!({"target": "web", "path": "/etc/hostname"});
    let (text, _) = client.text("file_read", call).await;
    assert_eq!(text.matches("end of file").count(), 3, "{text}");
    for host in ["web-1", "web-2", "web-3"] {
        assert!(
            text.contains(&format!("output {host}\n1\t{host}\n")),
            "{text}"
        );
    }
    let call = json!({"target": "web", "path": "/var/log/app.log", "max_bytes": 4_000});
    let (text, _) = client.text("file_read", call).await;
    assert!(
        text.contains("file_read target=web path=/var/log/app.log from_line="),
        "{text}"
    );
    let call = json!({"target": "web-1,off-1", "path": "/etc/hostname", "wait_s": 1});
    let (text, is_error) = client.text("file_read", call).await;
    assert!(
        !is_error && text.contains("1\tweb-1\n") && text.contains("off-1: pending"),
        "{text}"
    );
}

#[tokio::test]
async fn what_cannot_be_read_says_why_and_what_to_do() {
    let world = World::start().await;
    let client = world.modern();
    for (path, reason, next) in [
        ("/srv/none", "FILE_NOT_FOUND", "look for it"),
        ("/etc/shadow", "FILE_NOT_PERMITTED", "a higher mode may"),
        ("/etc", "FILE_TYPE", "lists a directory"),
    ] {
        let call = json!({"target": "web-1", "path": path});
        let (text, is_error) = client.text("file_read", call).await;
        let (_, last) = text
            .split_once("next: ")
            .unwrap_or_else(|| panic!("{text}"));
        assert!(
            is_error && text.contains(reason) && last.contains(next),
            "{path}: {text}"
        );
    }
    let (text, is_error) = client.text("file_read", json!({"target": "web-1"})).await;
    assert!(is_error && text.contains("path is missing"), "{text}");
    let call = json!({"target": "web-1", "file": "/x"});
    let (text, is_error) = client.text("file_read", call).await;
    assert!(is_error && text.contains("use path"), "{text}");
}

#[tokio::test]
async fn a_reading_that_takes_long_goes_on_without_its_caller() {
    let world = World::start().await;
    let client = world.modern();
    let call = json!({"target": "web-1", "path": "/srv/slow", "wait_s": 0, "key": "look-1",
        "mode": "edit"});
    let (text, is_error) = client.text("file_read", call.clone()).await;
    assert!(
        !is_error && text.contains("web-1 running") && text.contains("wait_s=25 waits on"),
        "{text}"
    );
    let (again, _) = client.text("file_read", call).await;
    assert_eq!(
        text.split(' ').nth(1),
        again.split(' ').nth(1),
        "the same key"
    );
    assert_eq!(asked(&world)[0].1, Mode::Edit);
}
