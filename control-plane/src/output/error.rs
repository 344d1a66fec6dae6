//! Why output could not be taken or read.

use std::{io, path::PathBuf};

use muster_proto::v1::Reason;

use super::OutOfOrder;
use crate::model::Explain;

/// Why output could not be taken or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// It does not follow what was taken before.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    /// Nothing is taken now. What was taken before is kept and readable.
    #[error("the output store takes nothing: {0}")]
    Unavailable(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The index could not be read or written.
    #[error("{path}: {source}")]
    Index {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
}

impl Explain for OutputError {
    fn reason(&self) -> Reason {
        match self {
            Self::OutOfOrder(OutOfOrder::Sequence { .. })
            | Self::OutOfOrder(OutOfOrder::Offset { .. })
            | Self::OutOfOrder(OutOfOrder::Length { .. }) => Reason::ArgumentInvalid,
            Self::Unavailable(_) => Reason::LedgerUnavailable,
            Self::File { .. } | Self::Index { .. } => Reason::Internal,
        }
    }
}
