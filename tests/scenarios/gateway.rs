//! The whole road, from a tool call: `muster up` and its gateway.

use std::net::SocketAddr;

use muster_tests::{
    collector::Collector,
    fleet::Fleet,
    mcp::{Era, McpClient},
};
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn one_trace_leads_from_a_tool_call_to_the_process() {
    let collector = Collector::start().await;
    let fleet = Fleet::plan()
        .set("MUSTER_OTLP_ENDPOINT", collector.endpoint())
        .start_up()
        .await;
    let token = fleet.mcp_token();
    let client = McpClient::new(fleet.mcp_address(), Era::Modern, &token)
        .connect()
        .await;
    let mut params =
        json!({"name": "run", "arguments": {"target": "all", "command": "echo traced"}});
    params["_meta"]["traceparent"] = json!(format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let answer = client.request("tools/call", params).await.tool();
    assert!(
        !answer.is_error && answer.text.contains("traced"),
        "{}",
        answer.text
    );
    // Spans leave in batches; the last ones at the end.
    assert_eq!(fleet.stop_control_plane().await.code(), 0);

    let ours: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|seen| seen.span)
        .filter(|span| hex(&span.trace_id) == TRACE)
        .collect();
    let names: Vec<&str> = ours.iter().map(|span| span.name.as_str()).collect();
    for part in ["tool", "RunJob", "task"] {
        assert!(
            names.iter().any(|name| name.contains(part)),
            "no {part} in {names:?}"
        );
    }
    // Each but the first hangs below another of this trace.
    let known: Vec<_> = ours.iter().map(|span| span.span_id.clone()).collect();
    let roots = ours
        .iter()
        .filter(|span| !known.contains(&span.parent_span_id))
        .count();
    assert_eq!(roots, 1, "{names:?}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn the_gateway_wants_a_token_and_a_known_host_and_origin() {
    let fleet = Fleet::plan().start_up().await;
    let token = fleet.mcp_token();
    let address: SocketAddr = fleet.mcp_address();
    for era in [Era::Legacy, Era::Modern] {
        let good = McpClient::new(address, era, &token);
        let listed = good
            .clone()
            .connect()
            .await
            .request("tools/list", json!({}))
            .await;
        assert_eq!(listed.status, 200, "{}", listed.body);
        let nobody = good.clone().without("authorization");
        let refused = nobody.request("tools/list", json!({})).await;
        assert_eq!(refused.status, 401);
        assert!(refused.headers.contains_key("www-authenticate"));
        let stranger = McpClient::new(address, era, "mst_ai_nobody");
        assert_eq!(stranger.request("tools/list", json!({})).await.status, 401);
        let elsewhere = good.clone().header("origin", "http://evil.example");
        assert_eq!(elsewhere.request("tools/list", json!({})).await.status, 403);
        let rebound = good.header("host", "evil.example");
        assert_eq!(rebound.request("tools/list", json!({})).await.status, 403);
    }
}

#[tokio::test]
async fn up_finds_everything_again_at_its_second_start() {
    let fleet = Fleet::plan().start_up().await;
    let ids = async |fleet: &Fleet| -> Vec<String> {
        let hosts = fleet.operator().all_hosts().await;
        hosts.into_iter().map(|host| host.host_id).collect()
    };
    let (before, token) = (ids(&fleet).await, fleet.mcp_token());
    assert_eq!(fleet.stop_control_plane().await.code(), 0);

    fleet.start_control_plane().await;
    fleet.up_is_whole().await;
    assert_eq!(ids(&fleet).await, before);
    assert_eq!(fleet.mcp_token(), token);
    let client = McpClient::new(fleet.mcp_address(), Era::Legacy, &token)
        .connect()
        .await;
    let answer = client
        .call("run", json!({"target": "all", "command": "echo again"}))
        .await;
    assert!(answer.text.contains("again"), "{}", answer.text);
}
