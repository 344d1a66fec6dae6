//! What hosts sign about their tasks, as it is kept and shown.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use muster_client::audit::{OutputDigest, digest_of_result, sha256};
use muster_proto::{
    ids::TaskId,
    v1::{Receipt, SignedReceipt, task},
};
use parking_lot::Mutex;
use prost::Message as _;

use super::{Jobs, TaskRef};
use crate::{
    clock::now,
    model::{Order, ReceiptRecord, SignedReceipts, Signing, Task, order::record::OrderRecord},
    store::{
        StoreError,
        jobs::{self, TaskFilter},
        receipts as rows,
    },
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
        self.digest_of_offer(&task.job.terms(), task.ordinal, &task.get())
    }

    fn digest_of_offer(&self, order: &Order, ordinal: u32, task: &Task) -> Bytes {
        let plane = &self.0.store.control_plane_id;
        sha256(&OrderRecord::offer(plane, order, ordinal, task).encode_to_vec())
    }

    /// The receipt that what is kept of a task lets expect, but for the host's own times and the digest of what it wrote, if
    /// it wrote anything.
    fn expected_receipt(&self, order: &Order, ordinal: u32, task: &Task) -> Receipt {
        let size = task.output_size;
        let wrote = size.stdout_bytes + size.stderr_bytes + size.dropped_bytes > 0;
        Receipt {
            task_id: task.task_id.to_string(),
            job_id: order.job_id.to_string(),
            host_id: task.host_id.to_string(),
            offer_digest: self.digest_of_offer(order, ordinal, task),
            state: task::State::from(task.state).into(),
            reason: task.reason.into(),
            exit_code: task.exit_code,
            signal: task.signal.clone(),
            start_time: None,
            end_time: None,
            run_time: task.run_time.map(times::duration_us),
            output_digest: match wrote {
                true => Bytes::new(),
                false => Bytes::copy_from_slice(&OutputDigest::of_nothing()),
            },
            confinement: task.confinement.clone(),
            result_digest: digest_of_result(&task.result),
        }
    }

    /// The receipt that is kept of a task, serialized, signed or not; `None` if there is none, or it cannot be put together.
    pub(crate) fn kept_receipt(&self, task: &TaskRef) -> Option<Bytes> {
        self.receipt_of(&task.job.terms(), task.ordinal, &task.get())
    }

    fn receipt_of(&self, order: &Order, ordinal: u32, task: &Task) -> Option<Bytes> {
        ReceiptRecord::read(&task.receipt)
            .receipt(|| self.expected_receipt(order, ordinal, task))
            .filter(|receipt| !receipt.is_empty())
    }

    /// The host has signed the receipt of a task that is over, with others.
    pub(crate) fn receipt_signed(
        &self,
        task: &TaskRef,
        receipt: &Bytes,
        (signed, index): &(Arc<SignedReceipts>, usize),
    ) {
        let expected = self.expected_receipt(&task.job.terms(), task.ordinal, &task.get());
        let record = ReceiptRecord::together(receipt, &expected, signed.batch, *index);
        task.job.set_receipt(task.ordinal, record.write());
        self.0.recent.add(signed);
        self.0.recorder.mark_signed(&task.job, task.ordinal, signed);
    }

    /// The receipt of a task as everybody is shown it: a serialized `SignedReceipt`, or what a host sent instead. Empty
    /// without one.
    pub(crate) async fn shown_receipt(&self, id: TaskId) -> Result<Bytes, StoreError> {
        let Some((order, ordinal, task)) = self.with_order(id).await? else {
            return Ok(Bytes::new());
        };
        let receipt = || self.receipt_of(&order, ordinal, &task);
        let signed = match ReceiptRecord::read(&task.receipt).signing() {
            Signing::None => return Ok(Bytes::new()),
            Signing::Alone(sent) => return Ok(sent),
            Signing::Pending => SignedReceipt {
                receipt: receipt().unwrap_or_default(),
                ..SignedReceipt::default()
            },
            Signing::Together { batch, index } => {
                let signed = self.signed(batch).await?.zip(receipt());
                let proved = signed.and_then(|(signed, receipt)| signed.prove(index, receipt));
                proved.ok_or_else(|| {
                    let words = format!("the receipt of {id} is not the one that was signed");
                    StoreError::Broken(words.into())
                })?
            }
        };
        Ok(signed.encode_to_vec().into())
    }

    /// A task with what was asked for and its place in the job, whose other tasks are not read for it.
    async fn with_order(&self, id: TaskId) -> Result<Option<(Arc<Order>, u32, Task)>, StoreError> {
        if let Some(task) = self.find_live(id) {
            return Ok(Some((task.job.terms(), task.ordinal, task.get())));
        }
        let readers = &self.0.store.readers;
        let filter = TaskFilter {
            task: Some(id),
            ..TaskFilter::default()
        };
        let row = jobs::list_tasks(readers, &filter, None, 1).await?.pop();
        let Some(row) = row else { return Ok(None) };
        let order = jobs::order_of(readers, row.job_id).await?;
        let ordinal = u32::try_from(row.ordinal).unwrap_or_default();
        Ok(order.map(|order| (Arc::new(order), ordinal, row.task)))
    }

    async fn signed(&self, batch: i64) -> Result<Option<Arc<SignedReceipts>>, StoreError> {
        if let Some(signed) = self.0.recent.find(batch) {
            return Ok(Some(signed));
        }
        let readers = &self.0.store.readers;
        let mut signed = rows::read(readers, batch).await?;
        if signed.is_none() {
            // Many have signed since, and it waits to be written.
            let _ = self.written_now().await?;
            signed = rows::read(readers, batch).await?;
        }
        Ok(signed.map(Arc::new))
    }

    /// Deletes receipts that came before `time` and that no task names.
    pub(crate) async fn forget_receipts(&self, time: i64) -> Result<(), StoreError> {
        let forgotten = rows::forget_before(time);
        self.0.store.writer.commit(forgotten).await?;
        Ok(())
    }
}
