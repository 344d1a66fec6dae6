//! MCP over standard input and output, for clients that start us themselves.

use std::sync::Arc;

use muster_client::Client;
use rmcp::{ServiceExt as _, transport};
use tokio_util::sync::CancellationToken;

use crate::{
    control_plane::ControlPlane,
    handler::{Handler, Shared, Who},
    slots::Slots,
};

/// Why serving over standard input and output ended badly.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The client did not begin as the protocol wants.
    #[error("the client broke off the handshake: {0}")]
    Handshake(#[source] Box<rmcp::service::ServerInitializeError>),
    /// The service broke.
    #[error("serving broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// Serves one client over standard input and output until it ends or `stop`. `client` speaks with an
/// operator's certificate; calls are made as the AI `ai_name` that this operator owns, never as the
/// operator. Nothing but the protocol may be written to standard output.
pub async fn serve_stdio(
    client: Client,
    ai_name: String,
    stop: CancellationToken,
) -> Result<(), StdioError> {
    let handler = Handler::new(Arc::new(Shared {
        control_plane: Arc::new(ControlPlane::new([client])),
        who: Who::Ai(ai_name),
        slots: Slots::default(),
    }));
    let started = tokio::select! {
        started = handler.serve_with_ct(transport::stdio(), stop.child_token()) => started,
        () = stop.cancelled() => return Ok(()),
    };
    let service = started.map_err(|error| StdioError::Handshake(Box::new(error)))?;
    service.waiting().await?;
    Ok(())
}
