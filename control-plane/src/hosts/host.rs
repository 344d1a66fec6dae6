//! One host of the inventory, as it stood when it was looked at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_proto::ids::HostId;

use super::presence::{Presence, PresenceLimits};
use crate::{
    model::{Ceiling, FactKey, Facts, Instruction, Labels, Lock, Mode},
    policy::Traits,
    selector::Subject,
    store::HostChange,
};

/// A host. Cloned at each change, so that readers keep what they looked at.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) id: HostId,
    /// The id as text: selectors compare texts.
    pub(crate) id_text: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) facts: Option<Facts>,
    /// The newest version; an empty text means that there is none.
    pub(crate) instruction: Option<Instruction>,
    pub(crate) create_time: i64,
    pub(crate) certificate_expire_time: Option<i64>,
    pub(crate) lock: Option<Lock>,
    /// What was seen when two agents presented this identity; empty while that has not happened.
    pub(crate) identity_conflict: String,
    /// What an operator lowered it to; `None` if nobody did.
    pub(crate) mode_limit: Option<Mode>,
    /// Why; may be empty.
    pub(crate) mode_note: String,
    /// What policy sees of it.
    pub(crate) traits: Arc<Traits>,
    /// Judged at the last change or tick.
    pub(crate) presence: Presence,
    /// The inventory's version at the last change.
    pub(crate) changed: u64,
    pub(crate) pulse: Arc<Pulse>,
}

/// What changes with each heartbeat; shared by all clones, so that a heartbeat costs no clone.
#[derive(Debug)]
pub(crate) struct Pulse {
    attached: AtomicBool,
    /// Milliseconds on the inventory's monotonic clock; negative while never heard since its start.
    heard: AtomicI64,
    /// Unix milliseconds; 0 if never.
    heard_time: AtomicI64,
    /// The agent's clock minus ours, milliseconds.
    clock_offset: AtomicI64,
    /// The control plane was restored, and the host has not uploaded what it knows.
    owes_upload: AtomicBool,
}

impl Pulse {
    pub(super) fn new(heard_time: Option<i64>) -> Arc<Self> {
        Arc::new(Self {
            attached: AtomicBool::new(false),
            heard: AtomicI64::new(-1),
            heard_time: AtomicI64::new(heard_time.unwrap_or_default()),
            clock_offset: AtomicI64::new(0),
            owes_upload: AtomicBool::new(false),
        })
    }

    /// The control plane was restored, and the host has not uploaded what it knows.
    pub(crate) fn owes_upload(&self) -> bool {
        self.owes_upload.load(Ordering::Acquire)
    }

    pub(super) fn set_owes_upload(&self, owes: bool) {
        self.owes_upload.store(owes, Ordering::Release);
    }

    pub(super) fn beat(&self, monotonic: i64, time: i64) {
        self.heard.store(monotonic, Ordering::Relaxed);
        self.heard_time.store(time, Ordering::Relaxed);
    }

    pub(super) fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::Relaxed);
    }

    /// Forgets the last sign of life: a goodbye is evidence that nobody is there.
    pub(super) fn silence(&self) {
        self.heard.store(-1, Ordering::Relaxed);
    }

    pub(super) fn set_clock_offset(&self, milliseconds: i64) {
        self.clock_offset.store(milliseconds, Ordering::Relaxed);
    }

    /// Whether an agent is attached.
    pub(crate) fn attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// When the agent was last heard, Unix milliseconds.
    pub(crate) fn heard_time(&self) -> Option<i64> {
        Some(self.heard_time.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }

    /// The agent's clock minus the control plane's, milliseconds.
    pub(crate) fn clock_offset(&self) -> i64 {
        self.clock_offset.load(Ordering::Relaxed)
    }

    pub(super) fn presence(&self, limits: &PresenceLimits, monotonic: i64) -> Presence {
        let silence = match self.heard.load(Ordering::Relaxed) {
            heard if heard < 0 => Duration::MAX,
            heard => Duration::from_millis(monotonic.saturating_sub(heard).max(0).unsigned_abs()),
        };
        limits.presence(self.attached(), silence)
    }
}

impl Host {
    /// How far tasks may reach there: the lower of its own ceiling and what an operator lowered it to. `None` while
    /// nobody has said.
    pub(crate) fn mode(&self) -> Option<Mode> {
        let ceiling = self.facts.as_ref().and_then(|facts| facts.ceiling.as_ref());
        match ceiling.and_then(Ceiling::mode) {
            Some(ceiling) => Some(ceiling.lowered(self.mode_limit)),
            None => self.mode_limit,
        }
    }

    /// What the ledger keeps of it that can change.
    pub(super) fn stored(&self) -> HostChange<'_> {
        HostChange {
            host_id: self.id,
            name: &self.name,
            labels: &self.labels,
            facts: self.facts.as_ref(),
            last_heard_time: self.pulse.heard_time(),
            certificate_expire_time: self.certificate_expire_time,
            lock: self.lock.as_ref(),
            identity_conflict: &self.identity_conflict,
            mode_limit: self.mode_limit,
            mode_note: &self.mode_note,
        }
    }

    /// The instruction, unless it was removed or never written.
    pub(crate) fn current_instruction(&self) -> Option<&Instruction> {
        self.instruction.as_ref().filter(|one| !one.text.is_empty())
    }

    /// Whether it may not attach: locked, or set aside by an identity conflict.
    pub(crate) fn is_barred(&self) -> bool {
        self.lock.is_some() || !self.identity_conflict.is_empty()
    }

    /// Whether name, labels, facts or instruction contain `text`, which is in lower case.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let has = |value: &str| value.to_lowercase().contains(text);
        has(&self.name)
            || self
                .labels
                .iter()
                .any(|(key, value)| has(&format!("{key}={value}")))
            || self.current_instruction().is_some_and(|one| has(&one.text))
            || self.facts.as_ref().is_some_and(|facts| {
                [
                    &facts.os,
                    &facts.distro,
                    &facts.distro_version,
                    &facts.kernel,
                    &facts.arch,
                    &facts.hostname,
                ]
                .into_iter()
                .chain(&facts.addresses)
                .any(|value| has(value))
            })
    }
}

impl Subject for Host {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn fact(&self, key: FactKey) -> Option<&str> {
        let facts = self.facts.as_ref();
        let value = match key {
            FactKey::Name => Some(self.name.as_str()),
            FactKey::Id => Some(self.id_text.as_str()),
            FactKey::Presence => Some(self.presence.text()),
            FactKey::Os => facts.map(|facts| facts.os.as_str()),
            FactKey::Distro => facts.map(|facts| facts.distro.as_str()),
            FactKey::DistroVersion => facts.map(|facts| facts.distro_version.as_str()),
            FactKey::Kernel => facts.map(|facts| facts.kernel.as_str()),
            FactKey::Arch => facts.map(|facts| facts.arch.as_str()),
            FactKey::Shell => facts.map(|facts| facts.shell.as_str()),
            FactKey::Hostname => facts.map(|facts| facts.hostname.as_str()),
            FactKey::AgentVersion => facts.map(|facts| facts.agent_version.as_str()),
        };
        value.filter(|value| !value.is_empty())
    }
}
