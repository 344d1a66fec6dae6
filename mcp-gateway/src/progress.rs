//! Progress notifications, for callers who asked for them: the first at once, then at most two a
//! second, and a sign of life every few seconds when nothing is new.

use std::time::Duration;

use rmcp::{
    Peer, RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
};
use tokio::time::{Instant, sleep_until, timeout};

/// The least time between two notifications.
const INTERVAL: Duration = Duration::from_millis(500);
/// After this long the same message is sent again, so that nobody takes silence for death.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// A caller that takes longer than this misses a notification; it never holds up the call.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// Where progress goes; nowhere, if nobody asked.
pub(crate) struct Progress {
    to: Option<(Peer<RoleServer>, ProgressToken)>,
    begin: Instant,
    next: Instant,
    last: Option<(String, Instant)>,
}

impl Progress {
    /// Progress for the token that came with a call.
    pub(crate) fn new(peer: &Peer<RoleServer>, token: Option<ProgressToken>) -> Self {
        let now = Instant::now();
        Self {
            to: token.map(|token| (peer.clone(), token)),
            begin: now,
            next: now,
            last: None,
        }
    }

    /// Waits until something may be told; for ever if nobody asked.
    pub(crate) async fn due(&self) {
        match self.to {
            Some(_) => sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// Tells how it stands.
    pub(crate) async fn tell(&mut self, message: String) {
        let Some((peer, token)) = &self.to else {
            return;
        };
        let now = Instant::now();
        self.next = now + INTERVAL;
        let same = |(last, at): &(String, Instant)| *last == message && now - *at < REPEAT_AFTER;
        if self.last.as_ref().is_some_and(same) {
            return;
        }
        // Seconds grow with every notification, which is all that the protocol asks for.
        let seconds = (now - self.begin).as_secs_f64();
        let note =
            ProgressNotificationParam::new(token.clone(), seconds).with_message(message.clone());
        let _ = timeout(SEND_LIMIT, peer.notify_progress(note)).await;
        self.last = Some((message, now));
    }
}
