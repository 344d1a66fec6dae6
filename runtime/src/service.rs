//! A role as a service of systemd: it says when it is ready and that it lives, and is installed, shown and
//! taken away.
//!
//! `notify` speaks to the service manager from within; `unit` writes what the manager reads; `plan` decides
//! what an installation consists of, and `step` does it; `systemctl` is the manager's own command; `transfer`
//! moves a directory of secrets.

mod notify;
mod plan;
mod removal;
mod step;
mod systemctl;
mod transfer;
mod unit;

use std::{env, io, path::PathBuf};

use crate::config::{DataDir, NoHome};

pub use self::{
    notify::Notifier,
    plan::{Ground, Installation, Plan},
    removal::Removal,
    systemctl::{Manager, Standing},
    transfer::{MoveError, move_directory},
    unit::Unit,
};

/// Where a system service keeps its state: the data directory of every role that is one.
pub const SYSTEM_STATE: &str = "/var/lib/muster";

/// Where the programs of system services stand, unless a package brought them.
const SYSTEM_PROGRAMS: &str = "/usr/local/lib/muster";

/// Where the units of system services stand that no package brought.
const SYSTEM_UNITS: &str = "/etc/systemd/system";

/// Where logind notes whose services stay.
const LINGERS: &str = "/var/lib/systemd/linger";

/// What is there while systemd is in charge (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The machine's: it starts with the machine.
    System,
    /// A user's: it starts when that user does, or with the machine where the user lingers.
    User,
}

/// A role, as far as a service manager is concerned.
#[derive(Debug, Clone)]
pub struct Service {
    /// Name of the unit, and of its program, as "muster-agent".
    pub name: &'static str,
    /// How people call the role, as "muster agent".
    pub command: &'static str,
    /// What the program is told to do.
    pub arguments: &'static [&'static str],
    /// The unit, as it stands in `deploy/systemd`.
    pub template: &'static str,
    /// The system user that the role has for itself, if it has one.
    pub account: Option<&'static str>,
    /// What the role owns in the data directory.
    pub directories: &'static [&'static str],
    /// Whether it has to have joined, with the identity in the first of its directories.
    pub needs_identity: bool,
}

impl Service {
    /// What serves the role without a service manager, as people type it.
    fn serve(&self) -> String {
        let program = self.command.split(' ').next().unwrap_or(self.command);
        format!("{program} {}", self.arguments.join(" "))
    }

    /// Name of the unit's file.
    pub fn unit(&self) -> String {
        format!("{}.service", self.name)
    }
}

/// Where the parts of a service stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Whose service it is.
    pub scope: Scope,
    /// The directory of units.
    pub units: PathBuf,
    /// The directory of programs; `None` where a program is used where it stands.
    pub programs: Option<PathBuf>,
    /// The data directory.
    pub data_dir: PathBuf,
}

