//! `muster host watch`: hosts, then every change of one.

use std::collections::HashMap;

use muster_client::{Client, ClientError};
use muster_proto::v1::{WatchHostsRequest, WatchHostsResponse};
use muster_runtime::backoff::Backoff;
use serde_json::json;

use super::view;
use crate::{
    failure::Failure,
    json,
    screen::{self, clean, say},
    time,
};

/// Goes on until Ctrl-C. A broken stream is opened again; what stayed the same is not shown again.
pub(super) async fn run(client: &Client, selector: &str, json: bool) -> Result<(), Failure> {
    let mut seen = Seen::default();
    let mut backoff = Backoff::default();
    loop {
        let error = match follow(client, selector, json, &mut seen, &mut backoff).await {
            Ok(()) => return Ok(()),
            Err(Stop::Output(failure)) => return Err(failure),
            Err(Stop::Call(error)) => error,
        };
        if !error.is_transient() {
            return Err(Failure::in_selector(error, selector));
        }
        say(&format!("{error}; trying again"));
        tokio::select! {
            () = backoff.wait() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

enum Stop {
    Call(ClientError),
    Output(Failure),
}

#[derive(Default)]
struct Seen(HashMap<String, (String, String)>);

async fn follow(
    client: &Client,
    selector: &str,
    json: bool,
    seen: &mut Seen,
    backoff: &mut Backoff,
) -> Result<(), Stop> {
    let call = |status: tonic::Status| Stop::Call(status.into());
    let request = WatchHostsRequest {
        selector: selector.to_owned(),
    };
    let mut changes = client
        .hosts()
        .watch_hosts(request)
        .await
        .map_err(call)?
        .into_inner();
    loop {
        let change = tokio::select! {
            change = changes.message() => change.map_err(call)?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(change) = change else {
            return Err(call(tonic::Status::unavailable("the stream ended")));
        };
        backoff.reset();
        show(&change, json, seen).map_err(Stop::Output)?;
    }
}

fn show(change: &WatchHostsResponse, json: bool, seen: &mut Seen) -> Result<(), Failure> {
    for host in &change.hosts {
        let line = format!("{}  {}", clean(&host.name), view::presence(host));
        let known = (host.name.clone(), line.clone());
        let shown = seen.0.insert(host.host_id.clone(), known);
        if json {
            screen::print_json_line(&json!({"host": json::document(host)}))?;
        } else if shown.is_none_or(|(_, before)| before != line) {
            screen::print(&format!("{}  {line}\n", now()))?;
        }
    }
    for host_id in &change.removed_host_ids {
        let known = seen.0.remove(host_id);
        if json {
            screen::print_json_line(&json!({"removed_host_id": host_id}))?;
        } else if let Some((name, _)) = known {
            screen::print(&format!("{}  {}  no longer matches\n", now(), clean(&name)))?;
        }
    }
    if change.caught_up && json {
        screen::print_json_line(&json!({"caught_up": true}))?;
    }
    Ok(())
}

fn now() -> String {
    time::local(Some(&std::time::SystemTime::now().into()))
}
