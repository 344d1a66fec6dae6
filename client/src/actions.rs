//! Kinds of action as clients show them. A kind says all that they ask of it in one file of its own, and the two matches
//! here are exhaustive, so that the compiler names what a new kind still lacks.

mod command;
mod file_read;

use muster_proto::v1::{Action, TaskResult, action::Kind, task_result};

/// Stands for an action of a later version.
const UNKNOWN: &str = "an action that this version does not know";

/// What clients ask of a kind of action. Texts hold what callers wrote, whatever characters that has: whoever shows them
/// escapes what could steer a terminal.
pub trait ActionKind {
    /// Its name in the contract, as "file_read".
    fn name(&self) -> &'static str;

    /// What is done, as a person would type it. A script keeps its lines.
    fn summary(&self) -> String;

    /// What is done, every value in quotes, so that no blank passes for the end of one: for who approves or confirms it.
    fn quoted(&self) -> String;

    /// What else belongs to it, every value in quotes and a blank before each part: directory, user, environment, input.
    fn circumstances(&self) -> String;

    /// It has a terminal.
    fn has_terminal(&self) -> bool {
        false
    }

    /// The kind of the terminal that it believes to have, as its TERM.
    fn term(&self) -> Option<&str> {
        None
    }

    /// Something can be put in while it runs.
    fn takes_input(&self) -> bool {
        false
    }
}

/// The kind of an action; `None` for one of a later version.
pub fn kind(action: Option<&Action>) -> Option<&dyn ActionKind> {
    Some(match action?.kind.as_ref()? {
        Kind::Command(command) => command,
        Kind::FileRead(file) => file,
    })
}

/// What an action does, as a person would type it.
pub fn summary(action: Option<&Action>) -> String {
    kind(action).map_or_else(|| UNKNOWN.to_owned(), ActionKind::summary)
}

/// What an action does, every value in quotes.
pub fn quoted(action: Option<&Action>) -> String {
    kind(action).map_or_else(|| UNKNOWN.to_owned(), ActionKind::quoted)
}

/// All of an action, every value in quotes, as somebody confirms it.
pub fn exactly(action: Option<&Action>) -> String {
    kind(action).map_or_else(
        || UNKNOWN.to_owned(),
        |kind| kind.quoted() + &kind.circumstances(),
    )
}

/// What a task found out, in a line; `None` if it has no result, or one of a later version.
pub fn result(result: Option<&TaskResult>) -> Option<String> {
    Some(match result?.kind.as_ref()? {
        task_result::Kind::FileRead(read) => file_read::result(read),
    })
}

/// An argument as a shell would take it.
pub fn shell_quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+^".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

/// A value in quotes, as JSON has it.
fn json_quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_of_a_later_version_is_named_as_that() {
        for action in [None, Some(&Action::default())] {
            assert!(kind(action).is_none());
            assert_eq!(summary(action), UNKNOWN);
            assert_eq!(exactly(action), UNKNOWN);
        }
        assert_eq!(result(None), None);
        assert_eq!(result(Some(&TaskResult::default())), None);
    }
}
