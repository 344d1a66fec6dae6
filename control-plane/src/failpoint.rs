//! Places where a test holds the control plane, to kill it there: the worst moments of the accept path.
//!
//! Only debug builds have them, and only where `MUSTER_FAILPOINT` names one.

#[cfg(debug_assertions)]
use std::{future, sync::LazyLock};

/// Holds for ever if this place is the one that `MUSTER_FAILPOINT` names, and says so in the log.
#[cfg(debug_assertions)]
pub(crate) async fn reached(place: &str) {
    static ARMED: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("MUSTER_FAILPOINT").ok());
    if ARMED.as_deref() == Some(place) {
        tracing::warn!(place, "holding at failpoint {place}");
        future::pending::<()>().await;
    }
}

/// Nothing, in builds that are not for debugging.
#[cfg(not(debug_assertions))]
pub(crate) async fn reached(_place: &str) {}
