//! What hosts sign about their tasks, as it is kept and shown.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use muster_client::audit::{OutputDigest, sha256};
use muster_proto::{
    ids::TaskId,
    v1::{Receipt, SignedReceipt, task},
};
use parking_lot::Mutex;
use prost::Message as _;

use super::{Jobs, TaskRef};
use crate::{
    clock::now,
    model::{ReceiptRecord, SignedReceipts, Signing, order::record::OrderRecord},
    store::{StoreError, receipts as rows},
    times,
};

/// Signed receipts that stay at hand: whoever asks for a receipt mostly does so soon.
const RECENT_MAX: usize = 64;

/// The receipts that came last.
#[derive(Default)]
pub(super) struct Recent {
    newest: AtomicI64,
    // Held for a look only.
    receipts: Mutex<VecDeque<Arc<SignedReceipts>>>,
}

impl Recent {
    /// The newest that the ledger has.
    pub(super) fn new(newest: i64) -> Self {
        Self {
            newest: newest.into(),
            ..Self::default()
        }
    }

    fn find(&self, batch: i64) -> Option<Arc<SignedReceipts>> {
        let receipts = self.receipts.lock();
        receipts.iter().find(|one| one.batch == batch).cloned()
    }

    fn add(&self, signed: &Arc<SignedReceipts>) {
        let mut receipts = self.receipts.lock();
        if receipts.iter().any(|one| one.batch == signed.batch) {
            return;
        }
        if receipts.len() == RECENT_MAX {
            receipts.pop_front();
        }
        receipts.push_back(Arc::clone(signed));
    }
}

impl Jobs {
    /// A name for receipts that were signed together: the time, Unix microseconds, and later than any before.
    pub(crate) fn next_batch(&self) -> i64 {
        let time = now().saturating_mul(1000);
        let next = |last: i64| Some(time.max(last.saturating_add(1)));
        let newest = &self.0.recent.newest;
        match newest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => time.max(last.saturating_add(1)),
        }
    }

    /// The digest of the offer that this task was, or would be, sealed in.
    pub(crate) fn offer_digest(&self, task: &TaskRef) -> Bytes {
        let order = task.job.terms();
        let plane = &self.0.store.control_plane_id;
        let offer = task.look(|kept| OrderRecord::offer(plane, &order, task.ordinal, kept));
        sha256(&offer.encode_to_vec())
    }

    /// The receipt that what is kept of a task lets expect, but for the host's own times and the digest of what it wrote, if
    /// it wrote anything.
    fn expected_receipt(&self, task: &TaskRef) -> Receipt {
        let offer_digest = self.offer_digest(task);
        let job_id = task.job.order.job_id.to_string();
        task.look(|kept| {
            let size = kept.output_size;
            let wrote = size.stdout_bytes + size.stderr_bytes + size.dropped_bytes > 0;
            Receipt {
                task_id: kept.task_id.to_string(),
                job_id,
                host_id: kept.host_id.to_string(),
                offer_digest,
                state: task::State::from(kept.state).into(),
                reason: kept.reason.into(),
                exit_code: kept.exit_code,
                signal: kept.signal.clone(),
                start_time: None,
                end_time: None,
                run_time: kept.run_time.map(times::duration_us),
                output_digest: match wrote {
                    true => Bytes::new(),
                    false => Bytes::copy_from_slice(&OutputDigest::of_nothing()),
                },
                confinement: kept.confinement.clone(),
                result_digest: match kept.result.is_empty() {
                    true => Bytes::new(),
                    false => sha256(&kept.result),
                },
            }
        })
    }

    /// The receipt that is kept of a task, serialized, signed or not; `None` if there is none, or it cannot be put together.
    pub(crate) fn kept_receipt(&self, task: &TaskRef) -> Option<Bytes> {
        let record = ReceiptRecord::read(&task.look(|task| task.receipt.clone()));
        record
            .receipt(|| self.expected_receipt(task))
            .filter(|receipt| !receipt.is_empty())
    }

    /// The host has signed the receipt of a task that is over, with others.
    pub(crate) fn receipt_signed(
        &self,
        task: &TaskRef,
        receipt: &Bytes,
        (signed, index): &(Arc<SignedReceipts>, usize),
    ) {
        let expected = self.expected_receipt(task);
        let record = ReceiptRecord::together(receipt, &expected, signed.batch, *index);
        task.job.set_receipt(task.ordinal, record.write());
        self.0.recent.add(signed);
        self.0.recorder.mark_signed(&task.job, task.ordinal, signed);
    }

    /// The receipt of a task as everybody is shown it: a serialized `SignedReceipt`, or what a host sent instead. Empty
    /// without one.
    pub(crate) async fn shown_receipt(&self, id: TaskId) -> Result<Bytes, StoreError> {
        let Some(task) = self.find(id).await? else {
            return Ok(Bytes::new());
        };
        let record = ReceiptRecord::read(&task.look(|task| task.receipt.clone()));
        let shown = |receipt| SignedReceipt {
            receipt,
            ..SignedReceipt::default()
        };
        let signed = match record.signing() {
            Signing::None => return Ok(Bytes::new()),
            Signing::Alone(sent) => return Ok(sent),
            Signing::Pending => shown(self.kept_receipt(&task).unwrap_or_default()),
            Signing::Together { batch, index } => {
                let (receipt, signed) = (self.kept_receipt(&task), self.signed(batch).await?);
                let proved = signed.zip(receipt);
                let proved = proved.and_then(|(signed, receipt)| signed.prove(index, receipt));
                proved.ok_or_else(|| {
                    let words = format!("the receipt of {id} is not the one that was signed");
                    StoreError::Broken(words.into())
                })?
            }
        };
        Ok(signed.encode_to_vec().into())
    }

    async fn signed(&self, batch: i64) -> Result<Option<Arc<SignedReceipts>>, StoreError> {
        if let Some(signed) = self.0.recent.find(batch) {
            return Ok(Some(signed));
        }
        let signed = rows::read(&self.0.store.readers, batch).await?;
        Ok(signed.map(Arc::new))
    }

    /// Deletes receipts that came before `time` and that no task names.
    pub(super) async fn forget_receipts(&self, time: i64) -> Result<(), StoreError> {
        let forgotten = rows::forget_before(time);
        self.0.store.writer.commit(forgotten).await?;
        Ok(())
    }
}
