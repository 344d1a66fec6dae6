//! Receipts: a host signs what became of a task.

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use muster_proto::v1::{Receipt, SignedReceipt};
use muster_runtime::tls::SpiffeKind;
use prost::Message as _;
use rcgen::{KeyPair, SigningKey as _};
use rustls_pki_types::CertificateDer;

use super::{Hash, Purpose, SignatureError};
use crate::identity::Identity;

/// Of more output than this there is no digest, bytes: it would cost more than the rest of the way that output takes.
pub const OUTPUT_DIGESTED_MAX: u64 = 1 << 20;

/// Streams of a task: standard output, standard error, terminal.
const STREAMS: usize = 3;

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(digest(&SHA256, bytes).as_ref())
}

/// The digest of what a task wrote, taken while it comes.
pub struct OutputDigest {
    streams: [Context; STREAMS],
    bytes: u64,
    complete: bool,
}

impl Default for OutputDigest {
    fn default() -> Self {
        Self {
            streams: std::array::from_fn(|_| Context::new(&SHA256)),
            bytes: 0,
            complete: true,
        }
    }
}

impl OutputDigest {
    /// These bytes of a stream come next: 0 is standard output, 1 standard error, 2 the terminal.
    pub fn add(&mut self, stream: usize, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.bytes > OUTPUT_DIGESTED_MAX {
            self.complete = false;
        } else if self.complete
            && let Some(stream) = self.streams.get_mut(stream)
        {
            stream.update(bytes);
        }
    }

    /// Something was not seen: there will be no digest.
    pub fn miss(&mut self) {
        self.complete = false;
    }

    /// SHA-256 over the three streams' SHA-256 in a row; `None` if there was too much, or not all was seen.
    pub fn digest(&self) -> Option<Hash> {
        if !self.complete {
            return None;
        }
        let mut whole = Context::new(&SHA256);
        for stream in &self.streams {
            whole.update(stream.clone().finish().as_ref());
        }
        whole.finish().as_ref().try_into().ok()
    }
}

/// A host's key, and the certificate for it.
pub struct ReceiptSigner {
    key: KeyPair,
    certificate: Bytes,
}

impl ReceiptSigner {
    /// The signer of an identity; `None` if its key cannot be used.
    pub fn of(identity: &Identity) -> Option<Self> {
        Some(Self {
            key: KeyPair::try_from(identity.key().serialize_der()).ok()?,
            certificate: Bytes::copy_from_slice(identity.chain().first()?),
        })
    }

    /// Signs a receipt. The authority is left out of the chain: whoever verifies it knows that one.
    pub fn sign(&self, receipt: &Receipt) -> Option<SignedReceipt> {
        let receipt = Bytes::from(receipt.encode_to_vec());
        let signature = self.key.sign(&Purpose::Receipt.message(&receipt)).ok()?;
        Some(SignedReceipt {
            receipt,
            signature: signature.into(),
            certificate_chain: vec![self.certificate.clone()],
        })
    }
}

/// Reads what a receipt says. Whether its signature counts is for [`check_receipt`] to say.
pub fn read_receipt(signed: &SignedReceipt) -> Result<Receipt, SignatureError> {
    Receipt::decode(Bytes::clone(&signed.receipt))
        .map_err(|error| SignatureError(format!("it cannot be read: {error}")))
}

/// Reads a receipt whose host signed it, by the word of one of these authorities.
pub fn check_receipt(
    signed: &SignedReceipt,
    authorities: &[CertificateDer<'_>],
) -> Result<Receipt, SignatureError> {
    let receipt = read_receipt(signed)?;
    let time = receipt.end_time.unwrap_or_default();
    let signer = Purpose::Receipt.check(
        &signed.receipt,
        &signed.signature,
        &signed.certificate_chain,
        authorities,
        time.seconds.saturating_mul(1000) + i64::from(time.nanos) / 1_000_000,
    )?;
    if signer.kind == SpiffeKind::Host && signer.name == receipt.host_id {
        return Ok(receipt);
    }
    Err(SignatureError(format!("{signer} signed it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_each_stream_whatever_the_pieces() {
        let mut once = OutputDigest::default();
        once.add(0, b"hello");
        once.add(1, b"world");
        let mut pieces = OutputDigest::default();
        pieces.add(1, b"wor");
        pieces.add(0, b"hel");
        pieces.add(0, b"lo");
        pieces.add(1, b"ld");
        assert_eq!(once.digest(), pieces.digest());
        let mut swapped = OutputDigest::default();
        swapped.add(1, b"hello");
        swapped.add(0, b"world");
        assert_ne!(once.digest(), swapped.digest());
    }

    #[test]
    fn of_too_much_and_of_what_was_missed_there_is_none() {
        let mut digest = OutputDigest::default();
        let half = vec![0; OUTPUT_DIGESTED_MAX as usize / 2];
        digest.add(0, &half);
        digest.add(1, &half);
        assert!(digest.digest().is_some());
        digest.add(0, b"x");
        assert_eq!(digest.digest(), None);
        let mut digest = OutputDigest::default();
        digest.miss();
        assert_eq!(digest.digest(), None);
    }
}
