//! Who is presented to clients, and which of them are let in.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::Admission;
use crate::tls::{PeerCertificate, TlsError, provider, root_store};

/// The certificate that is presented, exchangeable while connections are open.
#[derive(Debug)]
pub(super) struct ServerIdentity(pub(super) ArcSwap<CertifiedKey>);

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Verifies a client certificate and then asks whether its identity is let in.
pub(super) struct Gatekeeper {
    /// Exchangeable while connections are open.
    pub(super) chain: ArcSwap<Arc<dyn ClientCertVerifier>>,
    pub(super) admission: Arc<dyn Admission>,
}

pub(super) fn chain_verifier(
    authorities: &[CertificateDer<'_>],
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(root_store(authorities)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Authority(error.to_string()))
}

impl fmt::Debug for Gatekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gatekeeper")
    }
}

impl ClientCertVerifier for Gatekeeper {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a client has one certificate for us, and the authorities change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .load()
            .verify_client_cert(end_entity, intermediates, now)?;
        let certificate = PeerCertificate::from_der(end_entity).map_err(|_| {
            rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        if self.admission.admits(&certificate.spiffe_id) {
            Ok(verified)
        } else {
            Err(CertificateError::Revoked.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.load().supported_verify_schemes()
    }
}
