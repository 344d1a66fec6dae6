//! The kinds of action: how each is called, which right it needs, and how far it has to reach.

use muster_proto::v1::{Action, action};

use super::Mode;

/// What a task does. Whoever adds a kind gives it its row in [`Kind::row`]; policy, approvals and the audit log call it as
/// that says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Runs a program.
    Command,
    /// Reads one file.
    FileRead,
}

/// What is to be said of a kind.
struct Row {
    /// As the contract, the audit log and `context.action` of policies call it.
    name: &'static str,
    /// What policies permit or forbid, and what a grant is for.
    right: &'static str,
    /// The mode that is enough for it; `None` for what reaches as far as it may.
    enough: Option<Mode>,
}

/// The right of every job before there were kinds, when every job ran a command.
pub(crate) const ANY_JOB: &str = "job.create";

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 2] = [Self::Command, Self::FileRead];

    const fn row(self) -> Row {
        match self {
            Self::Command => Row {
                name: "command",
                right: "command.run",
                enough: None,
            },
            Self::FileRead => Row {
                name: "file_read",
                right: "file.read",
                enough: Some(Mode::ReadOnly),
            },
        }
    }

    /// The kind of an action; `None` if it says none that this version knows.
    pub(crate) fn of(action: &Action) -> Option<Self> {
        Some(match action.kind.as_ref()? {
            action::Kind::Command(_) => Self::Command,
            action::Kind::FileRead(_) => Self::FileRead,
        })
    }

    /// Its name, as "file_read".
    pub(crate) const fn name(self) -> &'static str {
        self.row().name
    }

    /// The right that it needs, as "file.read".
    pub(crate) const fn right(self) -> &'static str {
        self.row().right
    }

    /// The kind whose right is called so. What was said of [`ANY_JOB`] when there were only commands is about commands.
    pub(crate) fn of_right(text: &str) -> Option<Self> {
        match text {
            ANY_JOB => Some(Self::Command),
            _ => Self::ALL.into_iter().find(|kind| kind.right() == text),
        }
    }

    /// The mode that is enough for it; `None` for what reaches as far as it may.
    pub(crate) const fn enough(self) -> Option<Mode> {
        self.row().enough
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{Command, FileRead};

    use super::*;

    #[test]
    fn kinds_are_told_apart_and_found_by_their_rights() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "in order, and each once");
            assert_eq!(Kind::of_right(kind.right()), Some(kind));
        }
        assert_eq!(Kind::of_right(ANY_JOB), Some(Kind::Command));
        assert_eq!(Kind::of_right("job.read"), None);
        let of = |kind| Kind::of(&Action { kind });
        let command = action::Kind::Command(Command::default());
        let read = action::Kind::FileRead(FileRead::default());
        assert_eq!(of(Some(command)), Some(Kind::Command));
        assert_eq!(of(Some(read)), Some(Kind::FileRead));
        assert_eq!(of(None), None);
    }
}
