//! One small file over HTTPS, from an address that the settings name.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use muster_runtime::tls::WebTls;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// The largest answer, bytes.
const ANSWER_MAX: usize = 1 << 20;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where something is. HTTPS, or HTTP on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    secure: bool,
    host: String,
    port: u16,
    path: String,
}

impl Address {
    /// Takes an address apart.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
        let host = uri
            .host()
            .ok_or_else(|| format!("{text}: it names no host"))?;
        let bare = host.trim_matches(['[', ']']);
        let here = bare == "localhost"
            || bare
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if here => false,
            _ => {
                return Err(format!(
                    "{text}: keys come over https, or over http from this machine alone"
                ));
            }
        };
        Ok(Self {
            secure,
            host: bare.to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            path: uri
                .path_and_query()
                .map_or("/", http::uri::PathAndQuery::as_str)
                .to_owned(),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Gets what is there. Follows nowhere else.
pub(super) async fn get(address: &Address, authorities: Option<&Path>) -> Result<Vec<u8>, String> {
    tokio::time::timeout(LIMIT, get_unlimited(address, authorities))
        .await
        .map_err(|_| format!("{} did not answer within 5 s", address.host))?
}

async fn get_unlimited(address: &Address, authorities: Option<&Path>) -> Result<Vec<u8>, String> {
    let words = |error: &dyn std::error::Error| format!("{}: {error}", address.host);
    let socket = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(|error| words(&error))?;
    let stream: Box<dyn Stream> = match address.secure {
        true => {
            // Reading the system's authorities takes a moment of disk.
            let authorities = authorities.map(Path::to_owned);
            let tls = tokio::task::spawn_blocking(move || WebTls::new(authorities.as_deref()));
            let tls = tls.await.map_err(|error| words(&error))?;
            let tls = tls.map_err(|error| words(&error))?;
            let secured = tls.connect(&address.host, socket).await;
            Box::new(secured.map_err(|error| words(&error))?)
        }
        false => Box::new(socket),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| words(&error))?;
    let driving = tokio::spawn(connection);
    let request = http::Request::get(&address.path)
        .header(
            http::header::HOST,
            format!("{}:{}", address.host, address.port),
        )
        .header(http::header::ACCEPT, "application/json")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| words(&error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| words(&error))?;
    if !answer.status().is_success() {
        return Err(format!("{} answers {}", address.host, answer.status()));
    }
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    driving.abort();
    let body = body.map_err(|error| format!("{}: {error}", address.host))?;
    Ok(body.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn keys_come_over_https_or_from_this_machine() {
        for good in [
            "https://id.example.org/keys",
            "http://127.0.0.1:8080/jwks.json",
            "http://localhost/jwks",
            "http://[::1]:1/jwks",
        ] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for wrong in [
            "http://id.example.org/keys",
            "ftp://localhost/keys",
            "https://",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
