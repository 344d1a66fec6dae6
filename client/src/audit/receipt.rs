//! Receipts: a host signs what became of tasks, many at once.

use bytes::Bytes;
use muster_proto::{
    agent::v1::SignedReceipts,
    v1::{Receipt, ReceiptRoot, SignedReceipt},
};
use muster_runtime::tls::SpiffeKind;
use prost::Message as _;
use prost_types::Timestamp;
use rcgen::{KeyPair, SigningKey as _};
use rustls_pki_types::CertificateDer;

use super::{Hash, Purpose, SignatureError, tree};
use crate::identity::Identity;

/// Receipts that a host signs for at once.
pub const LEAVES_MAX: usize = 1024;

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

    /// Signs for receipts with these hashes, which are at least one and at most [`LEAVES_MAX`], in the name of this host.
    /// The authority is left out of the chain: whoever verifies it knows that one.
    pub fn sign(
        &self,
        host_id: &str,
        time: Timestamp,
        leaf_hashes: &[Hash],
    ) -> Option<SignedReceipts> {
        let root = ReceiptRoot {
            host_id: host_id.to_owned(),
            time: Some(time),
            leaf_count: i64::try_from(leaf_hashes.len()).ok()?,
            root_hash: Bytes::copy_from_slice(&tree::root(leaf_hashes)),
        };
        let root = Bytes::from(root.encode_to_vec());
        let signature = self.key.sign(&Purpose::Receipts.message(&root)).ok()?;
        Some(SignedReceipts {
            root,
            signature: signature.into(),
            certificate_chain: vec![self.certificate.clone()],
            leaf_hashes: leaf_hashes.concat().into(),
        })
    }
}

/// Receipts that were signed together, as whoever keeps them has them.
pub struct SignedTogether {
    signed: SignedReceipts,
    leaves: Vec<Hash>,
}

impl SignedTogether {
    /// Reads what a host sent. Whether the signature counts is for [`SignedTogether::check_root`] and
    /// [`Purpose::check_chain`] to say.
    pub fn read(signed: SignedReceipts) -> Result<Self, SignatureError> {
        let (leaves, rest) = signed.leaf_hashes.as_chunks::<32>();
        if leaves.is_empty() || leaves.len() > LEAVES_MAX || !rest.is_empty() {
            let bytes = signed.leaf_hashes.len();
            let words = format!("{bytes} bytes are no hashes of 1 to {LEAVES_MAX} receipts");
            return Err(SignatureError(words));
        }
        let leaves = leaves.to_vec();
        Ok(Self { signed, leaves })
    }

    /// As it came.
    pub fn signed(&self) -> &SignedReceipts {
        &self.signed
    }

    /// The hashes of the receipts, in the order of the tree.
    pub fn leaves(&self) -> &[Hash] {
        &self.leaves
    }

    /// Reads the root, which must be over these leaves and signed by the first certificate's key.
    pub fn check_root(&self) -> Result<ReceiptRoot, SignatureError> {
        let signed = &self.signed;
        Purpose::Receipts.check_signature(
            &signed.root,
            &signed.signature,
            &signed.certificate_chain,
        )?;
        let root = read_root(&signed.root)?;
        if root.root_hash != tree::root(&self.leaves)[..] || count(&root) != self.leaves.len() {
            return Err(SignatureError(
                "the root is not that of its receipts".to_owned(),
            ));
        }
        Ok(root)
    }

    /// The receipt at `index`, with all that proves it.
    pub fn prove(&self, index: usize, receipt: Bytes) -> SignedReceipt {
        let path = tree::path(&self.leaves, index);
        SignedReceipt {
            receipt,
            signature: self.signed.signature.clone(),
            certificate_chain: self.signed.certificate_chain.clone(),
            root: self.signed.root.clone(),
            leaf_index: i64::try_from(index).unwrap_or(i64::MAX),
            inclusion_path: path
                .iter()
                .map(|hash| Bytes::copy_from_slice(hash))
                .collect(),
        }
    }
}

/// Whether the host has not signed the receipt yet.
pub fn is_pending(signed: &SignedReceipt) -> bool {
    signed.signature.is_empty() && !signed.receipt.is_empty()
}

/// Reads what a receipt says. Whether its signature counts is for [`check_receipt`] to say.
pub fn read_receipt(signed: &SignedReceipt) -> Result<Receipt, SignatureError> {
    Receipt::decode(Bytes::clone(&signed.receipt)).map_err(|error| unreadable("it", &error))
}

/// Reads a receipt whose host signed it, by the word of one of these authorities.
pub fn check_receipt(
    signed: &SignedReceipt,
    authorities: &[CertificateDer<'_>],
) -> Result<Receipt, SignatureError> {
    let receipt = read_receipt(signed)?;
    if is_pending(signed) {
        return Err(SignatureError("the host has not signed it yet".to_owned()));
    }
    let (purpose, text, time) = match signed.root.is_empty() {
        true => (Purpose::Receipt, &signed.receipt, receipt.end_time),
        false => (Purpose::Receipts, &signed.root, included(signed)?),
    };
    let signer = purpose.check(
        text,
        &signed.signature,
        &signed.certificate_chain,
        authorities,
        millis(time),
    )?;
    if signer.kind == SpiffeKind::Host && signer.name == receipt.host_id {
        return Ok(receipt);
    }
    Err(SignatureError(format!("{signer} signed it")))
}

/// Checks that the receipt is under its root, and says when that was signed.
fn included(signed: &SignedReceipt) -> Result<Option<Timestamp>, SignatureError> {
    let root = read_root(&signed.root)?;
    let path = signed.inclusion_path.iter();
    let path: Option<Vec<Hash>> = path.map(|hash| hash[..].try_into().ok()).collect();
    let index = u64::try_from(signed.leaf_index).unwrap_or(u64::MAX);
    let leaf = tree::leaf_hash(&signed.receipt);
    let reached = path.and_then(|path| tree::root_by(leaf, index, count(&root) as u64, &path));
    match reached.is_some_and(|reached| root.root_hash == reached[..]) {
        true => Ok(root.time),
        false => Err(SignatureError(
            "it is not among those that were signed".to_owned(),
        )),
    }
}

fn read_root(root: &Bytes) -> Result<ReceiptRoot, SignatureError> {
    ReceiptRoot::decode(Bytes::clone(root)).map_err(|error| unreadable("its root", &error))
}

fn count(root: &ReceiptRoot) -> usize {
    usize::try_from(root.leaf_count).unwrap_or_default()
}

fn unreadable(what: &str, error: &prost::DecodeError) -> SignatureError {
    SignatureError(format!("{what} cannot be read: {error}"))
}

/// Unix milliseconds.
fn millis(time: Option<Timestamp>) -> i64 {
    let time = time.unwrap_or_default();
    time.seconds.saturating_mul(1000) + i64::from(time.nanos) / 1_000_000
}
