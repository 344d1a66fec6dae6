//! What there is to say of a host: labels, facts, instruction, lock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Mode, mode_in};

/// Labels by key.
pub(crate) type Labels = BTreeMap<String, String>;

/// What the agent reports about its host. Kept as JSON; a later version may add fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    pub(crate) os: String,
    pub(crate) distro: String,
    pub(crate) distro_version: String,
    pub(crate) kernel: String,
    pub(crate) arch: String,
    pub(crate) cpus: i32,
    pub(crate) memory_bytes: i64,
    pub(crate) shell: String,
    pub(crate) agent_version: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) hostname: String,
    pub(crate) user: String,
    pub(crate) boot_id: String,
    pub(crate) audit_conflict: String,
    /// `None` of an agent that knows no modes.
    pub(crate) ceiling: Option<Ceiling>,
}

/// What a host permits at most, by its own policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ceiling {
    /// A `Mode` of the contract by its number.
    pub(crate) mode: i32,
    /// The most of the network that confined tasks get; `None` is the mode's default.
    pub(crate) network: Option<Network>,
    /// Where `edit` may write.
    pub(crate) roots: Vec<String>,
    /// Modes, by their numbers, that its kernel cannot enforce, with the cause.
    pub(crate) unenforceable: Vec<(i32, String)>,
}

impl Ceiling {
    /// The highest mode; `None` if it is one that this version does not know.
    pub(crate) fn mode(&self) -> Option<Mode> {
        mode_in(self.mode.try_into().ok()?)
    }
}

/// Which sockets tasks may open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Network {
    /// An `Access` of the contract by its number.
    pub(crate) access: i32,
    /// With a list: what may be connected to.
    pub(crate) allow: Vec<String>,
}

/// What a host is for and how to treat it, in the words of whoever wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) text: String,
    /// Counts from 1.
    pub(crate) version: i64,
    pub(crate) author: String,
    /// Unix milliseconds, as every time here.
    pub(crate) create_time: i64,
}

impl Instruction {
    /// Guards the next replacement.
    pub(crate) fn etag(&self) -> String {
        etag(self.version)
    }
}

/// The etag of a version; version 0 is "none was ever written".
pub(crate) fn etag(version: i64) -> String {
    format!("v{version}")
}

/// Who may not take part, since when, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lock {
    pub(crate) create_time: i64,
    pub(crate) author: String,
    pub(crate) note: String,
}

/// A host that just enrolled.
#[derive(Debug, Clone)]
pub(crate) struct NewHost {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) certificate_expire_time: i64,
}

/// What the agent reports and a requirement may ask for. No label may use one of these keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FactKey {
    Name,
    Id,
    Os,
    Distro,
    DistroVersion,
    Kernel,
    Arch,
    Shell,
    Hostname,
    AgentVersion,
    Presence,
}

impl FactKey {
    /// Every fact key with its text.
    pub(crate) const ALL: [(&'static str, Self); 11] = [
        ("name", Self::Name),
        ("id", Self::Id),
        ("os", Self::Os),
        ("distro", Self::Distro),
        ("distro_version", Self::DistroVersion),
        ("kernel", Self::Kernel),
        ("arch", Self::Arch),
        ("shell", Self::Shell),
        ("hostname", Self::Hostname),
        ("agent_version", Self::AgentVersion),
        ("presence", Self::Presence),
    ];

    /// The fact of that name, if it is one.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, key)| *key)
    }
}
