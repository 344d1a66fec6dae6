//! Why something that was asked for is not done, as a value: a reason, words, and more for programs.

use std::fmt;

use muster_proto::v1::Reason;

use super::Explain;

/// A refusal. A door makes a status of it, a schedule writes it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Why, for programs.
    pub(crate) reason: Reason,
    /// Why, for people, with what to do next.
    pub(crate) words: String,
    /// More for programs, as name and value.
    pub(crate) metadata: Vec<(&'static str, String)>,
}

impl Refusal {
    /// Words for a reason.
    pub(crate) fn new(reason: Reason, words: impl Into<String>) -> Self {
        Self {
            reason,
            words: words.into(),
            metadata: Vec::new(),
        }
    }

    /// A malformed argument.
    pub(crate) fn invalid(field: &'static str, problem: &str) -> Self {
        Self {
            reason: Reason::ArgumentInvalid,
            words: format!("{field}: {problem}"),
            metadata: vec![("field", field.to_owned())],
        }
    }

    /// An argument that is larger than it may be; `limit` says how large that is, with its unit.
    pub(crate) fn too_long(field: &str, limit: &str) -> Self {
        Self::new(
            Reason::LimitExceeded,
            format!("{field}: has at most {limit}"),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Refusal {}

impl<E: Explain> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self {
            reason: error.reason(),
            words: error.to_string(),
            metadata: error.metadata(),
        }
    }
}
