//! `host_list`: which hosts there are, what they are for, and whether they answer.

use std::collections::BTreeMap;

use muster_proto::v1::{Host, ListHostsRequest, ListHostsResponse};
use rmcp::model::CallToolResult;
use serde_json::{Map, Value, json};

use super::{Arguments, Call, MAX_BYTES, structured};
use crate::{
    error::Refusal,
    render::{clean, words},
};

/// Hosts on a page unless told otherwise.
const LIMIT: i64 = 50;
/// Hosts on a page at most.
const LIMIT_MAX: i64 = 200;
/// Characters of an instruction in a brief listing.
const BRIEF_INSTRUCTION: usize = 120;
/// Room around the hosts, bytes.
const FRAME_BYTES: usize = 300;

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let show: fn(&Host) -> Value = match arguments.word("detail")?.as_deref() {
        None | Some("brief") => brief,
        Some("full") => full,
        Some(other) => {
            return Err(Refusal::new(
                format!("detail is {:?}", words::shortened(other, 40)),
                "detail is brief or full",
            ));
        }
    };
    let mut request = ListHostsRequest {
        selector: arguments.word("target")?.unwrap_or_default(),
        query: arguments.word("query")?.unwrap_or_default(),
        page_size: arguments.number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT) as i32,
        page_token: arguments.word("cursor")?.unwrap_or_default(),
    };
    let mut page = page_of_hosts(call, request.clone()).await?;
    let mut hosts: Vec<Value> = page.hosts.iter().map(show).collect();
    let fits = fitting(&hosts);
    if fits < hosts.len() {
        // A host is shown whole or not at all; where the next page begins, only the control plane knows.
        request.page_size = fits as i32;
        page = page_of_hosts(call, request).await?;
        hosts = page.hosts.iter().map(show).collect();
    }
    let mut answer = Map::new();
    answer.insert("hosts".into(), Value::Array(hosts));
    answer.insert("total".into(), json!(page.total_size));
    if !page.next_page_token.is_empty() {
        answer.insert("next_cursor".into(), json!(page.next_page_token));
    }
    Ok(structured(Value::Object(answer), false))
}

/// One page, in one round trip.
pub(crate) async fn page_of_hosts(
    call: &Call,
    request: ListHostsRequest,
) -> Result<ListHostsResponse, Refusal> {
    let mut service = call.client.hosts();
    call.ask(service.list_hosts(request)).await
}

/// How many of these fit into an answer; one always does.
fn fitting(hosts: &[Value]) -> usize {
    let mut used = FRAME_BYTES;
    let count = hosts
        .iter()
        .take_while(|host| {
            used += host.to_string().len() + 1;
            used <= MAX_BYTES as usize
        })
        .count();
    count.max(1)
}

fn brief(host: &Host) -> Value {
    let mut shown = start(host);
    if let Some(instruction) = &host.instruction {
        let text = clean::words(&instruction.text);
        shown.insert(
            "instruction".into(),
            json!(words::shortened(&text, BRIEF_INSTRUCTION)),
        );
    }
    Value::Object(shown)
}

/// Everything about a host.
pub(crate) fn full(host: &Host) -> Value {
    let mut shown = start(host);
    if let Some(facts) = &host.facts {
        shown.insert("kernel".into(), json!(clean::words(&facts.kernel)));
        shown.insert("cpus".into(), json!(facts.cpus));
        shown.insert("memory_bytes".into(), json!(facts.memory_bytes));
        shown.insert("hostname".into(), json!(clean::words(&facts.hostname)));
        shown.insert("user".into(), json!(clean::words(&facts.user)));
        shown.insert("shell".into(), json!(clean::words(&facts.shell)));
        shown.insert(
            "agent_version".into(),
            json!(clean::words(&facts.agent_version)),
        );
        let addresses: Vec<String> = facts
            .addresses
            .iter()
            .take(16)
            .map(|a| clean::words(a))
            .collect();
        shown.insert("addresses".into(), json!(addresses));
    }
    shown.insert("running_tasks".into(), json!(host.running_tasks));
    shown.insert("pending_tasks".into(), json!(host.pending_tasks));
    if let Some(instruction) = &host.instruction {
        shown.insert(
            "instruction".into(),
            json!({
                "text": clean::text(&instruction.text),
                "author": clean::words(&instruction.author),
                "time": instruction.create_time.as_ref().map(words::time),
                "version": instruction.version,
                "etag": instruction.etag,
            }),
        );
    }
    Value::Object(shown)
}

fn start(host: &Host) -> Map<String, Value> {
    let labels: BTreeMap<String, String> = host
        .labels
        .iter()
        .map(|(key, value)| (clean::words(key), clean::words(value)))
        .collect();
    let mut shown = Map::new();
    shown.insert("name".into(), json!(clean::words(&host.name)));
    shown.insert("id".into(), json!(host.host_id));
    shown.insert("presence".into(), json!(words::presence(host.presence())));
    if let (false, Some(age)) = (words::is_online(host.presence()), &host.last_heard_age) {
        let age = words::duration(words::wire_duration(age));
        shown.insert("last_heard".into(), json!(format!("{age} ago")));
    }
    if !labels.is_empty() {
        shown.insert("labels".into(), json!(labels));
    }
    if let Some(facts) = &host.facts {
        let system = [&facts.os, &facts.distro, &facts.distro_version, &facts.arch]
            .map(|fact| clean::words(fact));
        let system: Vec<String> = system.into_iter().filter(|fact| !fact.is_empty()).collect();
        shown.insert("system".into(), json!(system.join(" ")));
    }
    if let Some(lock) = &host.lock {
        let note = words::shortened(&clean::words(&lock.note), 200);
        shown.insert(
            "locked".into(),
            json!({"author": clean::words(&lock.author), "note": note}),
        );
    }
    if !host.identity_conflict.is_empty() {
        let conflict = words::shortened(&clean::words(&host.identity_conflict), 200);
        shown.insert("identity_conflict".into(), json!(conflict));
    }
    let facts = host.facts.as_ref();
    if let Some(facts) = facts.filter(|facts| !facts.audit_conflict.is_empty()) {
        let conflict = words::shortened(&clean::words(&facts.audit_conflict), 200);
        shown.insert("audit_conflict".into(), json!(conflict));
    }
    shown
}
