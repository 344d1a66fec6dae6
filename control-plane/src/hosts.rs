//! The inventory: labels, facts, instruction, presence.
//!
//! Hosts live in memory, so that a selector over ten thousand of them takes microseconds; each change
//! is in the ledger before it shows here. Heartbeats change a host's pulse only and are written to
//! the ledger once a minute.

mod edit;
mod host;
mod inventory;
mod names;
mod presence;

pub(crate) use self::{
    edit::{Edit, EditError},
    host::{Ceiling, Facts, Host, Instruction, Labels, Lock, Network},
    inventory::{Bar, Inventory, NewHost, SelectError},
    names::{NameError, check_labels, check_name, make_name},
    presence::{Presence, PresenceLimits},
};

#[cfg(test)]
mod tests;
