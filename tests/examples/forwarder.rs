//! Adds a bearer token to every HTTP request and passes it on, with Host and Origin as they came: for
//! test suites that cannot send a token themselves.
//!
//! Usage: `forwarder LISTEN TARGET TOKEN_FILE`

use std::{env, fs, net::SocketAddr};

use anyhow::Context as _;
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let [listen, target, token_file] = env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| anyhow::anyhow!("usage: forwarder LISTEN TARGET TOKEN_FILE"))?;
    let target: SocketAddr = target.parse()?;
    let token = fs::read_to_string(&token_file).with_context(|| token_file)?;
    let credential = HeaderValue::try_from(format!("Bearer {}", token.trim()))?;
    let listener = TcpListener::bind(&listen).await.context(listen)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let credential = credential.clone();
        tokio::spawn(async move {
            let forward = service_fn(|request| forward(request, target, credential.clone()));
            // A client that goes away ends its own connection and nothing else.
            let _ = server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), forward)
                .await;
        });
    }
}

async fn forward(
    mut request: Request<Incoming>,
    target: SocketAddr,
    credential: HeaderValue,
) -> anyhow::Result<Response<Incoming>> {
    request.headers_mut().insert(AUTHORIZATION, credential);
    let stream = TcpStream::connect(target).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}
