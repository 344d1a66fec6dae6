//! The end of calls whose caller is shut out in the middle of them.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use muster_proto::v1::Reason;
use tonic::{Status, body::Body};

use crate::{
    access::{self, CredentialError},
    clock::now,
    wire::status,
};

/// Says, once it is so, why a caller may go on no longer.
pub(super) type ShutOut = Pin<Box<dyn Future<Output = Status> + Send>>;

/// Ready when a caller is shut out: by a lock, a revoked token, or a token's end. A certificate's end ends nothing:
/// renewal must not break a stream.
pub(super) fn shut_out(caller: &access::Caller) -> ShutOut {
    let ends: Vec<_> = caller
        .ends
        .iter()
        .map(|end| Box::pin(end.clone().cancelled_owned()))
        .collect();
    let left = match caller.certificate() {
        Some(_) => None,
        None => Some(caller.expire_time.saturating_sub(now())),
    };
    Box::pin(async move {
        let expired = async {
            match left {
                Some(left) => {
                    tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
                        .await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Every credential comes with its connection, so there is at least one.
            _ = futures_util::future::select_all(ends) => status::refuse(
                Reason::Locked,
                "the credential of this call was locked or revoked",
            ),
            () = expired => status::of(CredentialError::Expired("the token of this call")),
        }
    })
}

/// The body of an answer, which ends when its caller is shut out.
pub(super) struct UntilShutOut {
    pub(super) body: Body,
    pub(super) shut_out: ShutOut,
    pub(super) ended: bool,
}

impl http_body::Body for UntilShutOut {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(last) = self.shut_out.as_mut().poll(cx) {
            self.ended = true;
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(match last.add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(status) => Err(status),
            }));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
