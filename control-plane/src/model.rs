//! The nouns that everybody shares, and what follows from them alone.
//!
//! They point nowhere: no room is looked up here, nothing is read or written. Rooms keep them, change them and pass them
//! on; the store writes them down and gives them back.

mod action;
pub(crate) mod approval;
mod counts;
pub(crate) mod dispatch;
pub(crate) mod entry;
mod explain;
mod host;
mod kind;
mod mode;
mod names;
pub(crate) mod order;
mod output;
mod policies;
mod principal;
mod receipt;
pub(crate) mod redaction;
mod refusal;
pub(crate) mod state;
mod task;

pub(crate) use self::{
    action::{Action, Values},
    counts::{Counts, JobState},
    entry::{Entry, EntryText},
    explain::Explain,
    host::{Ceiling, FactKey, Facts, Instruction, Labels, Lock, Network, NewHost, etag},
    kind::{ANY_JOB, Kind},
    mode::{Mode, ModeError, NetworkAccess, mode_in, mode_out},
    names::{NameError, check_labels, check_name, make_name},
    order::{Order, Summary},
    output::{GAP_CAUSE, OutputSize, Stream},
    policies::Files,
    principal::{Principal, PrincipalError, PrincipalKind},
    receipt::{ReceiptRecord, SignedReceipts, Signing},
    refusal::Refusal,
    state::{NotAllowed, State, Withdrawal},
    task::{Ending, Fence, Hold, Task},
};
