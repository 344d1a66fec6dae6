//! Who signed: a signature, a certificate for its key, and the authority that everybody trusts.

use std::time::Duration;

use muster_runtime::tls::{PeerCertificate, SpiffeId};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, KeyUsage, anchor_from_trusted_cert,
    aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA384},
};

/// What certifies a signer of heads: "time stamping" (1.3.6.1.5.5.7.3.8), the usage for binding a hash to a time. No end
/// of a TLS connection takes such a certificate.
const TIME_STAMPING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SignatureError(pub(super) String);

fn failed(cause: &str, error: String) -> SignatureError {
    SignatureError(format!("{cause}: {error}"))
}

/// The certificate that signs, and the others.
fn split<C: AsRef<[u8]>>(chain: &[C]) -> Result<(CertificateDer<'_>, &[C]), SignatureError> {
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or_else(|| SignatureError("there is no certificate".to_owned()))?;
    Ok((CertificateDer::from(leaf.as_ref()), intermediates))
}

fn read<'a>(leaf: &'a CertificateDer<'_>) -> Result<EndEntityCert<'a>, SignatureError> {
    EndEntityCert::try_from(leaf)
        .map_err(|error| failed("the certificate cannot be read", error.to_string()))
}

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A control plane signs where its log stands.
    Head,
    /// A host signs what became of a task, alone, as agents did that did not know better.
    Receipt,
    /// A host signs what became of tasks, together.
    Receipts,
}

impl Purpose {
    fn domain(self) -> &'static [u8] {
        match self {
            Self::Head => b"muster audit head 1\n",
            Self::Receipt => b"muster receipt 1\n",
            Self::Receipts => b"muster receipts 1\n",
        }
    }

    fn usage(self) -> KeyUsage {
        match self {
            Self::Head => KeyUsage::required(TIME_STAMPING),
            Self::Receipt | Self::Receipts => KeyUsage::client_auth(),
        }
    }

    /// The bytes that are signed for this purpose.
    pub fn message(self, text: &[u8]) -> Vec<u8> {
        [self.domain(), text].concat()
    }

    /// Checks that one of these authorities certified whoever signed `text`, for this purpose and at this time (Unix
    /// milliseconds). Returns who that is.
    pub fn check(
        self,
        text: &[u8],
        signature: &[u8],
        chain: &[impl AsRef<[u8]>],
        authorities: &[CertificateDer<'_>],
        time: i64,
    ) -> Result<SpiffeId, SignatureError> {
        self.check_signature(text, signature, chain)?;
        self.check_chain(chain, authorities, time)
    }

    /// Checks that the first certificate's key signed `text` for this purpose. Whether that certificate counts is for
    /// [`Purpose::check_chain`] to say.
    pub fn check_signature(
        self,
        text: &[u8],
        signature: &[u8],
        chain: &[impl AsRef<[u8]>],
    ) -> Result<(), SignatureError> {
        let (leaf, _) = split(chain)?;
        read(&leaf)?
            .verify_signature(ECDSA_P256_SHA256, &self.message(text), signature)
            .map_err(|_| SignatureError("the signature is not the certificate's".to_owned()))
    }

    /// Checks that one of these authorities certified the first certificate for this purpose, at this time (Unix
    /// milliseconds). Returns whom it names.
    pub fn check_chain(
        self,
        chain: &[impl AsRef<[u8]>],
        authorities: &[CertificateDer<'_>],
        time: i64,
    ) -> Result<SpiffeId, SignatureError> {
        let (leaf, intermediates) = split(chain)?;
        let certificate = read(&leaf)?;
        let anchors: Vec<_> = authorities
            .iter()
            .filter_map(|authority| anchor_from_trusted_cert(authority).ok())
            .collect();
        let intermediates: Vec<_> = intermediates
            .iter()
            .map(|certificate| CertificateDer::from(certificate.as_ref()))
            .collect();
        let time = Duration::from_millis(u64::try_from(time).unwrap_or_default());
        certificate
            .verify_for_usage(
                &[ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA384],
                &anchors,
                &intermediates,
                UnixTime::since_unix_epoch(time),
                self.usage(),
                None,
                None,
            )
            .map_err(|error| {
                let words = "none of these authorities vouches for it; what was signed before a rotation needs the \
                             earlier authority in the same file";
                failed(words, error.to_string())
            })?;
        PeerCertificate::from_der(&leaf)
            .map(|peer| peer.spiffe_id)
            .map_err(|error| failed("the certificate names nobody", error.to_string()))
    }
}
