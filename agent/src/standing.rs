//! Where an agent stands with its control plane, for whoever asks on its host.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Attached or not, since when, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whether the stream to the control plane is open.
    pub attached: bool,
    /// Whether it was tried at all yet.
    pub tried: bool,
    /// Since when it is as it is, Unix milliseconds by this host's clock.
    pub since_ms: i64,
    /// In words: to what and as whom it is attached, or why it is not.
    pub words: String,
}

/// Where the standing is written for others to read.
pub(crate) struct Board(watch::Sender<Standing>);

impl Default for Board {
    fn default() -> Self {
        Self(watch::Sender::new(Standing {
            attached: false,
            tried: false,
            since_ms: now_ms(),
            words: "not tried yet".to_owned(),
        }))
    }
}

impl Board {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.0.subscribe()
    }

    pub(crate) fn attached(&self, address: &str, name: &str) {
        self.0.send_replace(Standing {
            attached: true,
            tried: true,
            since_ms: now_ms(),
            words: format!("attached to {address} as {name}"),
        });
    }

    /// Keeps the time of the first failure while others follow it.
    pub(crate) fn detached(&self, reason: String) {
        self.0.send_modify(|standing| {
            if standing.attached {
                standing.since_ms = now_ms();
            }
            standing.attached = false;
            standing.tried = true;
            standing.words = reason;
        });
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_failure_keeps_the_time_of_the_first() {
        let board = Board::default();
        let standing = board.subscribe();
        assert!(!standing.borrow().tried);
        board.attached("cp:1", "web-1");
        assert_eq!(standing.borrow().words, "attached to cp:1 as web-1");
        board.detached("first".to_owned());
        board.0.send_modify(|standing| standing.since_ms = 7);
        board.detached("second".to_owned());
        let now = standing.borrow().clone();
        assert_eq!(
            (now.attached, now.since_ms, now.words.as_str()),
            (false, 7, "second")
        );
    }
}
