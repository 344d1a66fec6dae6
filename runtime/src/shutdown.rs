//! Signals become a token; stopping has a limit.

use std::{future::Future, io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a role may take to stop before it is left behind.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A token that SIGTERM, SIGINT or SIGHUP cancels. A second one ends the process at once, with the exit
/// code that the signal would have given. Call it once, inside the runtime.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut signals = Signals::new()?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let (name, _) = signals.next().await;
        info!("{name}: stopping; once more ends it at once");
        stop.cancel();
        let (name, number) = signals.next().await;
        warn!("{name} again: ending at once");
        #[allow(clippy::disallowed_methods)]
        // whoever asks twice does not want to wait for the rest
        std::process::exit(128 + number);
    });
    Ok(token)
}

/// Waits for what is still stopping, at most [`LIMIT`]. `false` if it was left behind.
pub async fn finish(what: &str, stopping: impl Future) -> bool {
    let finished = tokio::time::timeout(LIMIT, stopping).await.is_ok();
    if !finished {
        warn!("{what} did not stop within {} s", LIMIT.as_secs());
    }
    finished
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
            _ = self.hangup.recv() => ("SIGHUP", SignalKind::hangup().as_raw_value()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_cancels_the_token() {
        let token = on_signal().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        tokio::time::timeout(Duration::from_secs(5), token.cancelled())
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_stops_is_left_behind() {
        assert!(!finish("a sleeper", std::future::pending::<()>()).await);
        assert!(finish("nothing", async {}).await);
    }
}
