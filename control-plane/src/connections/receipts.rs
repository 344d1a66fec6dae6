//! Receipts on arrival: did the host sign this, and does it agree with what the ledger and the output store have?
//!
//! Checked after the caller has its answer and before the host is told that the task is settled: so every receipt was
//! checked and signed, also after a crash, and nobody has waited for it. A signature is for many receipts and is checked
//! once. A receipt that does not verify is kept, and marked.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use muster_client::audit::{
    OUTPUT_DIGESTED_MAX, OutputDigest, Purpose, SignedTogether, digest_of_result, leaf_hash,
};
use muster_proto::{
    agent::v1::{self, task_state::Ended},
    ids::{HostId, TaskId},
    v1::{Confinement, Receipt, SignedReceipt},
};
use muster_runtime::tls::{PeerCertificate, SpiffeKind};
use parking_lot::Mutex;
use prost::Message as _;
use rustls_pki_types::CertificateDer;

use super::Rooms;
use crate::{
    clock::now,
    jobs::TaskRef,
    model::{ReceiptRecord, SignedReceipts, Signing},
    output::{Content, OutputError, OutputStore},
    rotation::Rotation,
    sessions::Session,
    times,
    wire::heard,
};

/// Bytes of output that are read at once.
const READ: usize = 256 << 10;

/// What a receipt has to agree with.
struct Known<'a> {
    task_id: TaskId,
    job_id: String,
    host_id: HostId,
    /// SHA-256 of the sealed offer, which says what was to be done.
    offer_digest: Bytes,
    /// The end that the receipt came with.
    ended: &'a Ended,
    /// As the host reported it when the task started, and as it is kept.
    confinement: &'a Bytes,
    /// The digest of the output, where all of it is kept.
    output_digest: Option<Bytes>,
}

/// Checks receipts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Receipts(Arc<Shared>);

struct Shared {
    rotation: Rotation,
    /// The certificate by which each host was found to be itself last: its next receipts cost one signature and not two.
    // Held for a look only.
    vouched: Mutex<HashMap<HostId, Vouched>>,
}

#[derive(Clone, PartialEq)]
struct Vouched {
    certificate: Bytes,
    /// The version of the authorities.
    version: i64,
    /// Unix milliseconds.
    from: i64,
    until: i64,
}

impl Receipts {
    /// By the word of these authorities.
    pub(crate) fn new(rotation: Rotation) -> Self {
        Self(Arc::new(Shared {
            rotation,
            vouched: Mutex::default(),
        }))
    }

    /// Receipts that a host has signed together; what speaks against the signature is kept with them. An error says why it
    /// is nothing that could be kept.
    fn read(
        &self,
        session: &Session,
        batch: i64,
        signed: v1::SignedReceipts,
    ) -> Result<SignedReceipts, String> {
        let certificates: usize = signed.certificate_chain.iter().map(Bytes::len).sum();
        let bytes = certificates + signed.root.len() + signed.signature.len();
        if bytes > heard::RECEIPT_MAX {
            return Err(format!("a signature of {bytes} bytes is none"));
        }
        let together = SignedTogether::read(signed).map_err(|error| error.to_string())?;
        let doubt = self.check_together(session, &together).err();
        Ok(SignedReceipts {
            batch,
            host_id: session.host_id,
            together,
            doubt: doubt.unwrap_or_default(),
            taken: AtomicBool::new(false),
        })
    }

    fn check_together(&self, session: &Session, together: &SignedTogether) -> Result<(), String> {
        let root = together.check_root().map_err(|error| error.to_string())?;
        if root.host_id != session.host_id.to_string() {
            return Err("another host's name stands in its root".to_owned());
        }
        // Signing comes right after a task's end, and long after it where a host was cut off: the certificate counts then.
        let time = session.our_time(root.time.as_ref().map(times::millis), now());
        let chain = &together.signed().certificate_chain;
        self.check_certificate(Purpose::Receipts, session.host_id, chain, time)
    }

    /// What speaks against the signature of a receipt that was signed alone, about then (Unix milliseconds, by our clock).
    fn check_alone(&self, signed: &SignedReceipt, host: HostId, time: i64) -> Result<(), String> {
        let chain = &signed.certificate_chain;
        Purpose::Receipt
            .check_signature(&signed.receipt, &signed.signature, chain)
            .map_err(|error| error.to_string())?;
        self.check_certificate(Purpose::Receipt, host, chain, time)
    }

