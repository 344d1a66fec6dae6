//! What the tools do.

use serde_json::{Value, json};

use super::client::{McpClient, World};

fn job_id(text: &str) -> String {
    let id = text.split(' ').nth(1).unwrap();
    assert!(id.starts_with("j-"), "{text}");
    id.to_owned()
}

#[tokio::test]
async fn a_job_is_started_read_and_cancelled() {
    let world = World::start().await;
    let client = world.modern();
    let (text, is_error) = client
        .text(
            "run",
            json!({"target": "web-1", "command": "hang", "wait_s": "0"}),
        )
        .await;
    assert!(!is_error);
    let id = job_id(&text);
    assert!(
        text.contains("web-1 running") && text.contains(&format!("job_get job_id={id} wait_s=25")),
        "{text}"
    );

    let (text, is_error) = client
        .text("job_get", json!({"job_id": id, "wait_s": 1}))
        .await;
    assert!(
        !is_error && text.contains("running") && text.contains("\nstarted\n"),
        "{text}"
    );

    let (text, is_error) = client
        .text("job_cancel", json!({"job_id": id, "grace_s": 0}))
        .await;
    assert!(
        !is_error && text.starts_with(&format!("job {id} web-1 cancelled reason=CANCEL_REQUESTED")),
        "{text}"
    );

    let (text, _) = client.text("job_get", json!({})).await;
    assert!(
        text.starts_with("1 job, newest first\n") && text.contains(&id) && text.contains(": hang"),
        "{text}"
    );
}

