//! Which hosts: parse and match. Pure.
//!
//! ```text
//! selector    = "all" | hosts | requirements
//! hosts       = word {"," word}                     each a host's name or id; each must exist
//! requirements = requirement {"," requirement}      all must hold
//! requirement = key ("=" | "==") value | key "!=" value | key "=*" | "!" key
//!             | key ("in" | "notin") "(" value {"," value} ")"
//! ```
//!
//! Requirements are Kubernetes' label selectors over labels and facts; as there, `!=`, `notin` and
//! `!key` hold for a host that lacks the key. That a key exists is written `key=*`, because a bare
//! word is a host. Bare words and requirements do not mix.

use crate::model::FactKey;

mod parse;

pub(crate) use parse::ParseError;

/// What a requirement asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Fact(FactKey),
    Label(String),
}

/// What must hold of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

/// One thing that must hold of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub(crate) key: Key,
    pub(crate) condition: Condition,
}

/// Which hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    All,
    /// Names or ids, in the order given. Who resolves them refuses one that does not exist.
    Hosts(Vec<String>),
    Requirements(Vec<Requirement>),
}

/// What a selector looks at.
pub(crate) trait Subject {
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
    /// The value of a fact; `None` while the host has not reported it.
    fn fact(&self, key: FactKey) -> Option<&str>;
}

impl Selector {
    /// Reads a selector.
    pub(crate) fn parse(text: &str) -> Result<Self, ParseError> {
        parse::selector(text)
    }

    /// Whether the host is meant. A list of hosts is matched by name and id.
    pub(crate) fn matches(&self, subject: &impl Subject) -> bool {
        match self {
            Self::All => true,
            Self::Hosts(words) => [FactKey::Name, FactKey::Id]
                .into_iter()
                .filter_map(|key| subject.fact(key))
                .any(|value| words.iter().any(|word| word == value)),
            Self::Requirements(all) => all.iter().all(|one| one.holds(subject)),
        }
    }
}

impl Requirement {
    fn holds(&self, subject: &impl Subject) -> bool {
        let value = match &self.key {
            Key::Fact(key) => subject.fact(*key),
            Key::Label(key) => subject.label(key),
        };
        match (&self.condition, value) {
            (Condition::Exists, value) => value.is_some(),
            (Condition::Absent, value) => value.is_none(),
            (Condition::In(values), Some(value)) => values.iter().any(|one| one == value),
            (Condition::In(_), None) => false,
            (Condition::NotIn(values), Some(value)) => values.iter().all(|one| one != value),
            (Condition::NotIn(_), None) => true,
        }
    }
}

#[cfg(test)]
mod tests;
