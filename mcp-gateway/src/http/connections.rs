//! Connections: bounded in number and in patience, and without Nagle's delay.
//!
//! HTTP/1.1 only: every MCP client speaks it, and nothing bounds how long a connection that has not yet shown its
//! version may be silent.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections open at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a connection may take until the headers of its next request are here. Nobody is known before that:
/// whoever dawdles must not keep a place from those who have a token.
pub(super) const HEADERS_LIMIT: Duration = Duration::from_secs(30);

/// Serves until `stop`; then ends what is idle and waits for what is being answered.
pub(super) async fn serve(
    mut listener: TcpListener,
    router: Router,
    headers_limit: Duration,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            let place = places.clone().acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            // axum's accept waits and tries again where the system is out of descriptors.
            let (stream, _) = axum::serve::Listener::accept(&mut listener).await;
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                converse(stream, router, headers_limit, stop).await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn converse(
    stream: TcpStream,
    router: Router,
    headers_limit: Duration,
    stop: CancellationToken,
) {
    // An answer is two small writes: with Nagle's delay the second would wait 40 ms for an ACK.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set: {error}");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(headers_limit)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn whoever_dawdles_over_its_headers_loses_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(
            listener,
            Router::new(),
            Duration::from_millis(100),
            stop.clone(),
        ));
        for begun in ["", "P", "POST /mcp HTTP/1.1\r\nHost: local"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(begun.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest))
                .await
                .expect("the connection is closed")
                .unwrap();
        }
        stop.cancel();
        served.await.unwrap();
    }
}
