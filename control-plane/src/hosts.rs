//! The inventory: labels, facts, instruction, presence.
//!
//! Hosts live in memory, so that a selector over ten thousand of them takes microseconds; each change
//! is in the ledger before it shows here. Heartbeats change a host's pulse only and are written to
//! the ledger once a minute.

mod edit;
mod host;
mod inventory;
mod presence;

pub(crate) use self::{
    edit::{Edit, EditError},
    host::Host,
    inventory::{Bar, Inventory, SelectError},
    presence::{Presence, PresenceLimits},
};

#[cfg(test)]
mod tests;
