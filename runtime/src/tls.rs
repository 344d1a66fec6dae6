//! TLS 1.3 with our own acceptor and connector.
//!
//! The control plane's listener asks for a client certificate and goes on without one: what a caller may do is
//! decided for each call. Sessions are never resumed, on either end: a resumed session would keep the identity
//! that it began with, past an enrolment, a renewal or a lock.

mod client;
mod connection;
mod crowd;
mod server;
mod spiffe;
mod web;

use std::{
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    sign::CertifiedKey,
};

pub use client::{ClientTls, ConnectError, connect, connect_lazily};
pub use connection::{Peer, PeerCertificate, TlsConnection};
pub use server::{AcceptLimits, Admission, BACKLOG, ServerTls, bind, listen};
pub use spiffe::{SpiffeId, SpiffeIdError, SpiffeKind};
pub use web::WebTls;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key is malformed, or they do not belong together.
    #[error("the certificate or its key cannot be used: {0}")]
    Identity(#[source] rustls::Error),
    /// An authority's certificate is malformed, or there is none.
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
    /// The certificate carries no SPIFFE id of ours.
    #[error("the certificate names nobody: {0}")]
    SpiffeId(String),
}

/// The one provider of cryptography: aws-lc, with the hybrid post-quantum key exchange preferred.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// Whether `authority` signed a client certificate that was valid `then`, the past included.
pub fn signed_by_authority(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    then: SystemTime,
) -> Result<(), TlsError> {
    let since = then
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let roots = root_store(std::slice::from_ref(authority))?;
    rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| TlsError::Authority(error.to_string()))?
        .verify_client_cert(certificate, &[], UnixTime::since_unix_epoch(since))
        .map(drop)
        .map_err(TlsError::Identity)
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(TlsError::Identity)
}

fn root_store(authorities: &[CertificateDer<'_>]) -> Result<Arc<rustls::RootCertStore>, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone().into_owned())
            .map_err(|error| TlsError::Authority(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Authority("there is none".to_owned()));
    }
    Ok(Arc::new(roots))
}
