//! What is kept of the receipts that hosts give for tasks.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use muster_client::audit::{Hash, SignedTogether, fold, leaf_hash, unfold};
use muster_proto::{
    ids::HostId,
    v1::{Receipt, SignedReceipt},
};
use prost::Message as _;

/// A task's receipt, as it stands beside the task. The first three tags are those of `SignedReceipt`, which versions before
/// this one kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReceiptRecord {
    /// The receipt; empty once it is folded.
    #[prost(bytes = "bytes", tag = "1")]
    receipt: Bytes,
    /// Over this receipt alone, by an agent that signs so; empty otherwise.
    #[prost(bytes = "bytes", tag = "2")]
    signature: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    certificate_chain: Vec<Bytes>,
    /// Names the receipts that it was signed with; 0 if it was not.
    #[prost(int64, tag = "10")]
    batch: i64,
    /// Its place among them.
    #[prost(uint32, tag = "11")]
    index: u32,
    /// The receipt without what the task says too.
    #[prost(bytes = "bytes", tag = "12")]
    folded: Bytes,
    /// What an agent sent that is no receipt.
    #[prost(bytes = "bytes", tag = "13")]
    unreadable: Bytes,
}

/// How a receipt was signed.
pub(crate) enum Signing {
    /// There is none.
    None,
    /// Not yet.
    Pending,
    /// Alone, or it is no receipt at all.
    Alone(Bytes),
    /// With others.
    Together {
        /// Names them.
        batch: i64,
        /// Its place among them.
        index: usize,
    },
}

impl ReceiptRecord {
    /// A receipt that is not signed yet.
    pub(crate) fn pending(receipt: Bytes) -> Self {
        Self {
            receipt,
            ..Self::default()
        }
    }

    /// What an agent sent that signs each receipt alone.
    pub(crate) fn alone(sent: Bytes) -> Self {
        match SignedReceipt::decode(sent.clone()) {
            Ok(signed) if !signed.signature.is_empty() => Self {
                receipt: signed.receipt,
                signature: signed.signature,
                certificate_chain: signed.certificate_chain,
                ..Self::default()
            },
            _ => Self {
                unreadable: sent,
                ..Self::default()
            },
        }
    }

    /// A receipt that was signed with others. `expected`: what the task says of it.
    pub(crate) fn together(receipt: &Bytes, expected: &Receipt, batch: i64, index: usize) -> Self {
        Self {
            batch,
            index: u32::try_from(index).unwrap_or(u32::MAX),
            folded: fold(receipt, expected),
            ..Self::default()
        }
    }

    /// As it is kept beside a task.
    pub(crate) fn read(kept: &Bytes) -> Self {
        Self::decode(kept.clone()).unwrap_or_else(|_| Self {
            unreadable: kept.clone(),
            ..Self::default()
        })
    }

    /// As it is kept beside a task; empty without a receipt.
    pub(crate) fn write(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// How it was signed.
    pub(crate) fn signing(&self) -> Signing {
        if self.batch != 0 {
            Signing::Together {
                batch: self.batch,
                index: self.index as usize,
            }
        } else if !self.unreadable.is_empty() {
            Signing::Alone(self.unreadable.clone())
        } else if !self.signature.is_empty() {
            let signed = SignedReceipt {
                receipt: self.receipt.clone(),
                signature: self.signature.clone(),
                certificate_chain: self.certificate_chain.clone(),
                ..SignedReceipt::default()
            };
            Signing::Alone(signed.encode_to_vec().into())
        } else if self.receipt.is_empty() {
            Signing::None
        } else {
            Signing::Pending
        }
    }

    /// The receipt itself, given what the task says of it; `None` if that is something else by now.
    pub(crate) fn receipt(&self, expected: impl FnOnce() -> Receipt) -> Option<Bytes> {
        match self.folded.is_empty() {
            true => Some(self.receipt.clone()),
            false => unfold(&self.folded, &expected()),
        }
    }
}

/// Receipts that a host has signed together.
pub(crate) struct SignedReceipts {
    /// When it came, Unix microseconds; later than any before.
    pub(crate) batch: i64,
    /// The host that it came from.
    pub(crate) host_id: HostId,
    /// As it came.
    pub(crate) together: SignedTogether,
    /// What speaks against the signature; empty where nothing does.
    pub(crate) doubt: String,
    /// Somebody writes it down, or has.
    pub(crate) taken: AtomicBool,
}

impl SignedReceipts {
    /// The receipt at `index`, with its proof; `None` if that is another one.
    pub(crate) fn prove(&self, index: usize, receipt: Bytes) -> Option<SignedReceipt> {
        let hash: Hash = leaf_hash(&receipt);
        let known = self.together.leaves().get(index) == Some(&hash);
        known.then(|| self.together.prove(index, receipt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_before_is_read_as_it_was() {
        let signed = SignedReceipt {
            receipt: Bytes::from_static(b"\x0a\x03t-1"),
            signature: Bytes::from_static(b"signature"),
            certificate_chain: vec![Bytes::from_static(b"certificate")],
            ..SignedReceipt::default()
        };
        let kept = Bytes::from(signed.encode_to_vec());
        for record in [
            ReceiptRecord::read(&kept),
            ReceiptRecord::alone(kept.clone()),
        ] {
            assert!(matches!(record.signing(), Signing::Alone(bytes) if bytes == kept));
            assert_eq!(record.write(), kept);
        }
    }

    #[test]
    fn no_agent_makes_a_record_of_ours() {
        let forged = ReceiptRecord {
            batch: 7,
            folded: Bytes::from_static(b"x"),
            ..ReceiptRecord::default()
        };
        let forged = forged.write();
        let kept = ReceiptRecord::alone(forged.clone());
        assert!(matches!(kept.signing(), Signing::Alone(bytes) if bytes == forged));
        let rubbish = Bytes::from_static(b"\xff\xff");
        let kept = ReceiptRecord::alone(rubbish.clone());
        assert!(matches!(kept.signing(), Signing::Alone(bytes) if bytes == rubbish));
        assert!(matches!(
            ReceiptRecord::read(&rubbish).signing(),
            Signing::Alone(_)
        ));
        assert!(matches!(
            ReceiptRecord::read(&Bytes::new()).signing(),
            Signing::None
        ));
    }
}
