//! What a host has signed in a session, and who waits for it: whichever comes first waits for the other.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use muster_client::audit::{Hash, LEAVES_MAX};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::model::SignedReceipts;

/// Hashes that wait for their receipts: an honest host signs for what it has reported.
const FOUND_MAX: usize = 4 * LEAVES_MAX;

/// From so many that wait on, those are let go whose report is over.
const WAITING_LOOKED_AT: usize = 256;

/// The signature for a receipt: that of these receipts, among which it has this place.
pub(crate) type Signature = (Arc<SignedReceipts>, usize);

/// The signatures of one session.
// Held for a look only.
#[derive(Default)]
pub(crate) struct Signatures(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    found: HashMap<Hash, Signature>,
    /// Those hashes, the oldest first; some may be taken by now.
    order: VecDeque<Hash>,
    waiting: HashMap<Hash, oneshot::Sender<Signature>>,
}

impl Signatures {
    /// The host has signed.
    pub(crate) fn add(&self, signed: &Arc<SignedReceipts>) {
        let mut inner = self.0.lock();
        for (index, hash) in signed.together.leaves().iter().enumerate() {
            let signature = (Arc::clone(signed), index);
            let unclaimed = match inner.waiting.remove(hash) {
                Some(waiting) => waiting.send(signature).err(),
                None => Some(signature),
            };
            if let Some(signature) = unclaimed {
                inner.keep(*hash, signature);
            }
        }
    }

    /// The signature for a receipt with this hash, once there is one. Of two that wait for the same, the later one gets it;
    /// the other never does, as its report was superseded.
    pub(crate) async fn of(&self, hash: Hash) -> Option<Signature> {
        let waiting = {
            let mut inner = self.0.lock();
            if let Some(signature) = inner.found.remove(&hash) {
                return Some(signature);
            }
            let (sender, receiver) = oneshot::channel();
            if inner.waiting.len() >= WAITING_LOOKED_AT {
                inner.waiting.retain(|_, sender| !sender.is_closed());
            }
            inner.waiting.insert(hash, sender);
            receiver
        };
        waiting.await.ok()
    }
}

impl Inner {
    fn keep(&mut self, hash: Hash, signature: Signature) {
        if self.found.insert(hash, signature).is_none() {
            self.order.push_back(hash);
        }
        while self.order.len() > FOUND_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.found.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_client::audit::SignedTogether;
    use muster_proto::{agent::v1, ids::HostId};

    use super::*;

    fn signed(batch: i64, leaves: &[Hash]) -> Arc<SignedReceipts> {
        let together = SignedTogether::read(v1::SignedReceipts {
            leaf_hashes: leaves.concat().into(),
            ..v1::SignedReceipts::default()
        });
        Arc::new(SignedReceipts {
            batch,
            host_id: HostId::from_bytes(&[1; 32]),
            together: together.unwrap(),
            doubt: String::new(),
            taken: false.into(),
        })
    }

    #[tokio::test]
    async fn a_signature_and_its_receipt_find_each_other_whichever_comes_first() {
        let signatures = Signatures::default();
        signatures.add(&signed(1, &[[1; 32], [2; 32]]));
        let (first, index) = signatures.of([2; 32]).await.unwrap();
        assert_eq!((first.batch, index), (1, 1));
        let (found, ()) = tokio::join!(signatures.of([3; 32]), async {
            signatures.add(&signed(2, &[[3; 32]]));
        });
        assert_eq!(found.unwrap().0.batch, 2);
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_let_go() {
        let signatures = Signatures::default();
        let hash = |number: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            hash
        };
        for number in 0..2 * FOUND_MAX {
            signatures.add(&signed(1, &[hash(number)]));
        }
        assert_eq!(signatures.0.lock().found.len(), FOUND_MAX);
        assert!(signatures.of(hash(2 * FOUND_MAX - 1)).await.is_some());
    }
}
