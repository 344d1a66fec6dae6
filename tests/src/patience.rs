//! Waiting for what must come true.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long a story waits for something that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks again and again until there is an answer, and says what did not come true if there is none
/// within `limit`.
#[track_caller]
pub fn eventually<T, F>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> impl Future<Output = T>
where
    F: Future<Output = Option<T>>,
{
    let caller = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                start.elapsed() < limit,
                "{caller}: not within {limit:?}: {what}"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
