//! The entry of a call that is under way.
//!
//! The judgement before the doors opens it. Doors and rooms add what they know, as the hosts; the first commit that the
//! call makes takes it along, so that it is written with the effect. What no commit took, because nothing was changed
//! or because the change is not in the ledger, is written behind once the call ends, however it ends.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use muster_client::audit::Hash;
use muster_proto::ids::HostId;
use parking_lot::Mutex;

use super::Audit;
use crate::{
    clock::now,
    model::{Entry, entry::Verdict},
};

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// Bytes ahead of a message on the wire: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A call that may change something.
pub(crate) struct Call {
    audit: Audit,
    /// What is known of the call from its begin.
    begun: Entry,
    // A plain lock: held for a look or a step.
    state: Mutex<State>,
}

struct State {
    /// `None` once something has taken it along.
    entry: Option<Entry>,
    request: Option<Context>,
    /// Bytes of the prefix that have passed.
    passed: usize,
}

impl Call {
    /// A call that begins.
    pub(crate) fn new(audit: Audit, entry: Entry) -> Arc<Self> {
        Arc::new(Self {
            audit,
            begun: entry.clone(),
            state: Mutex::new(State {
                entry: Some(entry),
                request: None,
                passed: 0,
            }),
        })
    }

    /// Runs the call: what it does finds this entry.
    pub(crate) async fn run<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        CALL.scope(self, call).await
    }

    /// Bytes of the request have come in.
    pub(crate) fn read(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let skipped = (PREFIX_BYTES - state.passed).min(bytes.len());
        state.passed += skipped;
        state
            .request
            .get_or_insert_with(|| Context::new(&SHA256))
            .update(&bytes[skipped..]);
    }

    /// The call was refused, or failed. Where a commit took its entry along before, that says what was wished, and
    /// another one says that it failed.
    pub(crate) fn failed(&self, reason: String, denied: bool) {
        let fail = |entry: &mut Entry| {
            entry.reason = reason.into();
            if denied {
                entry.verdict = Verdict::Deny;
            }
        };
        let mut state = self.state.lock();
        if let Some(entry) = &mut state.entry {
            return fail(entry);
        }
        drop(state);
        let mut entry = self.begun.clone();
        entry.time = now();
        fail(&mut entry);
        self.audit.record(entry);
    }

    fn take(&self) -> Option<Entry> {
        let mut state = self.state.lock();
        let request = state.request.take();
        let mut entry = state.entry.take()?;
        if let Some(request) = request {
            let digest = request.finish();
            entry.request_digest = digest.as_ref().try_into().ok();
        }
        Some(entry)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(entry) = self.take() {
            self.audit.record(entry);
        }
    }
}

/// An entry that was taken along by something that may fail: unless it is kept, it goes back to its call.
pub(crate) struct Taken {
    call: Arc<Call>,
    entry: Entry,
    kept: bool,
}

impl Taken {
    /// What it says. It may be added to.
    pub(crate) fn entry(&mut self) -> &mut Entry {
        &mut self.entry
    }

    /// It is written, or will be.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// It was not written after all.
    pub(crate) fn give_back(mut self) {
        self.kept = false;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.kept {
            self.call.state.lock().entry = Some(std::mem::take(&mut self.entry));
        }
    }
}

/// The entry of the call that this is done for, if there is one and nothing has taken it along.
pub(crate) fn take() -> Option<Taken> {
    CALL.try_with(|call| {
        let entry = call.take()?;
        Some(Taken {
            call: Arc::clone(call),
            entry,
            kept: false,
        })
    })
    .ok()
    .flatten()
}

fn change(change: impl FnOnce(&mut Entry)) {
    let _ = CALL.try_with(|call| call.state.lock().entry.as_mut().map(change));
}

/// The call is about these hosts.
pub(crate) fn hosts(hosts: impl IntoIterator<Item = HostId>) {
    change(|entry| entry.hosts.extend(hosts));
}

/// The call asks for a job on these hosts, by a request of this digest.
pub(crate) fn about_job(digest: Hash, hosts: impl IntoIterator<Item = HostId>) {
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
