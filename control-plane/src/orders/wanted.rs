//! What somebody wants done, checked as far as words go: where, what, how far, until when.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::v1::Action;

use crate::selector::Selector;

/// What is asked for. Times are milliseconds.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Chosen by who asks: the same id and digest name the same job.
    pub(crate) request_id: Arc<str>,
    /// SHA-256 of the request, whatever the order of its maps.
    pub(crate) digest: [u8; 32],
    /// The selector as it was given.
    pub(crate) selector_text: Arc<str>,
    /// Which hosts.
    pub(crate) selector: Selector,
    /// What each task does.
    pub(crate) action: Action,
    /// What a person confirmed; empty if nobody did.
    pub(crate) confirmed_digest: Bytes,
    /// A serialized `muster.v1.Confinement`; empty if nothing was asked for.
    pub(crate) confinement: Bytes,
    /// Why; may be empty.
    pub(crate) reason: Arc<str>,
    /// How long hosts may take to start.
    pub(crate) start_deadline: i64,
    /// How long a silent host keeps its task from being lost.
    pub(crate) lost_after: i64,
}
