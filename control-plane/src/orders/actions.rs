//! Kinds of action: what each checks before it is ordered, and how it is told in a line. One file for each kind.

pub(crate) mod command;
mod file_read;

use muster_proto::v1::{Action, action::Kind};

use crate::model::Refusal;

/// Refuses an action that no host could carry out.
pub(crate) fn check(action: &Action) -> Result<(), Refusal> {
    match &action.kind {
        Some(Kind::Command(command)) => command::check(command),
        Some(Kind::FileRead(read)) => file_read::check(read),
        None => Err(Refusal::invalid(
            "action",
            "is missing; set action.command or action.file_read",
        )),
    }
}

/// What is done, in a few words that hold no argument: for notices.
pub(crate) fn summary(action: &Action) -> String {
    match &action.kind {
        Some(Kind::Command(command)) => command::summary(command),
        Some(Kind::FileRead(_)) => "the reading of a file".to_owned(),
        None => String::new(),
    }
}
