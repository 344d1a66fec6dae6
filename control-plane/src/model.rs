//! The nouns that everybody shares, and what follows from them alone.
//!
//! They point nowhere: no room is looked up here, nothing is read or written. Rooms keep them, change them and pass them
//! on; the store writes them down and gives them back.

pub(crate) mod approval;
mod counts;
pub(crate) mod entry;
mod host;
mod kind;
mod mode;
mod names;
mod order;
mod output;
mod policies;
mod principal;
pub(crate) mod state;
mod task;

pub(crate) use self::{
    counts::{Counts, JobState},
    entry::{Entry, EntryText},
    host::{Ceiling, FactKey, Facts, Instruction, Labels, Lock, Network, NewHost, etag},
    kind::{ANY_JOB, Kind},
    mode::{Mode, ModeError, NetworkAccess, mode_in, mode_out},
    names::{NameError, check_labels, check_name, make_name},
    order::{Order, Summary},
    output::OutputSize,
    policies::Files,
    principal::{Principal, PrincipalError, PrincipalKind},
    state::{NotAllowed, State, Withdrawal},
    task::{Ending, Fence, Hold, Task},
};
