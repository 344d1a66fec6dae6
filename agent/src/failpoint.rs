//! Places where a test holds a task of the agent, to kill it there: the worst moments between an offer and its end.
//!
//! Only debug builds have them, and only where `MUSTER_FAILPOINT` names one.

#[cfg(debug_assertions)]
use std::{future, sync::LazyLock};

#[cfg(debug_assertions)]
static ARMED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("MUSTER_FAILPOINT").ok());

/// Whether some place is armed.
#[cfg(debug_assertions)]
pub(crate) fn is_armed() -> bool {
    ARMED.is_some()
}

/// Never, in builds that are not for debugging.
#[cfg(not(debug_assertions))]
pub(crate) fn is_armed() -> bool {
    false
}

/// Whether this place is the one that `MUSTER_FAILPOINT` names.
#[cfg(debug_assertions)]
pub(crate) fn is_at(place: &str) -> bool {
    ARMED.as_deref() == Some(place)
}

/// Never, in builds that are not for debugging.
#[cfg(not(debug_assertions))]
pub(crate) fn is_at(_place: &str) -> bool {
    false
}

/// The variable that names the place, for helpers of ours, which get none of our settings otherwise.
pub(crate) fn variable() -> Option<String> {
    #[cfg(debug_assertions)]
    return ARMED
        .as_ref()
        .map(|place| format!("MUSTER_FAILPOINT={place}"));
    #[cfg(not(debug_assertions))]
    None
}

/// Holds for ever if this place is the one that `MUSTER_FAILPOINT` names, and says so in the log.
#[cfg(debug_assertions)]
pub(crate) async fn reached(place: &str) {
    if is_at(place) {
        tracing::warn!(place, "holding at failpoint {place}");
        future::pending::<()>().await;
    }
}

/// Nothing, in builds that are not for debugging.
#[cfg(not(debug_assertions))]
pub(crate) async fn reached(_place: &str) {}
