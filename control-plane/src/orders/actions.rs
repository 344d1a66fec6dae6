//! Kinds of action: what each checks before it is ordered, and how it is told in a line. One file for each kind.

pub(crate) mod command;

use muster_proto::v1::{Action, action::Kind};

use crate::model::Refusal;

/// Refuses an action that no host could carry out.
pub(crate) fn check(action: &Action) -> Result<(), Refusal> {
    match &action.kind {
        Some(Kind::Command(command)) => command::check(command),
        None => Err(Refusal::invalid("action", "is missing; set action.command")),
    }
}

/// What is done, in a few words that hold no argument: for notices.
pub(crate) fn summary(action: &Action) -> String {
    match &action.kind {
        Some(Kind::Command(command)) => command::summary(command),
        None => String::new(),
    }
}
