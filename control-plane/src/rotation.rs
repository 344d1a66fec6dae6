//! The rotation of the authority across the fleet: who has taken what, and whether the next step may be taken.

use std::{collections::HashMap, sync::Arc};

use muster_proto::{ids::HostId, v1::Reason};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

pub(crate) use crate::authority::{Phase, Step};
use crate::{
    audit,
    authority::{Authority, StepError},
    hosts::{Bar, Inventory},
    model::Explain,
    store::{Batch, Store, StoreError},
};

/// Names of missing hosts in one answer.
const NAMES_MAX: usize = 1_000;

/// Names of missing hosts in a refusal.
const NAMES_IN_WORDS: usize = 10;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(
        "{count} of {hosts} hosts have not taken the authority that stays: {names}; wait for them, lock them, or finish with force: then they come back by their old keys"
    )]
    Missing {
        count: usize,
        hosts: usize,
        names: String,
    },
    #[error("the step was taken, and the listener does not follow: {0}; restart the control plane")]
    Listener(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the step was cut off")]
    CutOff,
}

/// How far a rotation is.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    /// Unix milliseconds; 0 if there never was a rotation.
    pub(crate) phase_time: i64,
    pub(crate) issuing: String,
    pub(crate) other: Option<String>,
    /// Hosts that are not locked.
    pub(crate) hosts: usize,
    pub(crate) taken: usize,
    /// Names of hosts that have not; not all of them where there are many.
    pub(crate) missing: Vec<String>,
}

/// Makes the listener follow the authorities.
pub(crate) type Follow = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The rotation. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rotation(Arc<Shared>);

struct Shared {
    authority: Arc<Authority>,
    store: Store,
    inventory: Inventory,
    follow: Follow,
    /// The version that each host has taken. Held for a look only.
    taken: Mutex<HashMap<HostId, i64>>,
    turn: tokio::sync::Mutex<()>,
}

impl Rotation {
    /// Reads what hosts have taken. `follow` makes the listener trust and show what the authority says.
    pub(crate) async fn load(
        authority: Arc<Authority>,
        store: Store,
        inventory: Inventory,
        follow: Follow,
    ) -> Result<Self, StoreError> {
        let taken = store.authorities_taken().await?;
        Ok(Self(Arc::new(Shared {
            authority,
            store,
            inventory,
            follow,
            taken: Mutex::new(taken),
            turn: tokio::sync::Mutex::default(),
        })))
    }

    /// Whom to trust, the one that issues first, and the version of that.
    pub(crate) fn authorities(&self) -> (Vec<CertificateDer<'static>>, i64) {
        // The version first: what is told is never older than what it says.
        let version = self.0.authority.version();
        (self.0.authority.trusted(), version)
    }

    /// By whose certificates somebody may have signed what still counts.
    pub(crate) fn recognized(&self) -> Vec<CertificateDer<'static>> {
        self.0.authority.recognized()
    }

    /// The version now and from now on.
    pub(crate) fn versions(&self) -> watch::Receiver<i64> {
        self.0.authority.versions()
    }

    /// A host has taken the authorities of this version.
    pub(crate) async fn taken(&self, host: HostId, version: i64) -> Result<(), StoreError> {
        let version = version.min(self.0.authority.version());
        let known = self.0.taken.lock().get(&host).copied().unwrap_or(0);
        if version <= known {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.set_authorities_taken(host, version);
        self.0.store.writer.commit(batch).await?;
        let mut taken = self.0.taken.lock();
        let known = taken.entry(host).or_insert(0);
        *known = version.max(*known);
        Ok(())
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        let position = self.0.authority.position();
        let taken = self.0.taken.lock();
        let hosts: Vec<HostId> = self
            .0
            .inventory
            .ids()
            .into_iter()
            .filter(|id| {
                !matches!(
                    self.0.inventory.bar(*id),
                    Some(Bar::Locked(_) | Bar::Removed(_))
                )
            })
            .collect();
        let has = |id: &HostId| taken.get(id).copied().unwrap_or(0) >= position.needed;
        let missing: Vec<HostId> = hosts.iter().filter(|id| !has(id)).copied().collect();
        drop(taken);
        let mut names: Vec<String> = missing
            .iter()
            .filter_map(|id| Some(self.0.inventory.get(*id)?.name.clone()))
            .collect();
        names.sort();
        names.truncate(NAMES_MAX);
        Progress {
            phase: position.phase,
            phase_time: position.phase_time,
            issuing: position.issuing,
            other: position.other,
            hosts: hosts.len(),
            taken: hosts.len() - missing.len(),
            missing: names,
        }
    }

    /// Takes a step. The last one waits for every host that is not locked, unless `force`.
    pub(crate) async fn step(&self, step: Step, force: bool) -> Result<Progress, RotationError> {
        let _turn = self.0.turn.lock().await;
        if !self.0.authority.can(step)? {
            return Ok(self.progress());
        }
        if let (Step::Finish { .. }, false) = (step, force) {
            self.refuse_missing()?;
        }
        // Into the log first: the step is not in the ledger, and is not taken unless it can be told.
        audit::effect("step", step.text());
        let recorded = self.0.store.writer.commit(Batch::new()).await?;
        recorded.durable.wait().await.map_err(StoreError::from)?;
        let authority = Arc::clone(&self.0.authority);
        let taken = tokio::task::spawn_blocking(move || authority.step(step));
        taken.await.map_err(|_| RotationError::CutOff)??;
        (self.0.follow)().map_err(RotationError::Listener)?;
        self.0.authority.tell();
        tracing::warn!(?step, "the rotation of the authority: {step:?}");
        Ok(self.progress())
    }

    fn refuse_missing(&self) -> Result<(), RotationError> {
        let progress = self.progress();
        let count = progress.hosts - progress.taken;
        if count == 0 {
            return Ok(());
        }
        let mut names = progress.missing;
        let more = count > NAMES_IN_WORDS;
        names.truncate(NAMES_IN_WORDS);
        if more {
            names.push("…".to_owned());
        }
        Err(RotationError::Missing {
            count,
            hosts: progress.hosts,
            names: names.join(", "),
        })
    }
}

impl Explain for RotationError {
    fn reason(&self) -> Reason {
        match self {
            Self::Step(StepError::Phase(_)) | Self::Missing { .. } => Reason::AuthorityPhase,
            Self::Step(StepError::Authority(_)) | Self::Listener(_) | Self::CutOff => {
                Reason::Internal
            }
            Self::Store(error) => error.reason(),
        }
    }
}