    fn check_certificate(
        &self,
        purpose: Purpose,
        host: HostId,
        chain: &[Bytes],
        time: i64,
    ) -> Result<(), String> {
        let certificate = chain.first().cloned().unwrap_or_default();
        let (_, version) = self.0.rotation.authorities();
        let known = self.0.vouched.lock().get(&host).cloned();
        if known.is_some_and(|known| {
            known.version == version
                && known.certificate == certificate
                && (known.from..=known.until).contains(&time)
        }) {
            return Ok(());
        }
        let signer = purpose
            .check_chain(chain, &self.0.rotation.recognized(), time)
            .map_err(|error| error.to_string())?;
        if signer.kind != SpiffeKind::Host || signer.name != host.to_string() {
            return Err(format!("{signer} signed it"));
        }
        let der = CertificateDer::from(certificate.as_ref());
        if let Ok(peer) = PeerCertificate::from_der(&der) {
            let vouched = Vouched {
                version,
                from: millis(peer.not_before),
                until: millis(peer.not_after),
                certificate: Bytes::copy_from_slice(&certificate),
            };
            self.0.vouched.lock().insert(host, vouched);
        }
        Ok(())
    }
}

/// The end of a task as its host has told it.
pub(super) struct Told<'a> {
    pub(super) ended: &'a Ended,
    /// When that was, Unix milliseconds by our clock.
    pub(super) time: i64,
    /// SHA-256 of the sealed offer, if the host has shown that.
    pub(super) offer_digest: Option<Bytes>,
}

impl Rooms {
    /// A host has signed for receipts. Each report that waits for its own goes on.
    pub(super) fn take_signatures(&self, session: &Session, signed: v1::SignedReceipts) {
        match self.receipts.read(session, self.jobs.next_batch(), signed) {
            Ok(signed) => session.signatures.add(&Arc::new(signed)),
            Err(words) => {
                tracing::warn!(host.id = %session.host_id, "a signature is passed over: {words}")
            }
        }
    }

    /// Sees to it that the receipt of a task that is over is checked and signed, and marks the task if anything speaks
    /// against it. Waits for the signature.
    pub(super) async fn settle_receipt(
        &self,
        session: &Session,
        task: &TaskRef,
        told: &Told<'_>,
    ) -> Result<(), OutputError> {
        let ended = told.ended;
        let (sent, is_alone) = match ended.unsigned_receipt.is_empty() {
            true => (&ended.receipt, true),
            false => (&ended.unsigned_receipt, false),
        };
        if sent.is_empty() {
            return Ok(());
        }
        if sent.len() > heard::RECEIPT_MAX {
            let bytes = sent.len();
            let words = format!("a receipt of {bytes} bytes is none, and was not kept");
            self.jobs.doubt(task, &words);
            return Ok(());
        }
        if is_alone {
            return self.check_alone(task, told).await;
        }
        let kept = self.jobs.kept_receipt(task);
        if kept.as_ref() != Some(sent) {
            if kept.is_some() {
                self.jobs.doubt(task, ANOTHER);
            }
            return Ok(());
        }
        if let Some(words) = self.contradiction(task, sent, told).await? {
            self.jobs.doubt(task, &words);
        }
        let record = ReceiptRecord::read(&task.look(|task| task.receipt.clone()));
        if matches!(record.signing(), Signing::Pending)
            && let Some(signature) = session.signatures.of(leaf_hash(sent)).await
        {
            self.jobs.receipt_signed(task, sent, &signature);
            let doubt = &signature.0.doubt;
            if !doubt.is_empty() {
                self.jobs.doubt(task, &does_not_verify(doubt));
            }
        }
        Ok(())
    }

    /// The same for a receipt that its host signed alone.
    async fn check_alone(&self, task: &TaskRef, told: &Told<'_>) -> Result<(), OutputError> {
        let sent = &told.ended.receipt;
        let kept = task.look(|task| task.receipt.clone());
        if kept != ReceiptRecord::alone(sent.clone()).write() {
            if !kept.is_empty() {
                self.jobs.doubt(task, ANOTHER);
            }
            return Ok(());
        }
        let Ok(signed) = SignedReceipt::decode(sent.clone()) else {
            self.jobs.doubt(task, &does_not_verify(UNREADABLE));
            return Ok(());
        };
        let host = task.look(|task| task.host_id);
        if let Err(cause) = self.receipts.check_alone(&signed, host, told.time) {
            self.jobs.doubt(task, &does_not_verify(&cause));
        } else if let Some(words) = self.contradiction(task, &signed.receipt, told).await? {
            self.jobs.doubt(task, &words);
        }
        Ok(())
    }

