//! Signs a receipt for each task that is over.

use std::sync::Arc;

use bytes::Bytes;
use muster_client::{
    audit::{Hash, ReceiptSigner, sha256},
    identity::Identity,
};
use muster_proto::{
    agent::v1::{SealedOffer, task_state},
    ids::TaskId,
    v1::Receipt,
};
use parking_lot::RwLock;
use prost::Message as _;

/// The key of this host, as it stands. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Receipts(Arc<RwLock<Option<Arc<ReceiptSigner>>>>);

/// What a receipt says of a task besides how it ended.
pub(crate) struct TaskEnd<'a> {
    pub(crate) id: TaskId,
    pub(crate) host_id: &'a str,
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

    /// A signed receipt for a task that ended so, serialized; empty while there is no key.
    pub(crate) fn sign(&self, task: &TaskEnd<'_>, ended: &task_state::Ended) -> Bytes {
        let Some(signer) = self.0.read().clone() else {
            return Bytes::new();
        };
        let offer = SealedOffer::decode(Bytes::clone(task.sealed_offer)).unwrap_or_default();
        let receipt = Receipt {
            task_id: task.id.to_string(),
            job_id: offer.job_id,
            host_id: task.host_id.to_owned(),
            offer_digest: sha256(task.sealed_offer),
            state: ended.state,
            reason: ended.reason,
            exit_code: ended.exit_code,
            signal: ended.signal.clone(),
            start_time: task.started.as_ref().and_then(|started| started.time),
            end_time: ended.time,
            run_time: ended.run_time,
            output_digest: task
                .output
                .map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(&digest)),
            confinement: task
                .started
                .as_ref()
                .and_then(|started| started.confinement.as_ref())
                .map_or_else(Bytes::new, |applied| applied.encode_to_vec().into()),
            result_digest: match ended.result.is_empty() {
                true => Bytes::new(),
                false => sha256(&ended.result),
            },
        };
        signer
            .sign(&receipt)
            .map_or_else(Bytes::new, |signed| signed.encode_to_vec().into())
    }
}
