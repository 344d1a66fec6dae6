//! Streamable HTTP: both eras of the protocol on one path, nobody without a token.
//!
//! rmcp checks Host and Origin and bounds the body. Here every request is let in by its bearer token,
//! which is exchanged and then taken off the request: what handles it sees the caller, not the token.
//! No setting turns this off.

mod connections;
mod oauth;
mod sessions;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use muster_client::ClientError;
use muster_proto::v1::{OAuth, Reason};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    config::Config,
    control_plane::{Caller, ControlPlane, Subject},
    handler::{Handler, Shared},
};
use connections::HEADERS_LIMIT;
use sessions::Sessions;

/// Where MCP is served.
pub const PATH: &str = "/mcp";
/// The largest request, bytes.
const BODY_MAX: usize = 4 << 20;
/// No token of ours is longer.
const TOKEN_MAX: usize = 512;
/// No access token of an authorization server is longer.
const JWT_MAX: usize = 8 << 10;
const SESSION_ID: &str = "mcp-session-id";

#[derive(Clone)]
struct Door {
    control_plane: Arc<ControlPlane>,
    sessions: Arc<Sessions>,
}

/// Serves until `stop`; then ends streams and waits for what is being answered.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    config: &Config,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let router = router(shared, config, &stop);
    connections::serve(listener, router, HEADERS_LIMIT, stop).await;
}

fn router(shared: Arc<Shared>, config: &Config, stop: &CancellationToken) -> Router {
    let door = Door {
        control_plane: shared.control_plane.clone(),
        sessions: Arc::new(Sessions::new()),
    };
    let settings = StreamableHttpServerConfig::default()
        .with_allowed_hosts(config.hosts())
        .with_allowed_origins(config.origins())
        .enforce_origin_validation()
        .with_json_response(true)
        .with_max_request_body_bytes(BODY_MAX)
        .with_cancellation_token(stop.child_token());
    let service = StreamableHttpService::new(
        move || Ok(Handler::new(shared.clone())),
        door.sessions.clone(),
        settings,
    );
    Router::new()
        .route_service(PATH, service)
        .layer(middleware::from_fn_with_state(door.clone(), admit))
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(metadata(door))
}

/// Where tokens come from, for whoever has none yet.
fn metadata(door: Door) -> Router {
    let serve = |State(door): State<Door>| async move {
        oauth::metadata(door.control_plane.oauth().await.as_deref())
    };
    let [root, path] = oauth::METADATA;
    Router::new()
        .route(root, get(serve))
        .route(path, get(serve))
        .with_state(door)
}

/// Lets a request in on behalf of whoever its token belongs to.
async fn admit(State(door): State<Door>, mut request: Request<Body>, next: Next) -> Response {
    let caller = match bearer(request.headers()) {
        None => {
            return challenge(
                door.control_plane.oauth().await.as_deref(),
                None,
                "a bearer token is needed: an operator makes one with \"muster token create ai NAME\"\n",
            );
        }
        Some(subject) => door.control_plane.caller(subject).await,
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return refused(&error, door.control_plane.oauth().await.as_deref()),
    };
    if let Some(id) = request.headers().get(SESSION_ID)
        && !id
            .to_str()
            .is_ok_and(|id| door.sessions.touch(id, &caller.principal))
    {
        // The session's owner stays unsaid.
        return (StatusCode::NOT_FOUND, "Not Found: Session not found\n").into_response();
    }
    request.headers_mut().remove(header::AUTHORIZATION);
    if !caller.scopes.is_empty() {
        request = match within_scopes(&door, &caller, request).await {
            Ok(request) => request,
            Err(refusal) => return refusal,
        };
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Refuses a tool call that the caller's scopes do not cover, before it begins: then a client can ask for more.
async fn within_scopes(
    door: &Door,
    caller: &Caller,
    request: Request<Body>,
) -> Result<Request<Body>, Response> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_MAX).await else {
        let body = "the request is too large, or broke off\n";
        return Err((StatusCode::PAYLOAD_TOO_LARGE, body).into_response());
    };
    if let Some(needed) = oauth::needed(&body)
        && !oauth::covers(&caller.scopes, needed)
    {
        let oauth = door.control_plane.oauth().await;
        return Err(oauth::insufficient(oauth.as_deref(), Some(needed)));
    }
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// What a request presents; `None` if there is nothing, or something that no token looks like.
fn bearer(headers: &HeaderMap) -> Option<Subject<'_>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return None;
    }
    // Tokens of our own have no dots.
    let is_jwt = token.bytes().filter(|byte| *byte == b'.').count() == 2;
    match is_jwt {
        true => (token.len() <= JWT_MAX).then_some(Subject::Jwt(token)),
        false => (token.len() <= TOKEN_MAX).then_some(Subject::Bearer(token)),
    }
}

fn challenge(oauth: Option<&OAuth>, error: Option<&str>, body: &'static str) -> Response {
    let mut response = (StatusCode::UNAUTHORIZED, body).into_response();
    let challenge = oauth::challenge(oauth, error, None);
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn refused(error: &ClientError, oauth: Option<&OAuth>) -> Response {
    let reason = error.reason();
    match (reason, error.code()) {
        (Some(reason @ (Reason::Locked | Reason::NotAllowed)), _) => {
            let body = format!("{error} ({})\n", reason.name());
            (StatusCode::FORBIDDEN, body).into_response()
        }
        (Some(Reason::ScopeInsufficient), _) => oauth::insufficient(oauth, None),
        (Some(_), Some(Code::Unauthenticated | Code::InvalidArgument)) => challenge(
            oauth,
            Some("invalid_token"),
            "the bearer token is not valid: ask an operator for a new one\n",
        ),
        _ => {
            tracing::warn!(%error, "no caller can be verified: {error}");
            let body =
                "the control plane cannot be asked who you are; try again in a few seconds\n";
            let mut response = (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
            let after = HeaderValue::from_static("5");
            response.headers_mut().insert(header::RETRY_AFTER, after);
            response
        }
    }
}
