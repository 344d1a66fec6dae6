//! Every host, found by id, name or selector.

mod presence;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use muster_proto::{ids::HostId, v1::Reason};
use parking_lot::RwLock;
use tokio::sync::{Mutex, broadcast, watch};

use super::{Host, Presence, PresenceLimits, edit::EditError, host::Pulse};
use crate::{
    clock::now,
    model::{Explain, Facts, Labels, Mode, NameError, NewHost, check_labels, check_name},
    policy::{Traits, TraitsKept, unknown_traits},
    selector::{ParseError, Selector},
    store::{Batch, Store, StoreError, StoredHost},
};

/// Bars that a listener may fall behind before it has to look at every host.
const BARS_KEPT: usize = 1024;

/// Why a selection could not be made.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SelectError {
    #[error(transparent)]
    Selector(#[from] ParseError),
    #[error("there is no host {0:?}; `host list` shows those there are")]
    HostNotFound(String),
}

/// Why a host does not take part from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bar {
    /// It was locked, or set aside by an identity conflict.
    Locked(HostId),
    /// It was removed.
    Removed(HostId),
}

#[derive(Default)]
struct Hosts {
    by_id: HashMap<HostId, Arc<Host>>,
    by_name: BTreeMap<String, HostId>,
    version: u64,
    removed: Vec<(u64, HostId)>,
    traits: TraitsKept,
}

/// The inventory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inventory {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) store: Store,
    limits: PresenceLimits,
    epoch: Instant,
    hosts: RwLock<Hosts>,
    version: watch::Sender<u64>,
    bars: broadcast::Sender<Bar>,
    /// Edits are rare and come one at a time, from reading a host to its commit; readers never wait.
    pub(super) editing: Mutex<()>,
}

