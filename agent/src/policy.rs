//! What this host permits at most: its own `policy.toml`, a short table that nobody widens but whoever may write
//! that file. The control plane can lower the mode, for the host and for a task.

mod actions;
mod decision;
mod file;
mod network;
mod permits;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_proto::v1::{self, Confinement, Mode as Word, Reason, ceiling::Unenforceable};
use parking_lot::Mutex;

use self::{
    actions::Actions,
    decision::{Decision, decide},
    network::Network,
};
pub use self::{file::PolicyError, permits::Permits};
use crate::{
    actions::{self as kinds, Declared, Kind},
    process::{Sandbox, User},
};

/// Where the control plane's limit is kept, in the agent's directory.
const LIMIT: &str = "mode-limit";

/// What belongs to Muster on this host beside the data directory.
const SETTINGS: &str = "/etc/muster";

/// How far tasks may go; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nothing runs.
    Disabled,
    /// Nothing is written but a scratch directory.
    ReadOnly,
    /// The roots are written.
    Edit,
    /// Whatever the user may.
    Unrestricted,
}

impl Mode {
    /// As it is written.
    pub fn name(self) -> &'static str {
        self.word().text()
    }

    /// As a file or a person writes it; the names of an older product are understood too.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::from_word(Word::from_text(name)?)
    }

    /// `None` where nothing is said; an error for a word of a later version.
    fn from_wire(mode: i32) -> Result<Option<Self>, i32> {
        let word = Word::try_from(mode).map_err(|_| mode)?;
        Ok(Self::from_word(word))
    }

    fn from_word(word: Word) -> Option<Self> {
        match word {
            Word::Unspecified => None,
            Word::Disabled => Some(Self::Disabled),
            Word::ReadOnly => Some(Self::ReadOnly),
            Word::Edit => Some(Self::Edit),
            Word::Unrestricted => Some(Self::Unrestricted),
        }
    }

    fn word(self) -> Word {
        match self {
            Self::Disabled => Word::Disabled,
            Self::ReadOnly => Word::ReadOnly,
            Self::Edit => Word::Edit,
            Self::Unrestricted => Word::Unrestricted,
        }
    }

    pub(crate) fn wire(self) -> i32 {
        self.word().into()
    }
}

/// Why a task is not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// The table, with what is not written there filled in. Paths are absolute and lead over no link.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    mode: Mode,
    roots: Vec<PathBuf>,
    /// `None`: as each mode has it.
    network: Option<Network>,
    readable: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    programs: Vec<PathBuf>,
    actions: Actions,
    /// Whom tasks may run as; `None` is everybody whom the agent may become.
    users: Option<Vec<String>>,
    scratch_bytes: u64,
}

/// The host's policy, and what the control plane has lowered.
pub(crate) struct Policy {
    table: Table,
    /// What no confined task sees: all that is the agent's own.
    covered: PathBuf,
    user: String,
    limit: Mutex<Option<Mode>>,
    limit_file: PathBuf,
    /// What the kernel lacks to confine a task; `None` if nothing.
    missing: Option<String>,
}

impl Policy {
    /// Reads the policy of an agent whose data directory this is. `missing`: what the kernel lacks.
    pub(crate) fn load(
        named: Option<&Path>,
        data_dir: &Path,
        directory: &Path,
        user: &User,
        missing: Option<String>,
    ) -> Result<Self, PolicyError> {
        let mut table = file::load(named, directory, &user.home)?;
        let own = [
            PathBuf::from(SETTINGS),
            user.home.join(".local/share/muster"),
        ];
        let covered = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        let own = own.iter().filter_map(|path| fs::canonicalize(path).ok());
        table
            .hidden
            .extend(own.filter(|path| !path.starts_with(&covered)));
        let limit_file = directory.join(LIMIT);
        let limit = fs::read_to_string(&limit_file).ok();
        Ok(Self {
            table,
            covered,
            user: user.name.clone(),
            limit: Mutex::new(limit.and_then(|limit| Mode::from_name(limit.trim()))),
            limit_file,
            missing,
        })
    }

    /// The control plane lets this host go so far; `UNSPECIFIED` lowers nothing. Kept, so that a restart raises
    /// nothing either.
    pub(crate) fn lower(&self, mode: i32) {
        // A word that is not known can only be obeyed by doing nothing.
        let limit = Mode::from_wire(mode).unwrap_or(Some(Mode::Disabled));
        let mut kept = self.limit.lock();
        if *kept == limit {
            return;
        }
        *kept = limit;
        tracing::info!(
            "the control plane limits the mode of this host: {}",
            limit.map_or("not any more", Mode::name)
        );
        if let Err(error) = store(&self.limit_file, limit) {
            tracing::error!(%error, "{} cannot be written: {error}", self.limit_file.display());
        }
    }

