//! A receipt for each task that is over: written down with its end, and signed once that was reported, for many at once.

use std::sync::Arc;

use bytes::Bytes;
use muster_client::{
    audit::{Hash, LEAVES_MAX, ReceiptSigner, digest_of_result, leaf_hash, sha256},
    identity::Identity,
};
use muster_proto::{
    agent::v1::{SealedOffer, SignedReceipts, task_state},
    ids::TaskId,
    v1::Receipt,
};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use prost_types::Timestamp;
use tokio::sync::Notify;

/// The key of this host, as it stands. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Receipts(Arc<RwLock<Option<Arc<ReceiptSigner>>>>);

/// What a receipt says of a task besides how it ended.
pub(crate) struct TaskEnd<'a> {
    pub(crate) id: TaskId,
    pub(crate) sealed_offer: &'a Bytes,
    /// What is known of its start, if it started.
    pub(crate) started: Option<task_state::Started>,
    pub(crate) output: Option<Hash>,
}

impl Receipts {
    /// From now on with the key of this identity.
    pub(crate) fn set(&self, identity: &Identity) {
        let signer = ReceiptSigner::of(identity);
        if signer.is_none() {
            tracing::error!("the key of this host signs no receipts");
        }
        *self.0.write() = signer.map(Arc::new);
    }

    /// The receipt of a task that ended so, serialized and not signed yet; empty while there is no key.
    pub(crate) fn unsigned(&self, task: &TaskEnd<'_>, ended: &task_state::Ended) -> Bytes {
        match self.0.read().is_some() {
            true => receipt(task, ended).encode_to_vec().into(),
            false => Bytes::new(),
        }
    }

    /// Signs for receipts with these hashes; `None` while there is no key.
    pub(crate) fn sign(
        &self,
        host_id: &str,
        time: Timestamp,
        leaf_hashes: &[Hash],
    ) -> Option<SignedReceipts> {
        let signer = self.0.read().clone()?;
        signer.sign(host_id, time, leaf_hashes)
    }
}

/// What is to be signed of a task that ended so.
pub(crate) fn receipt(task: &TaskEnd<'_>, ended: &task_state::Ended) -> Receipt {
    let offer = SealedOffer::decode(Bytes::clone(task.sealed_offer)).unwrap_or_default();
    let started = task.started.as_ref();
    Receipt {
        task_id: task.id.to_string(),
        job_id: offer.job_id,
        host_id: offer.host_id,
        offer_digest: sha256(task.sealed_offer),
        state: ended.state,
        reason: ended.reason,
        exit_code: ended.exit_code,
        signal: ended.signal.clone(),
        start_time: started.and_then(|started| started.time),
        end_time: ended.time,
        run_time: ended.run_time,
        output_digest: task
            .output
            .map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(&digest)),
        confinement: started
            .and_then(|started| started.confinement.as_ref())
            .map_or_else(Bytes::new, |applied| applied.encode_to_vec().into()),
        result_digest: digest_of_result(&ended.result),
    }
}

/// Receipts that were reported in a session, or are about to be, and are not signed for yet.
// Held to add and to take.
#[derive(Default)]
pub(crate) struct Unsigned {
    hashes: Mutex<Vec<Hash>>,
    added: Notify,
}

impl Unsigned {
    /// The receipt of this end is to be signed for, if it has one.
    pub(crate) fn add(&self, ended: &task_state::Ended) {
        if ended.unsigned_receipt.is_empty() {
            return;
        }
        let hash = leaf_hash(&ended.unsigned_receipt);
        self.hashes.lock().push(hash);
        self.added.notify_one();
    }

    /// Returns once there is one.
    pub(crate) async fn some(&self) {
        while self.hashes.lock().is_empty() {
            self.added.notified().await;
        }
    }

    /// As many as may be signed for at once; empty if there is none.
    pub(crate) fn take(&self) -> Vec<Hash> {
        let mut hashes = self.hashes.lock();
        let count = hashes.len().min(LEAVES_MAX);
        hashes.drain(..count).collect()
    }
}
