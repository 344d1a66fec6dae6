//! The gateway through its doors, against a fake control plane that speaks the real contract.

mod client;
mod door;
mod eras;
mod fake;
mod jobs;

use std::time::Duration;

/// Waits for a condition, with a limit.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap_or_else(|_| panic!("{what}, within 10 s"));
}