impl Inventory {
    /// Loads every host from the ledger.
    pub(crate) async fn load(store: Store, limits: PresenceLimits) -> Result<Self, StoreError> {
        let stored = store.hosts().await?;
        let shared = Shared {
            store,
            limits,
            epoch: Instant::now(),
            hosts: RwLock::default(),
            version: watch::Sender::new(0),
            bars: broadcast::Sender::new(BARS_KEPT),
            editing: Mutex::default(),
        };
        let inventory = Self {
            shared: Arc::new(shared),
        };
        for host in stored {
            inventory.put(from_stored(host));
        }
        Ok(inventory)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The host of that id.
    pub(crate) fn get(&self, id: HostId) -> Option<Arc<Host>> {
        self.shared.hosts.read().by_id.get(&id).cloned()
    }

    /// Every host.
    pub(crate) fn ids(&self) -> Vec<HostId> {
        self.shared.hosts.read().by_id.keys().copied().collect()
    }

    /// Every host, in no order.
    pub(crate) fn everything(&self) -> Vec<Arc<Host>> {
        self.shared.hosts.read().by_id.values().cloned().collect()
    }

    /// The host of that name or id.
    pub(crate) fn find(&self, word: &str) -> Result<Arc<Host>, SelectError> {
        let hosts = self.shared.hosts.read();
        find(&hosts, word)
    }

    /// Hosts that the selector means, in the order of their names. None is a fine answer, except to a
    /// list of names: each of those must exist.
    pub(crate) fn select(&self, selector: &Selector) -> Result<Vec<Arc<Host>>, SelectError> {
        let hosts = self.shared.hosts.read();
        if let Selector::Hosts(words) = selector {
            let mut found = words
                .iter()
                .map(|word| find(&hosts, word))
                .collect::<Result<Vec<_>, _>>()?;
            found.sort_by(|a, b| a.name.cmp(&b.name));
            found.dedup_by_key(|host| host.id);
            return Ok(found);
        }
        Ok(hosts
            .by_name
            .values()
            .map(|id| &hosts.by_id[id])
            .filter(|host| selector.matches(host.as_ref()))
            .cloned()
            .collect())
    }

    /// What policy would see of a host with these labels and this limit.
    pub(crate) fn traits_of(&self, labels: &Labels, limit: Option<Mode>) -> Arc<Traits> {
        self.shared.hosts.write().traits.of(labels, limit)
    }

    /// Why the host may not attach; `None` if it may.
    pub(crate) fn bar(&self, id: HostId) -> Option<Bar> {
        match self.shared.hosts.read().by_id.get(&id) {
            None => Some(Bar::Removed(id)),
            Some(host) if host.is_barred() => Some(Bar::Locked(id)),
            Some(_) => None,
        }
    }

    /// Hears of each host that is barred. Who falls behind looks at every host with `bar`.
    pub(crate) fn bars(&self) -> broadcast::Receiver<Bar> {
        self.shared.bars.subscribe()
    }

    /// Counts changes; who sees it move asks `changed_since`.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// The current version, hosts that changed after `version` in the order of their names, and ids
    /// of hosts removed since.
    pub(crate) fn changed_since(&self, version: u64) -> (u64, Vec<Arc<Host>>, Vec<HostId>) {
        let hosts = self.shared.hosts.read();
        let changed = hosts
            .by_name
            .values()
            .map(|id| &hosts.by_id[id])
            .filter(|host| host.changed > version)
            .cloned()
            .collect();
        let removed = hosts
            .removed
            .iter()
            .filter(|(at, _)| *at > version)
            .map(|(_, id)| *id)
            .collect();
        (hosts.version, changed, removed)
    }

    /// A name like `wanted` that no host has.
    pub(crate) fn free_name(&self, wanted: &str) -> String {
        let hosts = self.shared.hosts.read();
        if !hosts.by_name.contains_key(wanted) {
            return wanted.to_owned();
        }
        (2_u32..)
            .map(|number| format!("{wanted}-{number}"))
            .find(|name| !hosts.by_name.contains_key(name))
            .expect("there are fewer hosts than numbers")
    }

    /// Adds a host, in one transaction with `batch`, and waits until that is durable.
    pub(crate) async fn add(
        &self,
        id: HostId,
        host: NewHost,
        mut batch: Batch,
    ) -> Result<Arc<Host>, EditError> {
        check_name(&host.name)?;
        check_labels(&host.labels)?;
        let create_time = now();
        batch.add_host(id, &host, create_time);
        match self.shared.store.writer.commit(batch).await {
            Ok(committed) => committed.durable.wait().await.map_err(StoreError::from)?,
            Err(StoreError::Conflict(_)) if self.name_is_taken(&host.name) => {
                return Err(EditError::NameTaken(host.name));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(self.put(from_stored(StoredHost {
            host_id: id,
            name: host.name,
            labels: host.labels,
            facts: None,
            instruction: None,
            create_time,
            last_heard_time: None,
            certificate_expire_time: Some(host.certificate_expire_time),
            lock: None,
            identity_conflict: String::new(),
            mode_limit: None,
            mode_note: String::new(),
        })))
    }

    pub(super) fn name_is_taken(&self, name: &str) -> bool {
        self.shared.hosts.read().by_name.contains_key(name)
    }

    /// Changes a host in memory and tells watchers. The presence is judged on the way.
    pub(super) fn replace(&self, id: HostId, change: impl FnOnce(&mut Host)) -> Option<Arc<Host>> {
        let host = self.get(id)?;
        let mut host = Host::clone(&host);
        change(&mut host);
        Some(self.put(host))
    }

    fn put(&self, mut host: Host) -> Arc<Host> {
        host.presence = host.pulse.presence(&self.shared.limits, self.monotonic());
        let mut hosts = self.shared.hosts.write();
        hosts.version += 1;
        host.changed = hosts.version;
        host.traits = hosts
            .traits
            .renew(&host.traits, &host.labels, host.mode_limit);
        let host = Arc::new(host);
        if let Some(old) = hosts.by_id.insert(host.id, Arc::clone(&host)) {
            hosts.by_name.remove(&old.name);
        }
        hosts.by_name.insert(host.name.clone(), host.id);
        self.shared.version.send_replace(hosts.version);
        host
    }

    pub(super) fn take_out(&self, id: HostId) {
        let mut hosts = self.shared.hosts.write();
        if let Some(host) = hosts.by_id.remove(&id) {
            hosts.by_name.remove(&host.name);
            hosts.version += 1;
            let version = hosts.version;
            hosts.removed.push((version, id));
            self.shared.version.send_replace(version);
        }
    }

    pub(super) fn tell(&self, bar: Bar) {
        // Nobody listens before the server serves.
        let _ = self.shared.bars.send(bar);
    }

    /// Shows new facts at once: a host is selected by them from the moment it is attached. Says
    /// whether they are new; then `write_facts` is due. An agent that is not believed tells them again.
    pub(crate) fn show_facts(&self, id: HostId, facts: Facts) -> bool {
        let new = self
            .get(id)
            .is_some_and(|host| host.facts.as_ref() != Some(&facts));
        if new {
            self.replace(id, |host| host.facts = Some(facts));
        }
        new
    }

    /// Writes a host's facts to the ledger.
    pub(crate) async fn write_facts(&self, id: HostId) -> Result<(), EditError> {
        self.edit(id, |_| {}).await.map(drop)
    }
}

fn find(hosts: &Hosts, word: &str) -> Result<Arc<Host>, SelectError> {
    hosts
        .by_name
        .get(word)
        .copied()
        .or_else(|| word.parse().ok())
        .and_then(|id| hosts.by_id.get(&id).cloned())
        .ok_or_else(|| SelectError::HostNotFound(word.chars().take(80).collect()))
}

fn from_stored(host: StoredHost) -> Host {
    Host {
        id: host.host_id,
        id_text: host.host_id.to_string(),
        name: host.name,
        labels: host.labels,
        facts: host.facts,
        instruction: host.instruction,
        create_time: host.create_time,
        certificate_expire_time: host.certificate_expire_time,
        lock: host.lock,
        identity_conflict: host.identity_conflict,
        mode_limit: host.mode_limit,
        mode_note: host.mode_note,
        traits: unknown_traits(),
        presence: Presence::Offline,
        changed: 0,
        pulse: Pulse::new(host.last_heard_time),
    }
}

impl From<NameError> for EditError {
    fn from(error: NameError) -> Self {
        EditError::Name(error)
    }
}

impl Explain for SelectError {
    fn reason(&self) -> Reason {
        match self {
            Self::Selector(error) => error.reason(),
            Self::HostNotFound(_) => Reason::HostNotFound,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Selector(error) => error.metadata(),
            Self::HostNotFound(host) => vec![("host", host.clone())],
        }
    }
}
