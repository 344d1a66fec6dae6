//! Errors that know their reason: each room says why it failed, and the door turns that into a status.

use muster_proto::v1::Reason;

/// An error that knows its reason.
pub(crate) trait Explain: std::error::Error {
    /// Why, for programs.
    fn reason(&self) -> Reason;

    /// More for programs, as name and value.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
