//! The tools: what they are called, what they take, and which function does them.
//!
//! Their definitions are compiled in and written by hand, since each byte of them is read by every
//! model that connects. Nothing that a host or an agent says ever enters one.

mod arguments;
mod create;
mod file_read;
mod grant_request;
mod host_list;
mod host_set;
mod job_cancel;
mod job_get;
mod job_input;
mod job_list;
mod output;
mod run;

use std::{sync::LazyLock, time::SystemTime};

use aws_lc_rs::rand;
use rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool};
use serde_json::Value;

use crate::{call::Call, error::Refusal, render::job::Sheet};
use arguments::Arguments;

pub(crate) use host_list::{full, page_of_hosts};

/// The longest wait of one call, seconds: below the shortest limit of any client with a margin.
const WAIT_MAX: i64 = 45;
/// How long a call waits for the end of what it began unless told otherwise, seconds.
const WAIT: i64 = 25;
/// An answer's size unless the caller says otherwise, bytes: about 4,000 tokens.
const MAX_BYTES: i64 = 16_000;
/// What `max_bytes` may be; clients put aside what is longer.
const MAX_BYTES_LIMITS: std::ops::RangeInclusive<i64> = 1_000..=50_000;

static DEFINITIONS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("tools/definitions.json"))
        .expect("the definitions are compiled in and a test reads them")
});

/// All tools, in the order in which clients should show them.
pub(crate) fn definitions() -> &'static [Tool] {
    &DEFINITIONS
}

/// Does what a tool is asked for; `None` if there is no such tool.
pub(crate) async fn call(
    name: &str,
    given: Option<JsonObject>,
    call: &mut Call,
) -> Option<CallToolResult> {
    let tool = definitions().iter().find(|tool| tool.name == name)?;
    let result = async {
        let arguments = Arguments::new(name, &tool.input_schema, given)?;
        match name {
            "host_list" => host_list::call(call, arguments).await,
            "host_set" => host_set::call(call, arguments).await,
            "run" => run::call(call, arguments).await,
            "file_read" => file_read::call(call, arguments).await,
            "job_get" => job_get::call(call, arguments).await,
            "job_input" => job_input::call(call, arguments).await,
            "job_cancel" => job_cancel::call(call, arguments).await,
            "grant_request" => grant_request::call(call, arguments).await,
            other => Err(Refusal::new(
                format!("there is no tool {other}"),
                "use one of tools/list",
            )),
        }
    };
    let result: Result<CallToolResult, Refusal> = result.await;
    Some(result.unwrap_or_else(CallToolResult::from))
}

/// A job with head and tail of its output, as `job_get` shows it.
pub(crate) async fn job(call: &Call, job_id: &str) -> Result<String, Refusal> {
    job_get::overview(call, job_id).await
}

/// A text answer.
fn text(text: String, is_error: bool) -> CallToolResult {
    let content = vec![ContentBlock::text(text)];
    if is_error {
        CallToolResult::error(content)
    } else {
        CallToolResult::success(content)
    }
}

/// A structured answer; its text is the same data, as the protocol wants.
fn structured(value: Value, is_error: bool) -> CallToolResult {
    let content = vec![ContentBlock::text(value.to_string())];
    let mut result = if is_error {
        CallToolResult::error(content)
    } else {
        CallToolResult::success(content)
    };
    result.structured_content = Some(value);
    result
}

fn sheet(max_bytes: i64) -> Sheet {
    Sheet {
        max_bytes: max_bytes.max(0) as usize,
        fence: random_hex::<4>(),
        now: SystemTime::now(),
    }
}

/// So many random bytes, in hex.
fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

#[cfg(test)]
mod tests;