#[tokio::test]
async fn the_same_key_finds_the_same_job() {
    let world = World::start().await;
    let client = world.modern();
    let call = json!({"target": "web-1", "command": "echo once", "key": "deploy-1"});
    let (first, _) = client.text("run", call.clone()).await;
    let (again, _) = client.text("run", call).await;
    assert_eq!(job_id(&first), job_id(&again));
    assert_eq!(world.fake.state.lock().jobs.len(), 1);
    let (other, is_error) = client
        .text(
            "run",
            json!({"target": "web-1", "command": "echo twice", "key": "deploy-1"}),
        )
        .await;
    assert!(
        is_error && other.contains("REQUEST_ID_REUSED") && other.contains("choose a new key"),
        "{other}"
    );
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_again() {
    let world = World::start().await;
    let (text, is_error) = world
        .modern()
        .text("run", json!({"target": "web-1", "command": "break"}))
        .await;
    assert!(!is_error);
    assert!(
        text.contains("succeeded exit=0") && text.contains("\nstarted\nfinished\n"),
        "{text}"
    );
    assert_eq!(world.fake.state.lock().broken, 1);
}

#[tokio::test]
async fn many_hosts_that_say_the_same_are_one_answer() {
    let world = World::start().await;
    let client = world.modern();
    let (text, is_error) = client
        .text("run", json!({"target": "web", "command": "echo 6.1.0"}))
        .await;
    assert!(!is_error);
    assert!(
        text.contains(
            " 3 hosts: 3 succeeded\n3 hosts (web-1, web-2, web-3): succeeded exit=0 3ms 6B\n"
        ),
        "{text}"
    );
    assert_eq!(text.matches("6.1.0").count(), 1);

    let (text, _) = client
        .text("run", json!({"target": "web", "command": "name"}))
        .await;
    let id = job_id(&text);
    assert_eq!(text.matches(": succeeded").count(), 3, "{text}");
    let (text, _) = client
        .text("job_get", json!({"job_id": id, "host": "web-2"}))
        .await;
    assert!(
        text.starts_with(&format!("job {id} web-2 succeeded")) && !text.contains("web-1"),
        "{text}"
    );
    let (text, _) = client
        .text("job_get", json!({"job_id": id, "grep": "-[12]$"}))
        .await;
    assert!(
        text.contains("web-1: 1 match\n")
            && text.contains("1:web-2\n")
            && text.contains("web-3: 0 matches"),
        "{text}"
    );
    let (text, is_error) = client
        .text("job_get", json!({"job_id": id, "cursor": "0"}))
        .await;
    assert!(is_error && text.contains("add host=NAME"), "{text}");
}

#[tokio::test]
async fn a_host_that_is_away_is_an_error_alone_and_a_line_among_others() {
    let world = World::start().await;
    let client = world.modern();
    let (text, is_error) = client
        .text(
            "run",
            json!({"target": "off-1", "command": "true", "wait_s": 1}),
        )
        .await;
    assert!(
        is_error
            && text.contains("pending: waits for its host")
            && text.contains("expires unless started by"),
        "{text}"
    );
    let (text, is_error) = client
        .text(
            "run",
            json!({"target": "web-1,off-1", "command": "echo x", "wait_s": 1}),
        )
        .await;
    assert!(
        !is_error && text.contains("2 hosts: 1 pending, 1 succeeded"),
        "{text}"
    );
    let (text, is_error) = client
        .text("run", json!({"target": "web-1", "argv": "missing"}))
        .await;
    assert!(
        is_error && text.contains("reason=COMMAND_NOT_FOUND") && text.contains("next: the program"),
        "{text}"
    );
}

#[tokio::test]
async fn long_output_is_cut_exactly_and_read_on_to_the_last_byte() {
    let world = World::start().await;
    let client = world.modern();
    let (text, _) = client
        .text(
            "run",
            json!({"target": "web-1", "command": "lines 5000", "max_bytes": 4000}),
        )
        .await;
    assert!(text.len() <= 4_000);
    let id = job_id(&text);
    let mark = text.lines().find(|line| line.starts_with('…')).unwrap();
    let mut cursor = number_after(mark, "cursor=");
    let whole: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
    let mut read = whole[..cursor].to_owned();
    loop {
        let (page, is_error) = client
            .text(
                "job_get",
                json!({"job_id": id, "cursor": cursor.to_string(), "max_bytes": 9000}),
            )
            .await;
        assert!(!is_error && page.len() <= 9_000, "{page}");
        let begin = page.find("<<<").unwrap();
        let inner = page[begin..].split_once('\n').unwrap().1;
        read.push_str(&inner[..inner.find(">>>").unwrap()]);
        if page.ends_with("end of output\n") {
            break;
        }
        cursor = number_after(page.lines().last().unwrap(), "cursor=");
    }
    assert_eq!(read, whole);

    let (again, _) = client
        .text("job_get", json!({"job_id": id, "max_bytes": 4000}))
        .await;
    assert!(
        again.len() <= 4_000 && again.contains("line 0\n") && again.contains("line 4999\n"),
        "{again}"
    );
    let (tail, _) = client
        .text("job_get", json!({"job_id": id, "tail": "2"}))
        .await;
    assert!(
        tail.contains("\nline 4998\nline 4999\n") && !tail.contains("line 4997"),
        "{tail}"
    );
    let (found, _) = client
        .text("job_get", json!({"job_id": id, "grep": "^line 49.9$"}))
        .await;
    assert!(
        found.contains("10 matches") && found.contains("\n4990:line 4989\n"),
        "{found}"
    );
    let (bad, is_error) = client
        .text("job_get", json!({"job_id": id, "grep": "("}))
        .await;
    assert!(is_error && bad.contains("PATTERN_INVALID"), "{bad}");
}

fn number_after(text: &str, mark: &str) -> usize {
    let rest = text
        .split(mark)
        .nth(1)
        .unwrap_or_else(|| panic!("{mark} in {text}"));
    rest.chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_long_search_goes_on_where_it_stopped() {
    let world = World::start().await;
    let client = world.modern();
    let (text, _) = client
        .text(
            "run",
            json!({"target": "web-1", "command": "lines 900", "max_bytes": 1000}),
        )
        .await;
    let id = job_id(&text);
    let (mut found, mut cursor) = (0, String::new());
    loop {
        let mut call = json!({"job_id": id, "grep": "7", "max_bytes": 2000});
        if !cursor.is_empty() {
            call["cursor"] = json!(cursor);
        }
        let (text, is_error) = client.text("job_get", call).await;
        assert!(!is_error && text.len() <= 2_000, "{} {text}", text.len());
        found += text.lines().filter(|line| line.contains(":line ")).count();
        match text.lines().last().unwrap().strip_prefix("next: ") {
            Some(next) => cursor = number_after(next, "cursor=").to_string(),
            None => break,
        }
    }
    assert_eq!(
        found,
        (0..900)
            .filter(|n: &u32| n.to_string().contains('7'))
            .count()
    );
}

fn hosts(result: &Value) -> Vec<&str> {
    let text = result["content"][0]["text"].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(text).unwrap(),
        result["structuredContent"]
    );
    let hosts = result["structuredContent"]["hosts"].as_array().unwrap();
    hosts
        .iter()
        .map(|host| host["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn hosts_are_listed_found_and_described() {
    let world = World::start().await;
    let client = world.modern();
    let page = client.tool("host_list", json!({"limit": 2})).await;
    assert_eq!(hosts(&page), ["web-1", "web-2"]);
    assert_eq!(page["structuredContent"]["total"], 5);
    let cursor = page["structuredContent"]["next_cursor"].clone();
    let page = client
        .tool("host_list", json!({"limit": 2, "cursor": cursor}))
        .await;
    assert_eq!(hosts(&page), ["web-3", "db-1"]);
    let found = client.tool("host_list", json!({"query": "db"})).await;
    assert_eq!(hosts(&found), ["db-1"]);

    let set = json!({"target": "web-1", "instruction": "Serves the shop.\nAsk before 9:00.\u{202e}", "labels": {"env": "prod", "role": null}});
    let changed = client.tool("host_set", set).await;
    assert_eq!(changed["isError"], false, "{changed}");
    assert_eq!(
        changed["structuredContent"]["changed"][0]["labels"],
        json!({"env": "prod"})
    );
    let etag = changed["structuredContent"]["changed"][0]["instruction"]["etag"].clone();
    let full = client
        .tool("host_list", json!({"target": "web-1", "detail": "full"}))
        .await;
    let instruction = &full["structuredContent"]["hosts"][0]["instruction"];
    assert_eq!(
        instruction["text"],
        "Serves the shop.\nAsk before 9:00.\\u{202e}"
    );
    assert_eq!(
        (&instruction["author"], &instruction["etag"]),
        (&json!("ai/one"), &etag)
    );
    let (text, is_error) = client
        .text(
            "host_set",
            json!({"target": "web-1", "instruction": "x", "etag": "old"}),
        )
        .await;
    assert!(is_error && text.contains("ETAG_MISMATCH"), "{text}");
}

#[tokio::test]
async fn a_listing_that_is_too_long_ends_between_two_hosts() {
    let world = World::start().await;
    {
        let mut state = world.fake.state.lock();
        let like = state.hosts[0].clone();
        state.hosts = (0..300)
            .map(|n| {
                let mut host = like.clone();
                host.name = format!("host-{n:03}");
                host.instruction = Some(muster_proto::v1::Instruction {
                    text: "word ".repeat(50),
                    ..Default::default()
                });
                host
            })
            .collect();
    }
    let client = world.modern();
    let (mut seen, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let page = client
            .tool(
                "host_list",
                json!({"detail": "full", "limit": 200, "cursor": cursor}),
            )
            .await;
        assert!(page["content"][0]["text"].as_str().unwrap().len() <= 16_000);
        seen.extend(hosts(&page).into_iter().map(str::to_owned));
        cursor = page["structuredContent"]["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    let all: Vec<String> = (0..300).map(|n| format!("host-{n:03}")).collect();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn wrong_arguments_are_refused_with_a_way_out() {
    let world = World::start().await;
    let client: McpClient = world.modern();
    for (tool, arguments, cause, next) in [
        (
            "run",
            json!({"target": "web-1"}),
            "command is missing",
            "command=",
        ),
        (
            "run",
            json!({"target": "web-1", "command": "a", "argv": ["b"]}),
            "both command and argv",
            "or argv",
        ),
        (
            "run",
            json!({"command": "a"}),
            "target is missing",
            "target=web-1",
        ),
        (
            "run",
            json!({"target": "web-1", "command": "a", "user": "root"}),
            "no argument \"user\"",
            "run takes target",
        ),
        (
            "run",
            json!({"target": "web-1", "command": "a", "mode": "root"}),
            "mode is \"root\"",
            "read-only, edit or unrestricted",
        ),
        (
            "run",
            json!({"target": "web-1", "command": "a", "wait_s": 60}),
            "wait_s is 60",
            "0 to 45",
        ),
        (
            "run",
            json!({"hosts": "web-1", "command": "a"}),
            "no argument \"hosts\"",
            "use target",
        ),
        (
            "run",
            json!({"target": "nope", "command": "a"}),
            "HOST_NOT_FOUND",
            "host_list shows the names",
        ),
        (
            "host_list",
            json!({"detail": "all"}),
            "detail is \"all\"",
            "brief or full",
        ),
        (
            "host_set",
            json!({"target": "web-1"}),
            "nothing to set",
            "labels",
        ),
        (
            "job_get",
            json!({"job_id": "r-1"}),
            "is no job id",
            "lists the jobs",
        ),
        (
            "job_get",
            json!({"job_id": "j-00000000000000000000"}),
            "JOB_NOT_FOUND",
            "lists the jobs",
        ),
        (
            "job_get",
            json!({"state": "done"}),
            "no state \"done\"",
            "succeeded",
        ),
        (
            "job_cancel",
            json!({}),
            "job_id is missing",
            "lists the jobs",
        ),
    ] {
        let (text, is_error) = client.text(tool, arguments.clone()).await;
        let (first, second) = text
            .split_once("\nnext: ")
            .unwrap_or_else(|| panic!("{text}"));
        assert!(
            is_error && first.contains(cause) && second.contains(next),
            "{tool} {arguments}: {text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }
    assert!(world.fake.state.lock().jobs.is_empty());
}

#[tokio::test]
async fn a_model_works_in_a_terminal() {
    let world = World::start().await;
    let client = world.modern();
    let (text, is_error) = client
        .text(
            "run",
            json!({"target": "web-1", "command": "repl", "pty": true, "wait_s": 0}),
        )
        .await;
    assert!(!is_error && text.contains("types into it"), "{text}");
    let id = job_id(&text);
    let action = world.fake.state.lock().jobs[0].job.action.clone();
    assert!(format!("{action:?}").contains("dumb"), "{action:?}");

    world.fake.state.lock().full = true;
    let (text, is_error) = client
        .text(
            "job_input",
            json!({"job_id": id, "text": "hello", "keys": ["enter"], "until": "^>>> $"}),
        )
        .await;
    assert!(!is_error, "{text}");
    assert!(text.contains("hello\nHELLO\n>>> \n"), "{text}");
    assert!(
        !text.contains('\u{1b}') && !text.contains("not seen"),
        "{text}"
    );
    let cursor = text.split("cursor=").nth(1).unwrap();
    let cursor = cursor.split(' ').next().unwrap().to_owned();

    let quiet = json!({"job_id": id, "text": "x\n", "quiet_ms": 100, "cursor": cursor});
    let (text, _) = client.text("job_input", quiet).await;
    assert!(
        text.contains("x\nX\n>>> \n") && !text.contains("HELLO"),
        "{text}"
    );
    let (text, _) = client
        .text(
            "job_input",
            json!({"job_id": id, "until": "never", "wait_s": 0}),
        )
        .await;
    assert!(text.contains("until was not seen yet"), "{text}");

    let (text, _) = client
        .text("job_input", json!({"job_id": id, "close": true}))
        .await;
    assert!(text.contains("it has ended\nend of output"), "{text}");
    let (text, is_error) = client
        .text("job_input", json!({"job_id": id, "text": "late"}))
        .await;
    assert!(is_error && text.contains("what became of it"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_typed_is_refused_with_a_way_out() {
    let world = World::start().await;
    let client = world.modern();
    let (text, _) = client
        .text(
            "run",
            json!({"target": "web", "command": "repl", "pty": "true", "wait_s": 0}),
        )
        .await;
    let id = job_id(&text);
    for (call, words) in [
        (json!({"text": "x"}), "job_id is missing"),
        (json!({"job_id": id, "text": "x"}), "add host=NAME"),
        (
            json!({"job_id": id, "host": "web-1", "keys": "entr"}),
            "name of no key",
        ),
        (
            json!({"job_id": id, "host": "web-1", "until": "("}),
            "no regular expression",
        ),
        (
            json!({"job_id": id, "tty": true}),
            "job_input has no argument",
        ),
    ] {
        let (text, is_error) = client.text("job_input", call.clone()).await;
        assert!(is_error && text.contains(words), "{call}: {text}");
    }
}
