//! Whether this ledger is the one that hosts have seen: generations, and what hosts owe after a restore.
//!
//! A ledger that comes out of a backup says so itself when it is opened. One that was set back in silence, as by a
//! snapshot of the machine, shows when a host has seen more than it holds. Either way a generation begins: tasks
//! that were pending are held, and hosts are asked for what they still know.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use muster_proto::ids::HostId;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    clock::now,
    hosts::Inventory,
    jobs::Jobs,
    seal::Sealer,
    store::{Store, StoreError, Writer, random_name, restores as rows},
};

/// Hosts that upload at once; others wait for their turn, so that a fleet that comes back is not one burst.
const UPLOADS_MAX: usize = 8;

/// Restores. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Restores(Arc<Shared>);

struct Shared {
    writer: Writer,
    sealer: Arc<Sealer>,
    /// How far the ledger had come when it was opened.
    opened_position: i64,
    /// Tasks from before are those that a ledger which was set back may be wrong about.
    opened_time: i64,
    // Held for a look only.
    standing: Mutex<Standing>,
    /// Held while a generation begins: of many hosts that noticed, one begins it.
    beginning: tokio::sync::Mutex<()>,
    uploads: Semaphore,
}

struct Standing {
    generation: Arc<str>,
    restored: bool,
    earlier: HashSet<String>,
    uploaded: HashSet<HostId>,
    /// The highest position that each host was told by this process.
    told: HashMap<HostId, i64>,
    /// Hosts that had a generation begun by this process: one that is not to be believed does it once.
    noticed: HashSet<HostId>,
}

/// What a host has seen of this control plane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// The generation; empty if it has seen none.
    pub(crate) generation: &'a str,
    /// The highest position under it.
    pub(crate) position: i64,
    /// What proves that it was told that.
    pub(crate) seal: &'a [u8],
}

/// A position that a host is told, and what proves that later.
pub(crate) struct Told {
    pub(crate) position: i64,
    pub(crate) seal: Bytes,
}

/// Why a ledger must have been set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetBack {
    /// A host has seen more commits than there ever were.
    Position,
    /// A host has seen a generation that never was.
    Generation,
}

/// Judges what a host has seen. `told`: the highest position that it can have heard of, as far as this process knows.
fn judge(seen: Seen<'_>, generation: &str, known: bool, told: i64) -> Option<SetBack> {
    match seen.generation {
        "" => None,
        same if same == generation => (seen.position > told).then_some(SetBack::Position),
        _ if known => None,
        _ => Some(SetBack::Generation),
    }
}

/// What is sealed: that a host was told a position. No offer reads like this.
fn statement(host: HostId, generation: &str, position: i64) -> Vec<u8> {
    format!("muster ledger seen 1\n{host}\n{generation}\n{position}").into_bytes()
}

impl Restores {
    /// Reads what the ledger says, and which hosts owe what they know.
    pub(crate) async fn load(
        store: &Store,
        inventory: &Inventory,
        sealer: Arc<Sealer>,
    ) -> Result<Self, StoreError> {
        let remembered = rows::load(&store.readers, &store.generation).await?;
        let restores = Self(Arc::new(Shared {
            writer: store.writer.clone(),
            sealer,
            opened_position: store.position,
            opened_time: now(),
            standing: Mutex::new(Standing {
                generation: Arc::clone(&store.generation),
                restored: remembered.restored,
                earlier: remembered.earlier,
                uploaded: remembered.uploaded,
                told: HashMap::new(),
                noticed: HashSet::new(),
            }),
            beginning: tokio::sync::Mutex::default(),
            uploads: Semaphore::new(UPLOADS_MAX),
        }));
        restores.remind(inventory);
        Ok(restores)
    }

    /// The generation that stands.
    pub(crate) fn generation(&self) -> Arc<str> {
        Arc::clone(&self.0.standing.lock().generation)
    }

    /// Notes that a host is told this position; returns it with its seal.
    pub(crate) fn tell(&self, host: HostId, position: i64) -> Told {
        let generation = {
            let mut standing = self.0.standing.lock();
            let told = standing.told.entry(host).or_default();
            *told = position.max(*told);
            Arc::clone(&standing.generation)
        };
        let statement = statement(host, &generation, position);
        Told {
            position,
            seal: self.0.sealer.seal(&statement).into(),
        }
    }

    /// The seal that comes with a position, for a host that a test makes up.
    #[cfg(test)]
    pub(crate) fn sealed(&self, host: HostId, generation: &str, position: i64) -> Bytes {
        let statement = statement(host, generation, position);
        self.0.sealer.seal(&statement).into()
    }

