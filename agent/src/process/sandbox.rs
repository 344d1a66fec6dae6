//! What is closed around a task's process by the kernel: mounts, Landlock, a filter of system calls, no capabilities,
//! no new privileges.
//!
//! All of it is prepared before the fork and entered by the child itself between fork and exec: the supervisor stays
//! as free as it was. Each part is a layer with a name, which a test can leave out to see that it is missed.

mod calls;
mod capabilities;
mod enter;
mod filter;
mod landlock;
mod mounts;
mod probe;

use std::ffi::CStr;

use muster_proto::v1::{Confinement, Mode, Network, network::Access};
use nix::errno::Errno;

pub(crate) use self::probe::{PROBED, probe};
use self::{filter::Instruction, landlock::Ruleset, mounts::Mounts};

/// More roots than this no policy has.
pub(crate) const ROOTS: usize = 32;

/// How a task is confined: everything that the host's policy, the control plane and the job came to. Paths are
/// absolute and lead over no link.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Sandbox {
    #[prost(enumeration = "Mode", tag = "1")]
    pub(crate) mode: i32,
    /// Directories below which it may write, none below another.
    #[prost(string, repeated, tag = "2")]
    pub(crate) writes: Vec<String>,
    /// The directory that its scratch directory covers: all that is the agent's own.
    #[prost(string, tag = "3")]
    pub(crate) covered: String,
    /// How much fits the scratch directory.
    #[prost(uint64, tag = "4")]
    pub(crate) scratch_bytes: u64,
    /// Files and directories that it cannot open.
    #[prost(string, repeated, tag = "5")]
    pub(crate) hidden: Vec<String>,
    #[prost(enumeration = "Sockets", tag = "6")]
    pub(crate) sockets: i32,
    /// With [`Sockets::Ports`]: those that it may connect to.
    #[prost(uint32, repeated, tag = "7")]
    pub(crate) ports: Vec<u32>,
    /// Paths that can be read; empty is everything.
    #[prost(string, repeated, tag = "8")]
    pub(crate) readable: Vec<String>,
    /// Paths that can be executed; empty is everything.
    #[prost(string, repeated, tag = "9")]
    pub(crate) programs: Vec<String>,
    /// As the report says it.
    #[prost(message, optional, tag = "10")]
    pub(crate) network: Option<Network>,
}

/// Which sockets there are for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
pub(crate) enum Sockets {
    None = 0,
    All = 1,
    /// TCP to some ports of any address.
    Ports = 2,
}

impl Sandbox {
    /// The directory for temporary files, which is the task's alone.
    pub(super) fn scratch(&self) -> &str {
        let shared = std::path::Path::new("/dev/shm");
        match shared.is_dir() && !shared.is_symlink() {
            true => "/dev/shm",
            false => &self.covered,
        }
    }

    /// What is said about it, once it holds.
    pub(crate) fn report(&self, features: Vec<String>) -> Confinement {
        let network = self.network.clone().unwrap_or_else(|| Network {
            access: match self.sockets() {
                Sockets::None => Access::None.into(),
                _ => Access::All.into(),
            },
            allow: Vec::new(),
        });
        Confinement {
            mode: self.mode,
            network: Some(network),
            roots: self.writes.clone(),
            features,
        }
    }
}

/// Which layers are there: all, unless a test leaves some out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layers {
    missing: Vec<String>,
}

impl Layers {
    /// All but those that `MUSTER_SANDBOX_WITHOUT` names, which only builds for debugging read.
    pub(crate) fn from_environment() -> Self {
        #[cfg(debug_assertions)]
        if let Ok(names) = std::env::var("MUSTER_SANDBOX_WITHOUT") {
            return Self::without(&names);
        }
        Self::default()
    }

    #[cfg(any(debug_assertions, test))]
    fn without(names: &str) -> Self {
        let missing = names.split(',').map(str::to_owned);
        Self {
            missing: missing.filter(|name| !name.is_empty()).collect(),
        }
    }

    /// Whether this layer is there. A group's name before the colon stands for all of it.
    fn has(&self, name: &str) -> bool {
        let group = name.split_once(':').map_or(name, |(group, _)| group);
        !self
            .missing
            .iter()
            .any(|missing| missing == name || missing == group)
    }
}

/// A sandbox that only has to be entered.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Needed where this process may not make the others without it: user and group.
    user_namespace: Option<(u32, u32)>,
    mounts: Mounts,
    ruleset: Ruleset,
    filter: Vec<Instruction>,
    layers: Layers,
}

impl Prepared {
    /// For a process of this user and group, which has this terminal.
    pub(super) fn new(
        sandbox: &Sandbox,
        (user, group): (u32, u32),
        terminal: Option<&CStr>,
        layers: &Layers,
    ) -> Result<Self, Errno> {
        if landlock::version() < landlock::NEEDED {
            return Err(Errno::ENOSYS);
        }
        Ok(Self {
            user_namespace: (!capabilities::may_mount()).then_some((user, group)),
            mounts: Mounts::new(sandbox, user, group, layers)?,
            ruleset: Ruleset::new(sandbox, terminal, layers)?,
            filter: calls::filter(sandbox.sockets(), layers),
            layers: layers.clone(),
        })
    }

    /// Whether who enters it needs a user namespace of its own.
    pub(super) fn makes_a_user_namespace(&self) -> bool {
        self.user_namespace.is_some()
    }

    /// What enforces it, in the words of a report.
    pub(super) fn features(&self) -> Vec<String> {
        let mut features = vec![
            "mount-namespace".to_owned(),
            "ipc-namespace".to_owned(),
            format!("landlock-{}", landlock::version()),
            "seccomp".to_owned(),
            "no-capabilities".to_owned(),
            "no-new-privileges".to_owned(),
        ];
        if self.user_namespace.is_some() {
            features.insert(0, "user-namespace".to_owned());
        }
        features
    }
}

/// What is missing of a kernel that cannot enforce any mode; `None` if nothing is known to be.
pub(crate) fn missing() -> Option<String> {
    let version = landlock::version();
    (version < landlock::NEEDED).then(|| match version {
        0 => "the kernel has no Landlock, or has it switched off".to_owned(),
        version => format!(
            "the kernel's Landlock has version {version}, and version {} (Linux 6.12) is needed to keep a task from \
             signalling others",
            landlock::NEEDED
        ),
    })
}
