//! An expired certificate and its key still prove who somebody is, for a while.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    digest,
    signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey},
};
use muster_runtime::tls::{PeerCertificate, SpiffeKind, signed_by_authority};
use rand::Rng as _;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::FromDer as _;

use super::{Enrolled, Enrollment, EnrollmentError};
use crate::{
    authority::RequestedKey,
    clock::now,
    model::{Principal, PrincipalKind},
};

/// How long after its end a certificate still proves something: the longest month off, and a day.
const GRACE: Duration = Duration::from_secs(32 * 24 * 3600);

/// How long a nonce lives, milliseconds.
const NONCE_TTL_MS: i64 = 60_000;

/// What is signed, before the nonce.
const CONTEXT: &[u8] = b"muster-enroll-v1\0";

/// Separates seals of nonces from others by the same key.
const NONCE_CONTEXT: &[u8] = b"muster-enroll-nonce-v1\0";

/// Bytes of a nonce before its seal: when it ends, and random ones.
const NONCE_BODY: usize = 8 + 16;

/// An old certificate, and that its key is still held.
pub(crate) struct OldKey<'a> {
    /// DER.
    pub(crate) certificate: &'a [u8],
    /// Empty asks for one.
    pub(crate) nonce: &'a [u8],
    pub(crate) signature: &'a [u8],
}

/// What comes of an old key.
#[derive(Debug)]
pub(crate) enum OldKeyOutcome {
    /// Sign this.
    Nonce(Vec<u8>),
    /// The identity.
    Enrolled(Enrolled),
}

impl Enrollment {
    /// Lets a host, gateway or operator in again by its old key.
    pub(crate) async fn rejoin(
        &self,
        old: OldKey<'_>,
        request: &[u8],
    ) -> Result<OldKeyOutcome, EnrollmentError> {
        let key = RequestedKey::from_request(request)?;
        let certificate = CertificateDer::from(old.certificate);
        let facts = PeerCertificate::from_der(&certificate)
            .map_err(|_| EnrollmentError::Proof("the certificate is malformed"))?;
        // Judged at a moment when it was valid: that it has expired is why it is here.
        let then = facts.not_after - Duration::from_secs(1);
        // One that was dropped since still proves who had a certificate of it.
        let known = self.0.authority.recognized();
        let signed = |by| signed_by_authority(&certificate, by, then).is_ok();
        if !known.iter().any(signed) {
            return Err(EnrollmentError::Proof(
                "another authority signed the certificate; join anew with a join token",
            ));
        }
        if SystemTime::now() > facts.not_after + GRACE {
            return Err(EnrollmentError::Proof(
                "the certificate expired more than 32 days ago; join anew with a join token",
            ));
        }
        if !self.is_fresh(old.nonce, old.certificate) {
            return Ok(OldKeyOutcome::Nonce(self.nonce(old.certificate)));
        }
        let message = [CONTEXT, old.nonce, b"\0", request].concat();
        verify(old.certificate, &message, old.signature)?;
        let kind = match facts.spiffe_id.kind {
            SpiffeKind::Host => PrincipalKind::Host,
            SpiffeKind::Gateway => PrincipalKind::Gateway,
            // A person's certificate lives no longer by this: it only changes the authority.
            SpiffeKind::Operator if SystemTime::now() <= facts.not_after => PrincipalKind::Operator,
            SpiffeKind::Operator => {
                return Err(EnrollmentError::Proof(
                    "an operator whose certificate has expired logs in again with a new join string",
                ));
            }
            SpiffeKind::ControlPlane => {
                return Err(EnrollmentError::Proof(
                    "only hosts, gateways and operators get certificates this way",
                ));
            }
        };
        if facts.spiffe_id.trust_domain != self.0.authority.trust_domain() {
            return Err(EnrollmentError::Proof(
                "the certificate belongs to another trust domain",
            ));
        }
        let known = self
            .known(&Principal::new(kind, facts.spiffe_id.name))
            .await?;
        let enrolled = self.certify(&known, &key).await?;
        tracing::info!(identity = %enrolled.id, "{} came back by its old key", enrolled.name);
        Ok(OldKeyOutcome::Enrolled(enrolled))
    }

    fn nonce(&self, certificate: &[u8]) -> Vec<u8> {
        let mut nonce = (now() + NONCE_TTL_MS).to_be_bytes().to_vec();
        nonce.extend_from_slice(&rand::rng().random::<[u8; 16]>());
        let seal = self.0.sealer.seal(&sealed(&nonce, certificate));
        nonce.extend_from_slice(&seal);
        nonce
    }

    fn is_fresh(&self, nonce: &[u8], certificate: &[u8]) -> bool {
        let Some((body, seal)) = nonce.split_at_checked(NONCE_BODY) else {
            return false;
        };
        let Some((end, _)) = body.split_first_chunk() else {
            return false;
        };
        self.0.sealer.holds(&sealed(body, certificate), seal) && i64::from_be_bytes(*end) > now()
    }
}

fn sealed(body: &[u8], certificate: &[u8]) -> Vec<u8> {
    let certificate = digest::digest(&digest::SHA256, certificate);
    [NONCE_CONTEXT, body, certificate.as_ref()].concat()
}

fn verify(certificate: &[u8], message: &[u8], signature: &[u8]) -> Result<(), EnrollmentError> {
    let (_, x509) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|_| EnrollmentError::Proof("the certificate is malformed"))?;
    let key = &x509.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(message, signature)
        .map_err(|_| EnrollmentError::Proof("the signature is not by the certificate's key"))
}
