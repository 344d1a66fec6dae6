//! How much a caller may have begun to send and not ended.
//!
//! A message is kept until it is whole, and nothing makes a caller go on. So the messages on their way in are counted by
//! the lengths that they announce, for all connections of one identity together, and what is too much is refused before
//! it is kept.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use muster_proto::v1::Reason;
use muster_runtime::tls::Peer;
use tonic::{Status, body::Body};

use crate::wire::status;

/// How much of unfinished messages there may be.
#[derive(Clone, Copy)]
struct Limit {
    /// Bytes of all.
    most: usize,
    /// Shorter messages are not counted: there are only so many streams.
    counted: usize,
}

/// The limit of one identity, or of one connection with a token. A message has at most 4 MiB.
const KNOWN: Limit = Limit {
    most: 64 << 20,
    counted: 16 << 10,
};

/// The limit of one connection of a stranger, which may only enroll: there may be thousands of those.
const STRANGER: Limit = Limit {
    most: 64 << 10,
    counted: 1,
};

/// Bytes ahead of a message on the wire: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The body of a request, whose messages are counted while they come.
pub(super) struct Measured {
    body: Body,
    measure: Measure,
}

impl Measured {
    /// Measures a request that came by this connection, from somebody who is known or not.
    pub(super) fn new(body: Body, peer: &Peer, known: bool) -> Self {
        let limit = match known {
            true => KNOWN,
            false => STRANGER,
        };
        Self {
            body,
            measure: Measure::new(Arc::clone(&peer.incoming), limit),
        }
    }
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && !self.measure.pass(data)
        {
            return Poll::Ready(Some(Err(status::refuse(
                Reason::Overloaded,
                "too many large messages were begun and not ended; send them one after the other",
            ))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Follows messages as they pass.
struct Measure {
    incoming: Arc<AtomicUsize>,
    limit: Limit,
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix has passed.
    passed: usize,
    /// What is still to come of the message.
    left: usize,
    counted: usize,
}

impl Measure {
    fn new(incoming: Arc<AtomicUsize>, limit: Limit) -> Self {
        Self {
            incoming,
            limit,
            prefix: [0; PREFIX_BYTES],
            passed: 0,
            left: 0,
            counted: 0,
        }
    }

    /// These bytes come next; `false` if they begin what is too much.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.passed < PREFIX_BYTES {
                self.prefix[self.passed] = bytes[0];
                self.passed += 1;
                bytes = &bytes[1..];
                if self.passed == PREFIX_BYTES && !self.begin() {
                    return false;
                }
            } else {
                let now = self.left.min(bytes.len());
                self.left -= now;
                bytes = &bytes[now..];
            }
            if self.passed == PREFIX_BYTES && self.left == 0 {
                self.passed = 0;
                self.release();
            }
        }
        true
    }

    fn begin(&mut self) -> bool {
        let [_, length @ ..] = self.prefix;
        self.left = u32::from_be_bytes(length) as usize;
        let Limit { most, counted } = self.limit;
        if self.left < counted {
            return true;
        }
        // A message that is longer than any may be is refused where it is read.
        self.counted = self.left.min(most);
        let before = self.incoming.fetch_add(self.counted, Ordering::Relaxed);
        before + self.counted <= most
    }

    fn release(&mut self) {
        if self.counted > 0 {
            self.incoming.fetch_sub(self.counted, Ordering::Relaxed);
            self.counted = 0;
        }
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        most: 100_000,
        counted: 16 << 10,
    };

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(bytes.len() + length as usize, 7);
        bytes
    }

    #[test]
    fn what_is_whole_does_not_count_any_more_however_it_is_cut() {
        let incoming = Arc::new(AtomicUsize::new(0));
        for piece in [1, 3, 5, 16_384, 1 << 20] {
            let mut measure = Measure::new(Arc::clone(&incoming), LIMIT);
            let bytes = [message(20_000), message(0), message(90_000), message(3)].concat();
            assert!(
                bytes.chunks(piece).all(|bytes| measure.pass(bytes)),
                "{piece}"
            );
            assert_eq!(incoming.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn what_is_begun_and_never_ended_has_a_limit() {
        let incoming = Arc::new(AtomicUsize::new(0));
        let begun = || {
            let mut measure = Measure::new(Arc::clone(&incoming), LIMIT);
            let taken = measure.pass(&message(40_000)[..100]);
            (taken, measure)
        };
        let first = begun();
        let second = begun();
        assert!(first.0 && second.0);
        assert!(!begun().0, "the third is too much");
        drop(first);
        assert!(begun().0);
        drop(second);
        assert_eq!(incoming.load(Ordering::Relaxed), 0);
    }
}
