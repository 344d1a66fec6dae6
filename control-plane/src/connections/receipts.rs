//! Receipts on arrival: did the host sign this, and does it agree with what the ledger and the output store have?
//!
//! Checked after the caller has its answer and before the host is told that the task is settled: so every receipt was
//! checked, also after a crash, and nobody has waited for it. One that does not verify is kept, and marked.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use muster_client::audit::{OUTPUT_DIGESTED_MAX, OutputDigest, Purpose, read_receipt};
use muster_proto::{
    agent::v1::task_state::Ended,
    ids::{HostId, TaskId},
    v1::{Confinement, Receipt, SignedReceipt},
};
use muster_runtime::tls::{PeerCertificate, SpiffeKind};
use parking_lot::Mutex;
use prost::Message as _;
use rustls_pki_types::CertificateDer;

use super::Rooms;
use crate::{
    jobs::TaskRef,
    output::{Content, OutputError, OutputStore},
    rotation::Rotation,
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
    /// Of the output, where all of it is kept.
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
    /// Of the authorities.
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

    /// What speaks against a receipt that was signed about then (Unix milliseconds, by our clock), in words.
    fn check(&self, bytes: &Bytes, time: i64, known: &Known<'_>) -> Result<(), String> {
        let signed = SignedReceipt::decode(Bytes::clone(bytes))
            .map_err(|_| "it cannot be read".to_owned())?;
        let receipt = read_receipt(&signed).map_err(|error| error.to_string())?;
        Purpose::Receipt
            .check_signature(
                &signed.receipt,
                &signed.signature,
                &signed.certificate_chain,
            )
            .map_err(|error| error.to_string())?;
        self.check_certificate(known.host_id, &signed.certificate_chain, time)?;
        match contradiction(&receipt, known) {
            Some(what) => Err(format!("{what} is not what was reported")),
            None => Ok(()),
        }
    }

    fn check_certificate(&self, host: HostId, chain: &[Bytes], time: i64) -> Result<(), String> {
        let (certificate, version) = (chain.first().cloned().unwrap_or_default(), {
            self.0.rotation.authorities().1
        });
        let known = self.0.vouched.lock().get(&host).cloned();
        if known.is_some_and(|known| {
            known.version == version
                && known.certificate == certificate
                && (known.from..=known.until).contains(&time)
        }) {
            return Ok(());
        }
        let signer = Purpose::Receipt
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

impl Rooms {
    /// Marks a task whose receipt does not verify. `ended` is the end that it came
    /// with, `time` when that was by our clock, and `offer_digest` that of the sealed offer if the host has shown it.
    pub(super) async fn check_receipt(
        &self,
        task: &TaskRef,
        ended: &Ended,
        time: i64,
        offer_digest: Option<Bytes>,
    ) -> Result<(), OutputError> {
        if ended.receipt.is_empty() {
            return Ok(());
        }
        let (task_id, host_id) = task.look(|task| (task.task_id, task.host_id));
        let kept = task.look(|task| task.receipt.clone());
        if kept != ended.receipt {
            if ended.receipt.len() > heard::RECEIPT_MAX {
                let bytes = ended.receipt.len();
                let words = format!("a receipt of {bytes} bytes is none, and was not kept");
                self.jobs.doubt(task, &words);
            } else if !kept.is_empty() {
                let words = "another receipt came later than the one that is kept";
                self.jobs.doubt(task, words);
            }
            return Ok(());
        }
        let confinement = task.look(|task| task.confinement.clone());
        let known = Known {
            task_id,
            job_id: task.job.order.job_id.to_string(),
            host_id,
            offer_digest: offer_digest.unwrap_or_else(|| self.jobs.offer_digest(task)),
            ended,
            confinement: &confinement,
            output_digest: output_digest(&self.output, task_id).await?,
        };
        if let Err(cause) = self.receipts.check(&ended.receipt, time, &known) {
            let words = format!("the receipt does not verify: {cause}");
            self.jobs.doubt(task, &words);
        }
        Ok(())
    }
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
            receipt.result_digest == digest_of(&ended.result),
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

/// The digest of a task's result as receipts have it: none of none.
fn digest_of(result: &Bytes) -> Bytes {
    match result.is_empty() {
        true => Bytes::new(),
        false => Bytes::copy_from_slice(digest(&SHA256, result).as_ref()),
    }
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
        // Of so much no host takes one.
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
