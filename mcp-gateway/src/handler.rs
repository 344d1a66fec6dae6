//! The MCP server: who we are, what we offer, and each request to its room. One handler serves one
//! request or one old-style session; nothing is remembered in it.

mod prompts;
mod resources;

use std::sync::Arc;

use muster_client::ClientError;
use muster_proto::v1::Reason;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams,
        CompleteResult, GetPromptRequestParams, GetPromptResponse, Implementation,
        ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
        PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
        ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
};
use tracing::Instrument as _;

use crate::{
    call::Call,
    confirm::Asker,
    control_plane::{Caller, ControlPlane, Subject, Trace},
    error::Refusal,
    progress::Progress,
    slots::Slots,
    tools,
};

/// Teaches what every tool has in common. Clients cut it or drop it: the essential comes first.
const INSTRUCTIONS: &str = include_str!("handler/instructions.md");
/// The version of the protocol from which on a server asks by a result.
const BY_RESULT_SINCE: &str = "2026-07-28";
/// How long the list of tools may be taken for fresh; it changes with the program only.
const TOOLS_TTL_MS: u64 = 300_000;

/// Serves one request or session.
#[derive(Clone)]
pub(crate) struct Handler {
    shared: Arc<Shared>,
}

/// What all handlers share.
pub(crate) struct Shared {
    /// The road to the control plane.
    pub(crate) control_plane: Arc<ControlPlane>,
    /// On whose behalf.
    pub(crate) who: Who,
    /// Calls under way.
    pub(crate) slots: Slots,
}

/// On whose behalf calls are made.
pub(crate) enum Who {
    /// Whoever the HTTP request was let in for.
    Request,
    /// The AI of this name, that our operator owns.
    Ai(String),
}

impl Handler {
    /// A handler among those that share this.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn caller(&self, context: &RequestContext<RoleServer>) -> Result<Caller, ClientError> {
        match &self.shared.who {
            Who::Ai(name) => self.shared.control_plane.caller(Subject::Ai(name)).await,
            Who::Request => {
                let parts = context.extensions.get::<http::request::Parts>();
                let caller = parts.and_then(|parts| parts.extensions.get::<Caller>());
                caller
                    .cloned()
                    .ok_or(ClientError::Answer("nobody was let in with this request"))
            }
        }
    }

    /// All that a request needs to be answered.
    async fn call(&self, context: &RequestContext<RoleServer>) -> Result<Call, Refusal> {
        let caller = self.caller(context).await.map_err(Refusal::from)?;
        let (client, place) = self.shared.control_plane.client(&caller)?;
        Ok(Call {
            client: trace(context).carried_by(client),
            _place: place,
            caller,
            control_plane: self.shared.control_plane.clone(),
            progress: Progress::new(&context.peer, context.meta.get_progress_token()),
            asker: Asker::new(
                &context.peer,
                context.client_capabilities().as_ref(),
                context
                    .protocol_version()
                    .is_some_and(|version| version.as_str() >= BY_RESULT_SINCE),
                context.ct.clone(),
            ),
            stop: context.ct.clone(),
        })
    }

    async fn tool(
        &self,
        mut request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let mut call = match self.call(context).await {
            Ok(call) => call,
            Err(refusal) => return Ok(CallToolResult::from(refusal).into()),
        };
        call.asker.take(&mut request);
        let principal = call.caller.principal.clone();
        let Some(_slot) = self.shared.slots.take(&principal) else {
            let refusal = Refusal::new(
                format!(
                    "{principal} has too many calls under way ({})",
                    Reason::Overloaded.name()
                ),
                "wait until some of them are answered; run with wait_s=0 holds none",
            );
            return Ok(CallToolResult::from(refusal).into());
        };
        let span = tracing::info_span!("tool", tool = %request.name, %principal);
        trace(context).adopt(&span);
        let answer = async {
            let answer = tools::call(&request.name, request.arguments, &mut call).await;
            let failed = answer.as_ref().and_then(|answer| answer.is_error);
            tracing::debug!(failed = failed.unwrap_or(false), "called {}", request.name);
            answer
        };
        let answer = answer.instrument(span).await;
        if let Some(wanted) = call.asker.wanted.take() {
            return Ok(wanted.into());
        }
        answer.map(Into::into).ok_or_else(|| {
            let names: Vec<&str> = tools::definitions()
                .iter()
                .map(|tool| tool.name.as_ref())
                .collect();
            ErrorData::invalid_params(
                format!("no such tool; there are {}", names.join(", ")),
                None,
            )
        })
    }
}

/// The trace that a request belongs to: as its `_meta` says, or else its HTTP headers.
fn trace(context: &RequestContext<RoleServer>) -> Trace {
    let mut trace = Trace::default();
    if let Some(parts) = context.extensions.get::<http::request::Parts>() {
        trace.take(|key| Some(parts.headers.get(key)?.to_str().ok()?.to_owned()));
    }
    trace.take(|key| Some(context.meta.get(key)?.as_str()?.to_owned()));
    trace
}

/// A refusal where the protocol has room for errors only.
fn protocol_error(refusal: Refusal) -> ErrorData {
    ErrorData::internal_error(refusal.text(), None)
}

/// The same for something that is not there.
fn not_found(refusal: Refusal, uri: &str) -> ErrorData {
    ErrorData::resource_not_found(refusal.text(), Some(serde_json::json!({"uri": uri})))
}

/// What a call for one thing becomes when it fails.
fn lookup_error(error: ClientError, uri: &str) -> ErrorData {
    match error.reason() {
        Some(Reason::HostNotFound) => not_found(error.into(), uri),
        _ => protocol_error(error.into()),
    }
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_prompts()
            .enable_completions()
            .build();
        let us = Implementation::new("muster", env!("CARGO_PKG_VERSION")).with_title("Muster");
        ServerConfig::new(capabilities)
            .with_server_info(us)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(
            ListToolsResult::with_all_items(tools::definitions().to_vec())
                .with_ttl_ms(TOOLS_TTL_MS)
                .with_cache_scope(CacheScope::Public),
        )
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::definitions()
            .iter()
            .find(|tool| tool.name == name)
            .cloned()
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.tool(request, &context).await
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let call = self.call(&context).await.map_err(protocol_error)?;
        let cursor = request.and_then(|request| request.cursor);
        resources::list(&call, cursor).await
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(resources::templates())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let mut call = self.call(&context).await.map_err(protocol_error)?;
        resources::read(&mut call, &request.uri)
            .await
            .map(Into::into)
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(prompts::list())
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        prompts::get(&request).map(Into::into)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let call = self.call(&context).await.map_err(protocol_error)?;
        resources::complete(&call, &request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_short() {
        assert!(
            INSTRUCTIONS.chars().count() < 1_500,
            "{}",
            INSTRUCTIONS.len()
        );
        for word in ["host_list", "job_id", "cursor", "env=prod", "data"] {
            assert!(INSTRUCTIONS.contains(word), "{word}");
        }
    }
}
