//! Both eras of the protocol, over HTTP and over standard input and output.

use http::StatusCode;
use rmcp::ServiceExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::{
    client::{World, shared},
    eventually,
    fake::Fake,
};
use crate::handler::{Handler, Who};

#[tokio::test]
async fn both_eras_offer_the_same() {
    let world = World::start().await;
    for client in [world.modern(), world.legacy().await] {
        let tools = client
            .ask("tools/list", json!({}), json!({}))
            .await
            .result();
        let names: Vec<&str> = tools["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tool| tool["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "host_list",
                "host_set",
                "run",
                "file_read",
                "job_get",
                "job_input",
                "job_cancel",
                "grant_request"
            ]
        );

        let (text, is_error) = client
            .text("run", json!({"target": "web-1", "command": "echo hello"}))
            .await;
        assert!(!is_error);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("job j-") && lines[0].ends_with(" web-1 succeeded exit=0 3ms 6B"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("<<<") && lines[1].ends_with(" output web-1"),
            "{text}"
        );
        assert_eq!(lines[2], "hello");

        let resources = client
            .ask("resources/list", json!({}), json!({}))
            .await
            .result();
        assert_eq!(resources["resources"][0]["uri"], "muster://host/web-1");
        let read = client
            .ask(
                "resources/read",
                json!({"uri": "muster://host/db-1"}),
                json!({}),
            )
            .await
            .result();
        assert!(
            read["contents"][0]["text"]
                .as_str()
                .unwrap()
                .contains("\"name\":\"db-1\"")
        );
        let prompts = client
            .ask("prompts/list", json!({}), json!({}))
            .await
            .result();
        assert_eq!(prompts["prompts"].as_array().unwrap().len(), 2);
        let prompt =
            json!({"name": "diagnose_host", "arguments": {"host": "web-1", "symptom": "slow"}});
        let prompt = client.ask("prompts/get", prompt, json!({})).await.result();
        assert!(
            prompt["messages"][0]["content"]["text"]
                .as_str()
                .unwrap()
                .contains("web-1")
        );
        let complete = json!({"ref": {"type": "ref/resource", "uri": "muster://host/{name}"}, "argument": {"name": "name", "value": "web"}});
        let complete = client
            .ask("completion/complete", complete, json!({}))
            .await
            .result();
        assert_eq!(
            complete["completion"]["values"],
            json!(["web-1", "web-2", "web-3"])
        );
    }
}

#[tokio::test]
async fn a_modern_answer_without_progress_is_plain_json() {
    let world = World::start().await;
    let call = json!({"name": "run", "arguments": {"target": "web-1", "argv": ["true"]}});
    let answer = world.modern().ask("tools/call", call, json!({})).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.messages()[0]["result"]["resultType"], "complete");
    let discover = world
        .modern()
        .ask("server/discover", json!({}), json!({}))
        .await
        .result();
    assert!(
        discover["supportedVersions"]
            .as_array()
            .unwrap()
            .contains(&json!("2026-07-28"))
    );
    assert!(
        discover["instructions"]
            .as_str()
            .unwrap()
            .contains("host_list first")
    );
}

