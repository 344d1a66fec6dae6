//! The gateway through its doors, against a fake control plane that speaks the real contract.

mod client;
mod door;
mod eras;
mod fake;
mod files;
mod jobs;

use std::time::Duration;

/// Waits for a condition, with a limit.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("{what}, within 30 s"));
}