impl Layout {
    /// That of the machine's service, or of the `user`'s own in this data directory.
    pub fn of(user: bool, data_dir: &DataDir) -> Result<Self, NoHome> {
        if !user {
            return Ok(Self::system());
        }
        let absolute = |name: &str| {
            let path = PathBuf::from(env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let configuration = absolute("XDG_CONFIG_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".config")))
            .ok_or(NoHome)?;
        let data_dir = std::path::absolute(data_dir.path()?).map_err(|_| NoHome)?;
        Ok(Self::user(configuration, data_dir))
    }

    /// That of a service that is there to be asked about: where the data directory was named, whoever's it is;
    /// else the machine's, if that is installed; else the user's own.
    pub fn installed(service: &Service, data_dir: &DataDir) -> Result<Self, NoHome> {
        let system = Self::system();
        let named = data_dir.given();
        let is_systems = named == Some(system.data_dir.as_path())
            || named.is_none() && system.unit(service).exists();
        if is_systems {
            Ok(system)
        } else {
            Self::of(true, data_dir)
        }
    }

    /// Whether the user's services start with the machine and stay when the user has gone.
    pub fn lingers(&self) -> bool {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid());
        user.ok()
            .flatten()
            .is_some_and(|user| PathBuf::from(LINGERS).join(user.name).exists())
    }

    /// That of system services.
    pub fn system() -> Self {
        Self {
            scope: Scope::System,
            units: SYSTEM_UNITS.into(),
            programs: Some(SYSTEM_PROGRAMS.into()),
            data_dir: SYSTEM_STATE.into(),
        }
    }

    /// That of a user's services; `configuration` is `$XDG_CONFIG_HOME`, or what stands for it.
    pub fn user(configuration: PathBuf, data_dir: PathBuf) -> Self {
        Self {
            scope: Scope::User,
            units: configuration.join("systemd/user"),
            programs: None,
            data_dir,
        }
    }

    /// The unit's file.
    pub fn unit(&self, service: &Service) -> PathBuf {
        self.units.join(service.unit())
    }

    /// Changes of an operator to the unit; they are not ours.
    pub fn drop_ins(&self, service: &Service) -> PathBuf {
        self.units.join(format!("{}.d", service.unit()))
    }

    /// The copy of the program, where there is one.
    pub fn program(&self, service: &Service) -> Option<PathBuf> {
        Some(self.programs.as_ref()?.join(service.name))
    }
}

/// Why a service is not installed, shown or removed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// systemd does not run here.
    #[error("systemd is not in charge of this machine")]
    NoSystemd {
        /// What serves without it.
        serve: String,
    },
    /// The user has no service manager that could be asked.
    #[error("you have no service manager of your own here: {0} is not there")]
    NoUserManager(PathBuf),
    /// Only root may.
    #[error("a system service is root's to change")]
    NotRoot {
        /// The command that was asked for.
        command: String,
        /// Whether a user's own service is an alternative.
        user: bool,
    },
    /// A unit of this name is there, and we did not write it.
    #[error("{} is a unit of this name that Muster's own installation did not write", .0.display())]
    Foreign(PathBuf),
    /// The account that a service should run as cannot be used.
    #[error("{0}")]
    Account(String),
    /// A path cannot stand in a unit.
    #[error(
        "{0} cannot stand in a unit: it holds a control character, a quote, a backslash or a dollar sign"
    )]
    Path(String),
    /// A command of the system failed.
    #[error("`{command}` failed: {detail}")]
    Command {
        /// What was called.
        command: String,
        /// The command's own words.
        detail: String,
        /// What to do next.
        next: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory was not moved.
    #[error(transparent)]
    Move(#[from] MoveError),
}

impl ServiceError {
    /// What to do about it.
    pub fn next(&self) -> String {
        match self {
            Self::NoSystemd { serve } => {
                format!("let what starts services here start `{serve}`")
            }
            Self::NoUserManager(_) => {
                "log in as that user (su keeps the session of another), or have root say \
                 `loginctl enable-linger USER` and set XDG_RUNTIME_DIR=/run/user/UID"
                    .to_owned()
            }
            Self::NotRoot { command, user } => {
                let own = if *user {
                    ", or add --user for a service of your own"
                } else {
                    ""
                };
                format!("sudo {command}{own}")
            }
            Self::Foreign(_) => "use it as it is, or move it away and try again".to_owned(),
            Self::Account(_) => "name a user that exists with --run-as".to_owned(),
            Self::Path(_) => "move the program or the data directory to a plainer path".to_owned(),
            Self::Command { next, .. } => next.clone(),
            Self::File { .. } => "see that the path is as it should be, then try again".to_owned(),
            Self::Move(error) => error.next().to_owned(),
        }
    }
}

fn file_error(path: &std::path::Path) -> impl FnOnce(io::Error) -> ServiceError {
    let path = path.to_owned();
    move |source| ServiceError::File { path, source }
}