#[tokio::test]
async fn what_is_not_there_is_an_error_of_the_protocol() {
    let world = World::start().await;
    for (client, code) in [(world.modern(), -32602), (world.legacy().await, -32002)] {
        let answer = client
            .ask(
                "resources/read",
                json!({"uri": "muster://host/nope"}),
                json!({}),
            )
            .await;
        assert_eq!(
            answer.messages()[0]["error"]["code"],
            code,
            "{}",
            answer.body
        );
        let answer = client
            .ask(
                "tools/call",
                json!({"name": "nope", "arguments": {}}),
                json!({}),
            )
            .await;
        assert_eq!(answer.messages()[0]["error"]["code"], -32602);
    }
    let unknown = world.modern().ask("no/such", json!({}), json!({})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn progress_comes_first_at_once_and_with_the_last_line() {
    let world = World::start().await;
    for client in [world.modern(), world.legacy().await] {
        let call = json!({"name": "run", "arguments": {"target": "web-1", "command": "hang"}});
        let fake = world.fake.clone();
        let end = |so_far: &str| {
            let job = fake
                .state
                .lock()
                .jobs
                .last()
                .map(|job| job.job.job_id.clone());
            if let (Some(job), true) = (job, so_far.contains("running: started")) {
                fake.finish(&job);
            }
        };
        let meta = json!({"progressToken": "p-1"});
        let answer = client.ask_watching("tools/call", call, meta, end).await;
        assert_eq!(answer.headers["content-type"], "text/event-stream");
        let messages = answer.messages();
        let (result, notes) = messages.split_last().unwrap();
        assert!(
            result["result"]["content"][0]["text"]
                .as_str()
                .unwrap()
                .contains("finished")
        );
        assert!(notes.len() >= 2, "{notes:?}");
        let progress: Vec<f64> = notes
            .iter()
            .map(|note| note["params"]["progress"].as_f64().unwrap())
            .collect();
        assert!(progress.is_sorted_by(|a, b| a < b), "{progress:?}");
        assert!(
            notes
                .iter()
                .all(|note| note["params"]["progressToken"] == "p-1")
        );
        let last = notes.last().unwrap()["params"]["message"].as_str().unwrap();
        assert_eq!(last, "web-1 running: started");
    }
}

#[tokio::test]
async fn going_away_detaches_in_both_eras() {
    let world = World::start().await;
    let legacy = world.legacy().await;
    let body = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {
        "name": "run", "arguments": {"target": "web-1", "command": "hang"}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"}
        }
    }}).to_string();
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n\
         authorization: Bearer mst_ai_one\r\nmcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: run\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let fake = world.fake.clone();
    eventually("the job is watched", || fake.state.lock().watchers == 1).await;
    drop(stream);
    eventually("the watch has ended", || fake.state.lock().watchers == 0).await;

    let call = {
        let legacy = legacy.clone();
        tokio::spawn(async move {
            legacy
                .ask(
                    "tools/call",
                    json!({"name": "run", "arguments": {"target": "web-2", "command": "hang"}}),
                    json!({}),
                )
                .await
        })
    };
    eventually("the job is watched", || fake.state.lock().watchers == 1).await;
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7, "reason": "user"}});
    assert_eq!(
        legacy.post(&[], &cancelled).await.status,
        StatusCode::ACCEPTED
    );
    eventually("the watch has ended", || fake.state.lock().watchers == 0).await;
    call.abort();
    let state = fake.state.lock();
    assert_eq!(state.jobs.len(), 2);
    assert!(state.cancelled.is_empty(), "nothing was cancelled");
}

#[tokio::test]
async fn the_callers_trace_goes_on() {
    let world = World::start().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let client = world.modern();
    client
        .ask(
            "tools/call",
            json!({"name": "host_list", "arguments": {}}),
            json!({"traceparent": parent}),
        )
        .await
        .result();
    let state = world.fake.state.lock();
    assert_eq!(state.calls.last().unwrap().1, parent);
}

#[tokio::test]
async fn standard_input_and_output_speak_for_the_ai_of_the_operator() {
    let (fake, address) = Fake::start().await;
    let handler = Handler::new(shared(address, Who::Ai("ada-mcp".into())));
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let server = tokio::spawn(async move {
        let service = handler.serve(tokio::io::split(theirs)).await.unwrap();
        service.waiting().await.unwrap();
    });
    let (reader, mut writer) = tokio::io::split(ours);
    let mut lines = BufReader::new(reader).lines();
    let mut ask = async |message: Value| {
        writer
            .write_all(format!("{message}\n").as_bytes())
            .await
            .unwrap();
        if message.get("id").is_none() {
            return Value::Null;
        }
        let line = lines.next_line().await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let hello = ask(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}})).await;
    assert_eq!(hello["result"]["serverInfo"]["name"], "muster");
    ask(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    let answer = ask(json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "run", "arguments": {"target": "web-1", "command": "name"}}})).await;
    assert!(
        answer["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .contains("\nweb-1\n")
    );
    assert_eq!(fake.state.lock().calls[0].0, "Bearer mst_x_ada-mcp");
    drop(writer);
    drop(lines);
    server.await.unwrap();
}