    /// What of a receipt is not as it was asked for, reported and kept, in words.
    async fn contradiction(
        &self,
        task: &TaskRef,
        receipt: &Bytes,
        told: &Told<'_>,
    ) -> Result<Option<String>, OutputError> {
        let Ok(receipt) = Receipt::decode(receipt.clone()) else {
            return Ok(Some(does_not_verify(UNREADABLE)));
        };
        let (task_id, host_id) = task.look(|task| (task.task_id, task.host_id));
        let confinement = task.look(|task| task.confinement.clone());
        let offer_digest = told.offer_digest.clone();
        let known = Known {
            task_id,
            job_id: task.job.order.job_id.to_string(),
            host_id,
            offer_digest: offer_digest.unwrap_or_else(|| self.jobs.offer_digest(task)),
            ended: told.ended,
            confinement: &confinement,
            output_digest: output_digest(&self.output, task_id).await?,
        };
        let what = contradiction(&receipt, &known);
        Ok(what.map(|what| does_not_verify(&format!("{what} is not what was reported"))))
    }
}

/// Two receipts for one task.
const ANOTHER: &str = "another receipt came later than the one that is kept";

const UNREADABLE: &str = "it cannot be read";

fn does_not_verify(cause: &str) -> String {
    format!("the receipt does not verify: {cause}")
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What of a receipt is not as it is known.
fn contradiction(receipt: &Receipt, known: &Known<'_>) -> Option<&'static str> {
    let ended = known.ended;
    let same = [
        (receipt.task_id == known.task_id.to_string(), "its task"),
        (receipt.job_id == known.job_id, "its job"),
        (receipt.host_id == known.host_id.to_string(), "its host"),
        (receipt.offer_digest == known.offer_digest, "its offer"),
        (receipt.state == ended.state, "its state"),
        (receipt.reason == ended.reason, "its reason"),
        (receipt.exit_code == ended.exit_code, "its exit code"),
        (receipt.signal == ended.signal, "its signal"),
        (receipt.run_time == ended.run_time, "its run time"),
        (
            receipt.result_digest == digest_of_result(&ended.result),
            "its result",
        ),
        (
            receipt.confinement.is_empty() || confinement(receipt) == *known.confinement,
            "its confinement",
        ),
        (
            receipt.output_digest.is_empty()
                || known
                    .output_digest
                    .as_ref()
                    .is_none_or(|digest| receipt.output_digest == *digest),
            "its output",
        ),
    ];
    same.iter().find(|(same, _)| !same).map(|(_, what)| *what)
}

/// As a report's is kept.
fn confinement(receipt: &Receipt) -> Bytes {
    let applied = Confinement::decode(Bytes::clone(&receipt.confinement)).ok();
    heard::confinement_in(applied)
}

/// The digest of a task's output as receipts have it; `None` where it is too much, or not all is kept.
async fn output_digest(output: &OutputStore, id: TaskId) -> Result<Option<Bytes>, OutputError> {
    let size = output.size(id).await?;
    let bytes = size.stdout_bytes.saturating_add(size.stderr_bytes);
    if size.dropped_bytes > 0 {
        return Ok(None);
    }
    if u64::try_from(bytes).unwrap_or(u64::MAX) > OUTPUT_DIGESTED_MAX {
        // No host takes a digest of so much.
        return Ok(Some(Bytes::new()));
    }
    let mut digest = OutputDigest::default();
    let mut after = 0;
    while after < size.last_sequence {
        let items = output.read_after(id, after, READ).await?;
        let Some(last) = items.last() else {
            return Ok(None);
        };
        after = last.sequence;
        for item in &items {
            match &item.content {
                Content::Data(data) => digest.add(item.stream.index(), data),
                Content::Missing { .. } => return Ok(None),
            }
        }
    }
    Ok(digest
        .digest()
        .map(|digest| Bytes::copy_from_slice(&digest)))
}
