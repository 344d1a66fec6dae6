//! Why a control plane cannot start, or cannot do what its machine asks of it.

use std::{io, net::SocketAddr, path::PathBuf};

use muster_client::identity::IdentityError;
use muster_runtime::tls::TlsError;

use crate::{
    access::AccessError,
    approvals::webhook,
    authority::AuthorityError,
    enrollment::EnrollmentError,
    output::OutputError,
    store::{OpenError, StoreError},
};

/// Why a control plane cannot start, or cannot do what its machine asks of it.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Settings do not fit together.
    #[error("{0}")]
    Config(String),
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on: {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why, and what to do.
        cause: String,
    },
    /// The ledger cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A key file cannot be read or made.
    #[error("{}: {error}", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The authority cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A credential cannot be read or written.
    #[error(transparent)]
    Credential(#[from] IdentityError),
    /// What was asked for cannot be had; says why.
    #[error("{0}")]
    Refused(String),
    /// The connections broke down.
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

macro_rules! refused {
    ($($error:ty),*) => {$(
        impl From<$error> for ServerError {
            fn from(error: $error) -> Self {
                Self::Refused(error.to_string())
            }
        }
    )*};
}

refused!(
    StoreError,
    AccessError,
    EnrollmentError,
    OutputError,
    webhook::WebhookError
);
