//! Who may do what, on which hosts, and how far.

mod decision;
mod mode;

#[allow(unused_imports)] // Taken up by the doors together with the engine.
pub(crate) use self::decision::{Decision, Verdict};
pub(crate) use self::mode::{Mode, NetworkAccess};
