//! Streamable HTTP: both eras of the protocol on one path, nobody without a token.
//!
//! rmcp checks Host and Origin and bounds the body. Here every request is let in by its bearer token,
//! which is exchanged and then taken off the request: what handles it sees the caller, not the token.
//! No setting turns this off.

mod connections;
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
use muster_proto::v1::Reason;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    config::Config,
    control_plane::{ControlPlane, Subject},
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
        .layer(middleware::from_fn_with_state(door, admit))
        .route("/healthz", get(|| async { "ok\n" }))
}

/// Lets a request in on behalf of whoever its token belongs to.
async fn admit(State(door): State<Door>, mut request: Request<Body>, next: Next) -> Response {
    let caller = match bearer(request.headers()) {
        None => {
            return challenge(
                "Bearer realm=\"muster\"",
                "a bearer token is needed: an operator makes one with \"muster token create ai NAME\"\n",
            );
        }
        Some(token) => door.control_plane.caller(Subject::Bearer(token)).await,
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return refused(&error),
    };
    if let Some(id) = request.headers().get(SESSION_ID)
        && !id
            .to_str()
            .is_ok_and(|id| door.sessions.touch(id, &caller.principal))
    {
        // Whose it is stays unsaid.
        return (StatusCode::NOT_FOUND, "Not Found: Session not found\n").into_response();
    }
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The token of a request; `None` if there is none, or something that is none of ours.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let fits =
        scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_MAX;
    fits.then_some(token)
}

fn challenge(challenge: &'static str, body: &'static str) -> Response {
    let mut response = (StatusCode::UNAUTHORIZED, body).into_response();
    let challenge = HeaderValue::from_static(challenge);
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn refused(error: &ClientError) -> Response {
    let reason = error.reason();
    match (reason, error.code()) {
        (Some(reason @ (Reason::Locked | Reason::NotAllowed)), _) => {
            let body = format!("{error} ({})\n", reason.name());
            (StatusCode::FORBIDDEN, body).into_response()
        }
        (Some(_), Some(Code::Unauthenticated | Code::InvalidArgument)) => challenge(
            "Bearer realm=\"muster\", error=\"invalid_token\"",
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
