//! Kinds of action: what each checks before it is ordered, and how it is told in a line. One file for each kind.

pub(crate) mod command;
mod file_read;

use muster_proto::v1::{Action, action::Kind as Wire};

use crate::model::{Kind, Refusal};

/// The kind of an action; refused if no host could carry it out.
pub(super) fn check(action: &Action) -> Result<Kind, Refusal> {
    match &action.kind {
        Some(Wire::Command(command)) => command::check(command)?,
        Some(Wire::FileRead(read)) => file_read::check(read)?,
        None => {}
    }
    Kind::of(action).ok_or_else(|| {
        Refusal::invalid(
            "action",
            "is missing; set action.command or action.file_read",
        )
    })
}

/// What is done, in a few words that hold no argument: for notices.
pub(super) fn summary(action: &Action) -> String {
    match &action.kind {
        Some(Wire::Command(command)) => command::summary(command),
        Some(Wire::FileRead(_)) => "the reading of a file".to_owned(),
        None => String::new(),
    }
}
