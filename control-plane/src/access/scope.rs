//! What a token narrows its principal to.
//!
//! A scope never gives a right: it only leaves out what the principal may do besides.

use crate::model::Kind;

/// A part of what may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Look at hosts and their instructions.
    FleetRead,
    /// Change hosts' names, labels and instructions.
    FleetWrite,
    /// Look at jobs, tasks and their output.
    JobsRead,
    /// Run commands: create, write to and cancel jobs of that kind.
    JobsRun,
    /// Read files: create and cancel jobs of that kind.
    FilesRead,
    /// Everything else: tokens, principals, locks, policy.
    Admin,
}

impl Scope {
    /// Every scope.
    pub(crate) const ALL: [Self; 6] = [
        Self::FleetRead,
        Self::FleetWrite,
        Self::JobsRead,
        Self::JobsRun,
        Self::FilesRead,
        Self::Admin,
    ];

    /// Those that let a token create and cancel jobs, each of some kinds.
    pub(crate) const TO_RUN: &[Self] = &[Self::JobsRun, Self::FilesRead];

    /// As tokens name it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::FleetRead => "fleet:read",
            Self::FleetWrite => "fleet:write",
            Self::JobsRead => "jobs:read",
            Self::JobsRun => "jobs:run",
            Self::FilesRead => "files:read",
            Self::Admin => "admin",
        }
    }

    /// The one that jobs of a kind need to be created or cancelled.
    pub(crate) fn to_run(kind: Kind) -> Self {
        match kind {
            Kind::Command => Self::JobsRun,
            Kind::FileRead => Self::FilesRead,
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.text() == text)
    }
}

/// A scope that there is not.
#[derive(Debug, thiserror::Error)]
#[error(
    "scopes: there is no scope {0:?}; there are fleet:read, fleet:write, jobs:read, jobs:run, files:read and admin"
)]
pub(crate) struct ScopeError(String);

/// The scopes of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scopes(Option<u8>);

impl Scopes {
    /// All that the principal may.
    pub(crate) const ALL: Self = Self(None);

    /// Scopes that somebody asks for; none means all.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, ScopeError> {
        if let Some(wrong) = texts.iter().find(|text| Scope::named(text).is_none()) {
            return Err(ScopeError(wrong.chars().take(80).collect()));
        }
        Ok(Self::stored(texts))
    }

    /// Scopes as they are stored; none means all. One that this version does not know reaches nowhere.
    pub(crate) fn stored(texts: &[String]) -> Self {
        match texts {
            [] => Self::ALL,
            texts => Self::only(texts.iter().map(String::as_str)),
        }
    }

    /// These scopes and no others, even if there are none. What is not a scope of ours reaches nowhere.
    pub(crate) fn only<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let known = texts.filter_map(Scope::named);
        Self(Some(known.fold(0, |bits, scope| bits | scope.bit())))
    }

    /// Whether it reaches as far as one of these; none are within reach of every token.
    pub(crate) fn reaches_any(self, scopes: &[Scope]) -> bool {
        scopes.is_empty() || scopes.iter().any(|scope| self.reaches(*scope))
    }

    /// Whether it reaches that far.
    pub(crate) fn reaches(self, scope: Scope) -> bool {
        self.0.is_none_or(|bits| bits & scope.bit() != 0)
    }

    /// Whether it leaves nothing out.
    pub(crate) fn is_all(self) -> bool {
        self.0.is_none()
    }

    /// Their names; none if it leaves nothing out.
    pub(crate) fn texts(self) -> Vec<String> {
        let named = |scope: &Scope| self.0.is_some() && self.reaches(*scope);
        let scopes = Scope::ALL.iter().filter(|scope| named(scope));
        scopes.map(|scope| scope.text().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_scope_leaves_out_all_others() {
        let scopes = Scopes::parse(&texts(&["jobs:run", "fleet:read"])).unwrap();
        let reached: Vec<_> = Scope::ALL
            .into_iter()
            .filter(|scope| scopes.reaches(*scope))
            .collect();
        assert_eq!(reached, [Scope::FleetRead, Scope::JobsRun]);
        assert_eq!(scopes.texts(), ["fleet:read", "jobs:run"]);
        assert!(Scopes::parse(&texts(&["jobs:walk"])).is_err());
    }

    #[test]
    fn who_may_run_commands_may_not_read_files_by_that_and_the_other_way_round() {
        let (runs, reads) = (
            Scopes::only(["jobs:run"].into_iter()),
            Scopes::only(["files:read"].into_iter()),
        );
        for kind in Kind::ALL {
            let scope = Scope::to_run(kind);
            assert!(Scope::TO_RUN.contains(&scope), "{kind:?}");
            assert_eq!(runs.reaches(scope), kind == Kind::Command);
            assert_eq!(reads.reaches(scope), kind == Kind::FileRead);
        }
        assert!(runs.reaches_any(Scope::TO_RUN) && reads.reaches_any(Scope::TO_RUN));
        let looks = Scopes::only(["jobs:read"].into_iter());
        assert!(!looks.reaches_any(Scope::TO_RUN) && looks.reaches_any(&[]));
    }

    #[test]
    fn no_scope_is_all_and_an_unknown_one_is_nothing() {
        assert!(Scopes::parse(&[]).unwrap().is_all());
        assert!(Scopes::ALL.reaches(Scope::Admin));
        let tomorrow = Scopes::stored(&texts(&["files:touch"]));
        assert!(Scope::ALL.iter().all(|scope| !tomorrow.reaches(*scope)));
        assert!(!tomorrow.is_all());
        let nothing = Scopes::only("openid profile".split(' '));
        assert!(!nothing.reaches(Scope::FleetRead));
    }
}
