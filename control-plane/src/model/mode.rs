//! How far tasks may reach: modes and sockets, in order. Whoever lowers takes the lesser of two; nothing here raises.

use std::{fmt, str::FromStr};

use muster_proto::v1;

/// How far a task may reach. In order: each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Nothing starts.
    Disabled,
    /// Writes nowhere but to its scratch directory.
    ReadOnly,
    /// Writes only beneath the configured roots.
    Edit,
    /// Whatever its user may do.
    Unrestricted,
}

/// Which sockets a task may open. In order: each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum NetworkAccess {
    /// None.
    None,
    /// Some addresses and ports.
    List,
    /// All.
    All,
}

/// A text is no mode.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mode is read-only, edit, unrestricted or disabled")]
pub(crate) struct ModeError;

impl Mode {
    /// Every mode, the lowest first.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [
        Self::Disabled,
        Self::ReadOnly,
        Self::Edit,
        Self::Unrestricted,
    ];

    /// As it is written everywhere.
    pub(crate) fn text(self) -> &'static str {
        mode_out(Some(self)).text()
    }

    /// Lowered to `limit`, if there is one.
    pub(crate) fn lowered(self, limit: Option<Self>) -> Self {
        limit.map_or(self, |limit| self.min(limit))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        v1::Mode::from_text(text).and_then(mode_in).ok_or(ModeError)
    }
}

impl NetworkAccess {
    /// As policies see it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::List => "list",
            Self::All => "all",
        }
    }
}

/// A mode of the contract; `None` if it says nothing.
pub(crate) fn mode_in(mode: v1::Mode) -> Option<Mode> {
    match mode {
        v1::Mode::Unspecified => None,
        v1::Mode::ReadOnly => Some(Mode::ReadOnly),
        v1::Mode::Edit => Some(Mode::Edit),
        v1::Mode::Unrestricted => Some(Mode::Unrestricted),
        v1::Mode::Disabled => Some(Mode::Disabled),
    }
}

/// A mode on the wire.
pub(crate) fn mode_out(mode: Option<Mode>) -> v1::Mode {
    match mode {
        None => v1::Mode::Unspecified,
        Some(Mode::ReadOnly) => v1::Mode::ReadOnly,
        Some(Mode::Edit) => v1::Mode::Edit,
        Some(Mode::Unrestricted) => v1::Mode::Unrestricted,
        Some(Mode::Disabled) => v1::Mode::Disabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowering_never_widens() {
        for mode in Mode::ALL {
            assert_eq!(mode.lowered(None), mode);
            for limit in Mode::ALL {
                let lowered = mode.lowered(Some(limit));
                assert!(lowered <= mode && lowered <= limit, "{mode} by {limit}");
                assert!(lowered == mode || lowered == limit);
            }
        }
    }

    #[test]
    fn modes_are_in_order_and_read_back() {
        assert!(Mode::ALL.is_sorted());
        for mode in Mode::ALL {
            assert_eq!(mode.text().parse(), Ok(mode));
        }
        assert_eq!("root".parse::<Mode>(), Err(ModeError));
        assert!(
            NetworkAccess::None < NetworkAccess::List && NetworkAccess::List < NetworkAccess::All
        );
    }
}
