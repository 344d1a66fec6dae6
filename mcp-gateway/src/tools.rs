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

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand;
use muster_client::{Client, ClientError};
use rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{
    confirm::Asker,
    control_plane::{Caller, ControlPlane, Place},
    error::Refusal,
    progress::Progress,
    render::job::Sheet,
};
use arguments::Arguments;

pub(crate) use host_list::{full, page_of_hosts};

/// The longest wait of one call, seconds: below the shortest limit of any client with a margin.
const WAIT_MAX: i64 = 45;
/// How long a call waits for the end of what it began unless told otherwise, seconds.
const WAIT: i64 = 25;
/// How long the control plane may take for what needs no waiting.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
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

/// One call of a tool.
pub(crate) struct Call {
    /// On whose behalf.
    pub(crate) caller: Caller,
    /// Where the caller's token came from.
    pub(crate) control_plane: Arc<ControlPlane>,
    /// Calls in its name, within its trace.
    pub(crate) client: Client,
    /// Its place on the channel of this client.
    pub(crate) _place: Place,
    /// Whom to tell how it goes.
    pub(crate) progress: Progress,
    /// Whom to ask for a confirmation.
    pub(crate) asker: Asker,
    /// The caller has gone: detach.
    pub(crate) stop: CancellationToken,
}

impl Call {
    /// What a failed call becomes. A token that was not taken is not used again.
    pub(crate) fn refused(&self, error: impl Into<ClientError>) -> Refusal {
        let error = error.into();
        if error.code() == Some(Code::Unauthenticated) {
            self.control_plane.forget(&self.caller);
        }
        Refusal::from(error)
    }

    /// Waits for an answer that needs no waiting, unless the caller goes.
    async fn ask<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        self.ask_for(Duration::ZERO, answer).await
    }

    /// Waits for an answer that may take `wait` and a little longer.
    async fn ask_for<T>(
        &self,
        wait: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        tokio::select! {
            answer = timeout(wait + ANSWER_LIMIT, answer) => match answer {
                Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| self.refused(status)),
                Err(_) => Err(Refusal::new(
                    "the control plane did not answer in time",
                    "call again in a few seconds; if it stays, an operator has to look after the control plane",
                )),
            },
            () = self.stop.cancelled() => Err(Refusal::new("the caller has gone", "call again")),
        }
    }
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