    /// Whether a host owes what it knows since before the restore.
    pub(crate) fn owes_upload(&self, host: HostId) -> bool {
        let standing = self.0.standing.lock();
        standing.restored && !standing.uploaded.contains(&host)
    }

    /// Whether the ledger must have been set back, by what a host has seen.
    pub(crate) fn judge(&self, host: HostId, seen: Seen<'_>) -> Option<SetBack> {
        let standing = self.0.standing.lock();
        let told = standing.told.get(&host).copied().unwrap_or_default();
        let verdict = judge(
            seen,
            &standing.generation,
            standing.earlier.contains(seen.generation),
            told.max(self.0.opened_position),
        )?;
        // Whoever could make the ledger look set back could hold up everybody's tasks.
        let statement = statement(host, seen.generation, seen.position);
        if !self.0.sealer.holds(&statement, seen.seal) {
            tracing::warn!(
                host.id = %host,
                "{host} says that it has seen a later ledger, and cannot prove it; it is not believed"
            );
            return None;
        }
        if standing.noticed.contains(&host) {
            tracing::warn!(
                host.id = %host,
                "{host} says again that it has seen a later ledger; it is not believed twice"
            );
            return None;
        }
        Some(verdict)
    }

    /// Begins a generation because of what a host has seen, unless another host had it begun meanwhile. Says whether
    /// it did; then it is durable, tasks from before are held, and every session must begin anew.
    pub(crate) async fn begin(
        &self,
        host: HostId,
        seen: Seen<'_>,
        jobs: &Jobs,
        inventory: &Inventory,
    ) -> Result<bool, StoreError> {
        let _turn = self.0.beginning.lock().await;
        let Some(verdict) = self.judge(host, seen) else {
            return Ok(false);
        };
        let (generation, replaced) = (random_name(), self.generation());
        let time = now();
        let cause = match verdict {
            SetBack::Position => format!(
                "host {host} has seen position {} of the ledger, which was set back",
                seen.position
            ),
            SetBack::Generation => format!(
                "host {host} has seen generation {:.32}, from which the ledger was set back",
                seen.generation
            ),
        };
        // First in memory: nothing is offered from here on.
        jobs.hold(self.0.opened_time, time);
        let batch = rows::begin(&generation, &replaced, self.0.opened_time, time, &cause);
        self.0.writer.commit(batch).await?.durable.wait().await?;
        {
            let mut standing = self.0.standing.lock();
            let earlier = std::mem::replace(&mut standing.generation, generation.as_str().into());
            standing.earlier.insert(earlier.to_string());
            // A host's word need not be believed for ever.
            if verdict == SetBack::Generation {
                standing.earlier.insert(seen.generation.to_owned());
            }
            standing.restored = true;
            standing.uploaded.clear();
            standing.told.clear();
            standing.noticed.insert(host);
        }
        self.remind(inventory);
        tracing::error!(
            host.id = %host, cause,
            "the ledger was set back: {cause}. Tasks from before wait for `muster job release`, and hosts upload \
             what they know"
        );
        Ok(true)
    }

    /// Waits for a turn to take an upload.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.0.uploads.acquire().await.ok()
    }

    /// A host has uploaded all that it knows under this generation: durable when this returns. Nothing happens if
    /// another generation stands by now.
    pub(crate) async fn uploaded(
        &self,
        host: HostId,
        generation: &str,
        inventory: &Inventory,
    ) -> Result<(), StoreError> {
        if !self.owes_upload(host) || *self.generation() != *generation {
            return Ok(());
        }
        let batch = rows::uploaded(generation, host, now());
        self.0.writer.commit(batch).await?.durable.wait().await?;
        let mut standing = self.0.standing.lock();
        if *standing.generation != *generation {
            return Ok(());
        }
        standing.uploaded.insert(host);
        drop(standing);
        inventory.set_owes_upload(host, false);
        Ok(())
    }

    /// Shows which hosts owe what they know.
    fn remind(&self, inventory: &Inventory) {
        for host in inventory.ids() {
            inventory.set_owes_upload(host, self.owes_upload(host));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(generation: &str, position: i64, told: i64) -> Option<SetBack> {
        let seen = Seen {
            generation,
            position,
            seal: &[],
        };
        judge(seen, "now", generation == "before", told)
    }

    #[test]
    fn a_host_that_has_seen_more_than_there_is_shows_a_ledger_that_was_set_back() {
        assert_eq!(judged("", 0, 5), None, "it has never attached");
        assert_eq!(judged("now", 5, 5), None);
        assert_eq!(judged("now", 6, 5), Some(SetBack::Position));
        assert_eq!(judged("before", 99, 5), None, "a restore that is known");
        assert_eq!(judged("after", 1, 5), Some(SetBack::Generation));
    }
}
