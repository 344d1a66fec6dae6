//! One POST on a connection of its own: notices are few.

use std::path::Path;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use muster_runtime::tls::WebTls;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::WebhookError;

/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 64 << 10;

/// What came of a POST.
pub(super) enum Outcome {
    /// It was taken.
    Taken,
    /// It was not, and will not be.
    Refused(String),
    /// It was not, and may be later.
    Failed(String),
}

/// Posts to one address.
pub(super) struct Poster {
    uri: Uri,
    tls: Option<WebTls>,
}

impl Poster {
    /// For this address, vouched for by the authorities of a file, or by the system's.
    pub(super) fn new(uri: Uri, authorities: Option<&Path>) -> Result<Self, WebhookError> {
        let tls = match uri.scheme_str() {
            Some("https") => {
                let tls = WebTls::new(authorities);
                Some(tls.map_err(|error| WebhookError::Authorities(error.to_string()))?)
            }
            _ => None,
        };
        Ok(Self { uri, tls })
    }

    /// Posts a JSON text.
    pub(super) async fn post(&self, body: &str, signature: &str) -> Outcome {
        match self.try_post(body, signature).await {
            Ok(outcome) => outcome,
            Err(cause) => Outcome::Failed(cause),
        }
    }

    async fn try_post(&self, body: &str, signature: &str) -> Result<Outcome, String> {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self
            .uri
            .port_u16()
            .unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else {
            return self.send(stream, body, signature).await;
        };
        let stream = tls
            .connect(host, stream)
            .await
            .map_err(|error| error.to_string())?;
        self.send(stream, body, signature).await
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        body: &str,
        signature: &str,
    ) -> Result<Outcome, String> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let _end = End(connection.abort_handle());
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |name| name.as_str());
        let request = Request::post(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("muster/", env!("CARGO_PKG_VERSION")),
            )
            .header("muster-signature", signature)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|error| error.to_string())?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        // Read, so that the other end has not written into the void.
        let _ = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        Ok(match status.as_u16() {
            200..=299 => Outcome::Taken,
            408 | 425 | 429 | 500.. => Outcome::Failed(format!("it answered {status}")),
            _ => Outcome::Refused(format!("it answered {status}")),
        })
    }
}

/// Ends the connection's task with the call, however that ends.
struct End(tokio::task::AbortHandle);

impl Drop for End {
    fn drop(&mut self) {
        self.0.abort();
    }
}
