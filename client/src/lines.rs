//! The connections of a client. A control plane takes so many streams on one; a watch and an attachment hold theirs for
//! long, and what finds no room would wait without a word. So long streams go to a further connection in time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use muster_runtime::tls::{ClientTls, connect_lazily};
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::error::ClientError;

/// Long streams on one connection: a control plane takes 200 streams, and the rest is for short calls.
pub(crate) const LONG_STREAMS_MAX: usize = 150;

/// Connections of one client.
const LINES_MAX: usize = 64;

/// All connections of a client and its clones.
pub(crate) struct Lines {
    /// How a further one is made; `None` where only whoever made the first knows.
    dial: Option<(String, ClientTls)>,
    long_streams_max: usize,
    // Held to look and to add.
    lines: Mutex<Vec<Arc<Line>>>,
}

struct Line {
    channel: Channel,
    long_streams: AtomicUsize,
}

/// Room for a long stream, until it is dropped.
pub(crate) struct Seat(Arc<Line>);

impl Lines {
    pub(crate) fn new(
        first: Channel,
        dial: Option<(String, ClientTls)>,
        long_streams_max: usize,
    ) -> Self {
        Self {
            dial,
            long_streams_max,
            lines: Mutex::new(vec![Line::new(first)]),
        }
    }

    /// Room for a long stream. The oldest connection that has some is taken, so that the others can fall idle.
    pub(crate) fn seat(&self) -> Result<Seat, ClientError> {
        let mut lines = self.lines.lock();
        for line in &*lines {
            if line.long_streams.load(Ordering::Relaxed) < self.long_streams_max {
                return Ok(Seat::on(line));
            }
        }
        let Some((address, tls)) = self.dial.as_ref().filter(|_| lines.len() < LINES_MAX) else {
            return Err(ClientError::TooManyStreams(
                self.long_streams_max * lines.len(),
            ));
        };
        lines.push(Line::new(connect_lazily(address, tls)));
        Ok(Seat::on(&lines[lines.len() - 1]))
    }
}

impl Line {
    fn new(channel: Channel) -> Arc<Self> {
        Arc::new(Self {
            channel,
            long_streams: AtomicUsize::new(0),
        })
    }
}

impl Seat {
    fn on(line: &Arc<Line>) -> Self {
        line.long_streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(line))
    }

    pub(crate) fn channel(&self) -> Channel {
        self.0.channel.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.long_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> Channel {
        tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
    }

    #[tokio::test]
    async fn what_finds_no_room_goes_to_a_further_connection_or_is_told() {
        let authority = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let tls = ClientTls::new(&[authority.cert.der().clone()]).unwrap();
        let dial = Some(("127.0.0.1:1".to_owned(), tls));
        let lines = Lines::new(channel(), dial, 2);
        let seats: Vec<Seat> = (0..5).map(|_| lines.seat().unwrap()).collect();
        assert_eq!(lines.lines.lock().len(), 3);
        drop(seats);
        let again: Vec<Seat> = (0..6).map(|_| lines.seat().unwrap()).collect();
        assert_eq!(lines.lines.lock().len(), 3, "room is used again");
        drop(again);

        let lines = Lines::new(channel(), None, 2);
        let seats = (lines.seat().unwrap(), lines.seat().unwrap());
        let refused = lines.seat().err().unwrap();
        assert!(matches!(refused, ClientError::TooManyStreams(2)));
        assert!(!refused.is_transient(), "it is told, and not tried again");
        drop(seats);
        lines.seat().unwrap();
    }
}
