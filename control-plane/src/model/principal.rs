//! Whoever asks: a kind and a name.

use std::{fmt, str::FromStr};

/// A kind of principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PrincipalKind {
    /// A person.
    Operator,
    /// An AI client.
    Ai,
    /// An MCP gateway.
    Gateway,
    /// A host's agent; the name is the host id.
    Host,
    /// A script.
    Automation,
}

impl PrincipalKind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Operator,
        Self::Ai,
        Self::Gateway,
        Self::Host,
        Self::Automation,
    ];

    /// As it is written before the "/".
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Ai => "ai",
            Self::Gateway => "gateway",
            Self::Host => "host",
            Self::Automation => "automation",
        }
    }
}

/// Whoever asks. Reads and prints as "operator/ada".
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Principal {
    pub(crate) kind: PrincipalKind,
    pub(crate) name: String,
}

impl Principal {
    /// Names one of a kind.
    pub(crate) fn new(kind: PrincipalKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.text(), self.name)
    }
}

/// A text is no principal.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no principal; one looks like \"operator/ada\"")]
pub(crate) struct PrincipalError(String);

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        text.split_once('/')
            .and_then(|(kind, name)| {
                let kind = PrincipalKind::ALL.into_iter().find(|k| k.text() == kind)?;
                (!name.is_empty()).then(|| Self::new(kind, name))
            })
            .ok_or_else(|| PrincipalError(text.chars().take(80).collect()))
    }
}
