//! The slot for what the audit log says of a call that is under way.
//!
//! Whoever runs a call fills it. The first commit that the call makes takes the entry along, so that it is written with
//! the effect; an entry that was not written after all goes back.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;

use crate::model::Entry;

tokio::task_local! {
    static SLOT: Arc<Slot>;
}

/// Holds the entry of one call.
pub(crate) struct Slot(Mutex<Held>);

// Under a plain lock: held for a look or a step.
struct Held {
    /// `None` once something has taken it along.
    entry: Option<Entry>,
    /// Digests what was read of the request so far; `None` if nothing was.
    request: Option<Context>,
}

impl Slot {
    /// A slot with this entry.
    pub(crate) fn new(entry: Entry) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Held {
            entry: Some(entry),
            request: None,
        })))
    }

    /// Runs a call: the commits that it makes find this slot.
    pub(crate) async fn run<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        SLOT.scope(self, call).await
    }

    /// The request goes on with these bytes: the entry will name the digest of all that came before it is taken.
    pub(crate) fn digest(&self, bytes: &[u8]) {
        self.0
            .lock()
            .request
            .get_or_insert_with(|| Context::new(&SHA256))
            .update(bytes);
    }

    /// Changes the entry. Says no if something has taken it along.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Entry)) -> bool {
        self.0.lock().entry.as_mut().map(change).is_some()
    }

    /// Takes the entry out, unless something has taken it along.
    pub(crate) fn empty(&self) -> Option<Entry> {
        let mut held = self.0.lock();
        let request = held.request.take();
        let mut entry = held.entry.take()?;
        if let Some(request) = request {
            let digest = request.finish();
            entry.request_digest = digest.as_ref().try_into().ok();
        }
        Some(entry)
    }
}

/// An entry that was taken along by something that may fail: unless it is kept, it goes back to its slot.
pub(crate) struct Taken {
    slot: Arc<Slot>,
    entry: Entry,
    kept: bool,
}

impl Taken {
    /// The entry in the slot. It may be added to.
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
            self.slot.0.lock().entry = Some(std::mem::take(&mut self.entry));
        }
    }
}

/// The entry of the call that this is done for, if there is one and nothing has taken it along.
pub(crate) fn take() -> Option<Taken> {
    SLOT.try_with(|slot| {
        let entry = slot.empty()?;
        Some(Taken {
            slot: Arc::clone(slot),
            entry,
            kept: false,
        })
    })
    .ok()
    .flatten()
}

/// Changes the entry of the call that this is done for, if there is one and nothing has taken it along.
pub(crate) fn change(change: impl FnOnce(&mut Entry)) {
    let _ = SLOT.try_with(|slot| slot.change(change));
}
