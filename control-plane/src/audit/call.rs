//! The entry of a call that is under way.
//!
//! The judgement before the doors opens it and puts it into the store's slot. Doors and rooms add what they know, as the
//! hosts; the first commit that the call makes takes it along, so that it is written with the effect. What no commit
//! took, because nothing was changed or because the change is not in the ledger, is written behind once the call ends,
//! however it ends.

use std::sync::Arc;

use muster_proto::ids::HostId;
use parking_lot::Mutex;

use super::Audit;
use crate::{
    clock::now,
    model::{Entry, entry::Verdict},
    store::slot::{Slot, change},
};

/// Bytes ahead of a message on the wire: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A call that may change something.
pub(crate) struct Call {
    audit: Audit,
    /// What is known of the call from its begin.
    begun: Entry,
    slot: Arc<Slot>,
    /// Bytes of the prefix that have passed.
    passed: Mutex<usize>,
}

impl Call {
    /// A call that begins.
    pub(crate) fn new(audit: Audit, entry: Entry) -> Arc<Self> {
        Arc::new(Self {
            audit,
            begun: entry.clone(),
            slot: Slot::new(entry),
            passed: Mutex::new(0),
        })
    }

    /// Runs the call: what it does finds this entry.
    pub(crate) async fn run<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        // The call outlives what runs for it: an entry that comes back to the slot is still written.
        Arc::clone(&self.slot).run(call).await
    }

    /// Bytes of the request have come in.
    pub(crate) fn read(&self, bytes: &[u8]) {
        let mut passed = self.passed.lock();
        let skipped = (PREFIX_BYTES - *passed).min(bytes.len());
        *passed += skipped;
        self.slot.digest(&bytes[skipped..]);
    }

    /// The call was refused, or failed. Where a commit took its entry along before, that says what was wished, and
    /// another one says that it failed.
    pub(crate) fn failed(&self, reason: String, denied: bool) {
        let fail = |entry: &mut Entry| {
            entry.reason = reason.clone().into();
            if denied {
                entry.verdict = Verdict::Deny;
            }
        };
        if self.slot.change(fail) {
            return;
        }
        let mut entry = self.begun.clone();
        entry.time = now();
        fail(&mut entry);
        self.audit.record(entry);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(entry) = self.slot.empty() {
            self.audit.record(entry);
        }
    }
}

/// The call is about these hosts.
pub(crate) fn hosts(hosts: impl IntoIterator<Item = HostId>) {
    change(|entry| entry.hosts.extend(hosts));
}

/// The call asks for a job on these hosts, by a request of this digest.
pub(crate) fn about_job(digest: [u8; 32], hosts: impl IntoIterator<Item = HostId>) {
    change(|entry| {
        entry.request_digest = Some(digest);
        entry.hosts = hosts.into_iter().collect();
    });
}

/// This is what comes of the call: ("job", "j-…").
pub(crate) fn effect(name: &'static str, value: impl ToString) {
    change(|entry| entry.effect.push((name, value.to_string())));
}

/// The call shows who makes it, as an enrollment does.
pub(crate) fn principal(principal: impl ToString) {
    change(|entry| entry.principal = principal.to_string().into());
}

/// This is how the call was decided, by these rules.
pub(crate) fn decided(verdict: Verdict, rules: &[Arc<str>]) {
    change(|entry| {
        entry.verdict = verdict;
        entry.rules = rules.to_vec();
    });
}
