//! `host_set`: the instruction and the labels of hosts.

use std::collections::HashMap;

use futures_util::{StreamExt as _, stream};
use muster_client::ClientError;
use muster_proto::v1::{Host, ListHostsRequest, Reason, SetInstructionRequest, UpdateHostRequest};
use rmcp::model::CallToolResult;
use serde_json::{Map, Value, json};
use tonic::Request;

use super::{Arguments, Call, structured};
use crate::{call::ANSWER_LIMIT, error::Refusal, render::words};

/// Hosts changed by one call at most.
const HOSTS_MAX: i32 = 100;
/// Hosts changed at the same time.
const AT_ONCE: usize = 8;

struct Change {
    instruction: Option<String>,
    etag: String,
    labels: Vec<(String, Option<String>)>,
}

pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let selector = arguments.required("target", "web-1")?;
    let change = Change {
        instruction: arguments.text("instruction")?,
        etag: arguments.word("etag")?.unwrap_or_default(),
        labels: arguments.map("labels")?,
    };
    if change.instruction.is_none() && change.labels.is_empty() {
        return Err(Refusal::new(
            "nothing to set",
            "give instruction, or labels as {\"env\":\"prod\",\"old\":null}",
        ));
    }
    let hosts = hosts(call, selector).await?;
    let call = &*call;
    let change = &change;
    let results: Vec<(Host, Result<Value, ClientError>)> = stream::iter(hosts)
        .map(|host| async move {
            let result = set(call, &host, change).await;
            (host, result)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;

    let alone = results.len() == 1;
    let (mut changed, mut failed) = (Vec::new(), Vec::new());
    for (host, result) in results {
        match result {
            Ok(value) => changed.push(value),
            Err(error) if alone => return Err(call.refused(error)),
            Err(error) => {
                let reason = error.reason().unwrap_or_default();
                let refusal = call.refused(error);
                failed.push(json!({
                    "name": host.name, "reason": reason.name(), "cause": refusal.cause, "next": refusal.next
                }));
            }
        }
    }
    let is_error = !failed.is_empty();
    Ok(structured(
        json!({"changed": changed, "failed": failed}),
        is_error,
    ))
}

async fn hosts(call: &Call, selector: String) -> Result<Vec<Host>, Refusal> {
    let request = ListHostsRequest {
        selector,
        page_size: HOSTS_MAX,
        ..ListHostsRequest::default()
    };
    let mut hosts = call.client.hosts();
    let page = call.ask(hosts.list_hosts(request)).await?;
    if page.hosts.is_empty() {
        return Err(Refusal::new(
            format!("no host matches ({})", Reason::NoHostMatches.name()),
            "host_list without target shows all hosts and their labels",
        ));
    }
    if !page.next_page_token.is_empty() {
        return Err(Refusal::new(
            format!(
                "{} match; one call changes {HOSTS_MAX}",
                words::plural(page.total_size.max(0) as u64, "host")
            ),
            "choose fewer hosts by a narrower target",
        ));
    }
    Ok(page.hosts)
}

async fn set(call: &Call, host: &Host, change: &Change) -> Result<Value, ClientError> {
    let mut service = call.client.hosts();
    let mut changed = Map::new();
    changed.insert("name".into(), json!(host.name));
    changed.insert("id".into(), json!(host.host_id));
    if !change.labels.is_empty() {
        let paths = change.labels.iter().map(|(key, _)| format!("labels.{key}"));
        let labels: HashMap<String, String> = change
            .labels
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
            .collect();
        let request = UpdateHostRequest {
            host: host.host_id.clone(),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.collect(),
            }),
            labels,
            ..UpdateHostRequest::default()
        };
        let answer = service
            .update_host(within_limit(request))
            .await?
            .into_inner();
        let labels: std::collections::BTreeMap<String, String> =
            answer.host.unwrap_or_default().labels.into_iter().collect();
        changed.insert("labels".into(), json!(labels));
    }
    if let Some(text) = &change.instruction {
        let request = SetInstructionRequest {
            host: host.host_id.clone(),
            text: text.clone(),
            etag: change.etag.clone(),
        };
        let answer = service
            .set_instruction(within_limit(request))
            .await?
            .into_inner();
        let instruction = answer.instruction.unwrap_or_default();
        changed.insert(
            "instruction".into(),
            json!({
                "bytes": text.len(), "version": instruction.version, "etag": instruction.etag,
                "author": instruction.author
            }),
        );
    }
    Ok(Value::Object(changed))
}

fn within_limit<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_LIMIT);
    request
}
