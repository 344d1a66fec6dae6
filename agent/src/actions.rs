//! What a task can do on this host. Each kind of action has a file below, which says all that the rest of the agent has
//! to know of it; nothing outside of this room asks which kind a task is.
//!
//! The match in [`of`] names every kind of the contract: one that is added there does not compile before it is here.

mod command;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use muster_proto::{
    agent::v1::SealedOffer,
    v1::{Action, Command, Mode, OutputLimit, action},
};
use prost::Message as _;

use crate::process::StartError;

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

/// Every kind.
pub(crate) const ALL: &[&Declared] = &[&command::DECLARED];

/// What one task wants, whatever kind of action that is.
pub(crate) trait Kind {
    /// What holds of all tasks of the kind.
    fn declared(&self) -> &'static Declared;

    /// Whom it is done as; empty means the agent's own user.
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
}

/// What this action is; `None` if this agent does not know its kind.
pub(crate) fn of(action: Action) -> Option<Box<dyn Kind>> {
    match action.kind? {
        action::Kind::Command(command) => Some(Box::new(command)),
        action::Kind::FileRead(_) => None,
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