    /// The policy as it counts now, in words.
    pub(crate) fn permits(&self) -> Permits {
        let limit = *self.limit.lock();
        let own = self.table.mode;
        let report = self.report();
        Permits {
            mode: limit
                .unwrap_or(Mode::Unrestricted)
                .min(own)
                .name()
                .to_owned(),
            own: own.name().to_owned(),
            limit: limit.map(|limit| limit.name().to_owned()),
            roots: report.roots,
            network: match &self.table.network {
                None | Some(Network::All) => "all".to_owned(),
                Some(Network::None) => "none".to_owned(),
                Some(Network::List(rules)) => {
                    let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                    rules.join(", ")
                }
            },
            actions: kinds::ALL
                .iter()
                .filter(|kind| self.table.actions.refuse(kind).is_none())
                .map(|kind| kind.name.to_owned())
                .collect(),
            unenforceable: report
                .unenforceable
                .into_iter()
                .next()
                .map(|missing| missing.cause),
        }
    }

    /// How a task of this kind is confined that was asked for so; `None` is not at all.
    pub(crate) fn confine(
        &self,
        asked: &Confinement,
        kind: &dyn Kind,
    ) -> Result<Option<Sandbox>, Refusal> {
        let limit = *self.limit.lock();
        let asked = decision::Asked::read(asked, |root| fs::canonicalize(root))?;
        let decision = decide(&self.table, limit, &asked)?;
        if let Some(cause) = self.table.actions.refuse(kind.declared()) {
            return Err(Refusal::new(Reason::ActionDenied, cause));
        }
        suffices(decision.mode(), kind.declared())?;
        let user = kind.user();
        if let Some(users) = &self.table.users
            && !user.is_empty()
            && user != self.user
            && !users.iter().any(|known| known == user)
        {
            let message = format!("the policy of this host lets nothing run as {user:?}");
            return Err(Refusal::new(Reason::UserNotPermitted, message));
        }
        match decision {
            Decision::Free => Ok(None),
            Decision::Confined {
                mode,
                network,
                roots,
            } => {
                if let Some(missing) = &self.missing {
                    let message = format!(
                        "this host cannot enforce {}: {missing}; run it on another host",
                        mode.name()
                    );
                    return Err(Refusal::new(Reason::ModeUnenforceable, message));
                }
                self.sandbox(mode, &network, roots).map(Some)
            }
        }
    }

    fn sandbox(
        &self,
        mode: Mode,
        network: &Network,
        roots: Vec<PathBuf>,
    ) -> Result<Sandbox, Refusal> {
        let (sockets, ports) = network
            .sockets()
            .map_err(|cause| Refusal::new(Reason::NetworkUnenforceable, cause))?;
        let texts = |paths: &[PathBuf]| -> Vec<String> {
            paths
                .iter()
                .map(|path| path.to_string_lossy().into_owned())
                .collect()
        };
        Ok(Sandbox {
            mode: mode.wire(),
            writes: texts(&roots),
            covered: self.covered.to_string_lossy().into_owned(),
            scratch_bytes: self.table.scratch_bytes,
            hidden: texts(&self.table.hidden),
            sockets: sockets.into(),
            ports,
            readable: texts(&self.table.readable),
            programs: texts(&self.table.programs),
            network: Some(network.wire()),
        })
    }

    /// The ceiling as the facts report it.
    pub(crate) fn report(&self) -> v1::Ceiling {
        let unenforceable = [Mode::ReadOnly, Mode::Edit].into_iter().filter_map(|mode| {
            let cause = match &self.missing {
                Some(missing) => missing.clone(),
                None => network::of(self.table.network.as_ref(), mode)
                    .sockets()
                    .err()?,
            };
            Some(Unenforceable {
                mode: mode.wire(),
                cause,
            })
        });
        v1::Ceiling {
            mode: self.table.mode.wire(),
            network: self.table.network.as_ref().map(Network::wire),
            roots: self
                .table
                .roots
                .iter()
                .map(|root| root.display().to_string())
                .collect(),
            unenforceable: unenforceable.collect(),
        }
    }
}

/// Whether this mode is enough for a task of this kind.
fn suffices(mode: Mode, kind: &Declared) -> Result<(), Refusal> {
    let needs = Mode::from_wire(kind.needs.into());
    match needs {
        Ok(Some(needs)) if mode < needs => {
            let message = format!(
                "a task of the kind {} needs the mode {} at least, and gets {}",
                kind.name,
                needs.name(),
                mode.name()
            );
            Err(Refusal::new(Reason::ModeTooHigh, message))
        }
        _ => Ok(()),
    }
}

/// The network of the contract by a word.
pub(crate) fn access(word: &str) -> v1::Network {
    match word {
        "none" => Network::None,
        _ => Network::All,
    }
    .wire()
}

fn store(path: &Path, limit: Option<Mode>) -> io::Result<()> {
    let Some(limit) = limit else {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    // Lost in a power cut, it is said again at the next attach, before anything is offered.
    let new = path.with_extension("new");
    fs::write(&new, format!("{}\n", limit.name()))?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_needs_more_than_the_mode_gives_is_refused() {
        let writes = Declared {
            name: "file_write",
            needs: Word::Edit,
            starts_programs: false,
        };
        assert!(suffices(Mode::Edit, &writes).is_ok());
        let refusal = suffices(Mode::ReadOnly, &writes).unwrap_err();
        assert_eq!(refusal.reason, Reason::ModeTooHigh);
        assert!(refusal.message.contains("needs the mode edit"));
    }
}
