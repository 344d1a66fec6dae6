//! Signals become a token; stopping has a limit.

use std::{future::Future, io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a role may take to stop before it is left behind.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A token that SIGTERM, SIGINT or SIGHUP cancels; SIGHUP not if it was ignored from the beginning, as `nohup`
/// sees to. A second one ends the process at once, with the exit
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
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: match hangup_is_ignored() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    async fn next(&mut self) -> (&'static str, i32) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
            _ = hangup => ("SIGHUP", SignalKind::hangup().as_raw_value()),
        }
    }
}

/// Whoever started this process wants it to outlive the terminal.
fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

fn ignores_hangup(status: &str) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (SignalKind::hangup().as_raw_value() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_cancels_the_token() {
        let token = on_signal().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(5), token.cancelled())
            .await
            .unwrap();
    }

    #[test]
    fn a_process_that_ignores_the_hangup_from_the_beginning_is_told_apart() {
        let status =
            |mask: &str| format!("Name:\tmuster\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangup(&status("0000000000000001")));
        assert!(ignores_hangup(&status("0000000180001001")));
        assert!(!ignores_hangup(&status("0000000180001000")));
        assert!(!ignores_hangup(""));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_stops_is_left_behind() {
        assert!(!finish("a sleeper", std::future::pending::<()>()).await);
        assert!(finish("nothing", async {}).await);
    }
}
