//! What a task can do on this host. Each kind of action has a file below, which says all that the rest of the agent has
//! to know of it; nothing outside of this room asks which kind a task is.
//!
//! The matches in [`of`] and [`work`] name every kind of the contract: one that is added there does not compile before it
//! is here.

mod command;
mod file_read;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use muster_proto::{
    agent::v1::SealedOffer,
    v1::{Action, Command, Mode, OutputLimit, Reason, action},
};
use prost::Message as _;

use crate::process::{Outcome, Place, StartError};

/// How long a tree may take to end politely where nobody says otherwise.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// What holds of all tasks of one kind.
#[derive(Debug)]
pub(crate) struct Declared {
    /// As capabilities, policies and words have it: the name of the kind's field in the contract.
    pub(crate) name: &'static str,
    /// The lowest mode in which there is any use in it.
    pub(crate) needs: Mode,
    /// It starts a program that was asked for, so that a policy's `[programs]` speak of it.
    pub(crate) starts_programs: bool,
}

impl Declared {
    /// Its name, if it is what a worker does.
    pub(crate) fn worker(&self) -> Option<&'static str> {
        (!self.starts_programs).then_some(self.name)
    }
}

/// Every kind.
pub(crate) const ALL: &[&Declared] = &[&command::DECLARED, &file_read::DECLARED];

/// What one task wants, whatever kind of action that is.
pub(crate) trait Kind {
    /// What holds of all tasks of the kind.
    fn declared(&self) -> &'static Declared;

    /// The user whom it is done as; empty means the agent's own.
    fn user(&self) -> &str;

    /// How long it may take; `None` means no limit.
    fn timeout(&self) -> Option<Duration>;

    /// How long its tree may take to end politely.
    fn grace(&self) -> Duration {
        GRACE
    }

    /// What becomes of output that is more than is kept.
    fn output_limit(&self) -> OutputLimit {
        OutputLimit::default()
    }

    /// The variables that its process gets over those of the host; `None` for what has no use for any.
    fn environment(&mut self) -> Option<&mut BTreeMap<String, String>> {
        None
    }

    /// What a supervisor is to start. Refuses arguments that make no sense.
    fn work(self: Box<Self>) -> Result<Work, StartError>;
}

/// What a supervisor is to start.
pub(crate) enum Work {
    /// A program, whose `argv` is not empty; there is no script.
    Program(Box<Command>),
    /// Work of our own: the action itself, which [`work`] knows.
    Worker(Box<Action>),
}

/// What this action is; `None` if this agent does not know its kind.
pub(crate) fn of(action: Action) -> Option<Box<dyn Kind>> {
    match action.kind? {
        action::Kind::Command(command) => Some(Box::new(command)),
        action::Kind::FileRead(read) => Some(Box::new(read)),
    }
}

/// The kinds of action that this program has workers for.
pub(crate) fn workers() -> impl Iterator<Item = &'static str> {
    ALL.iter().filter_map(|kind| kind.worker())
}

/// Does what a worker is forked for. It may use memory, files and the processor, and nothing that another thread could
/// hold.
pub(crate) fn work(action: &Action, place: &Place<'_>) -> Outcome {
    let unknown = |words| Outcome::refused(Reason::ActionUnsupported, words);
    match &action.kind {
        Some(action::Kind::FileRead(read)) => file_read::read(read, place),
        Some(action::Kind::Command(_)) => unknown("a command is a program, and no work of ours"),
        None => unknown("this agent does not know this kind of action; update it"),
    }
}

/// What becomes of the output of a task that was offered so.
pub(crate) fn output_limit(sealed_offer: &Bytes) -> OutputLimit {
    offered(sealed_offer).map_or_else(OutputLimit::default, |kind| kind.output_limit())
}

/// How long the tree of a task that was offered so may take to end politely.
pub(crate) fn grace(sealed_offer: &Bytes) -> Duration {
    offered(sealed_offer).map_or(GRACE, |kind| kind.grace())
}

fn offered(sealed_offer: &Bytes) -> Option<Box<dyn Kind>> {
    let sealed = SealedOffer::decode(sealed_offer.clone()).ok()?;
    of(sealed.action?)
}

#[cfg(test)]
mod tests {
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_kind_of_the_contract_has_its_name_here() {
        let set = FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut messages = set.file.iter().flat_map(|file| &file.message_type);
        let action = messages.find(|message| message.name() == "Action").unwrap();
        let kinds: Vec<&str> = action.field.iter().map(|field| field.name()).collect();
        let ours: Vec<&str> = ALL.iter().map(|kind| kind.name).collect();
        assert_eq!(ours, kinds);
    }
}
