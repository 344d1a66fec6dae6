//! What this program is told by signals while somebody is attached.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// What a signal asks for.
pub(super) enum Told {
    /// To leave.
    Leave,
    /// To look at the terminal's size again.
    Resize,
}

pub(crate) struct Signals {
    leave: [Signal; 3],
    resize: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::internal(format!("no signals: {error}")));
        Ok(Self {
            leave: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
            resize: listen(SignalKind::window_change())?,
        })
    }

    pub(super) async fn next(&mut self) -> Told {
        let [interrupt, terminate, hangup] = &mut self.leave;
        tokio::select! {
            _ = interrupt.recv() => Told::Leave,
            _ = terminate.recv() => Told::Leave,
            _ = hangup.recv() => Told::Leave,
            _ = self.resize.recv() => Told::Resize,
        }
    }

    /// Returns once it is time to leave.
    pub(crate) async fn leave(&mut self) {
        while !matches!(self.next().await, Told::Leave) {}
    }
}
