//! A command run here, or a file read, as a task would do it, to see what a mode lets it do.

mod reading;

use std::{collections::HashMap, io, path::PathBuf};

use muster_proto::{
    ids::TaskId,
    v1::{Command, Confinement, Environment, FileRead, Limits, Reason, environment::Inherit},
};

use crate::{
    Config, Mode,
    actions::Kind,
    policy::{Policy, PolicyError},
    process::{Exit, Host, Program, Sandbox, StartError, Wanted, missing},
};

/// What to try, and how far to confine it.
#[derive(clap::Args, Debug, Clone)]
pub struct Attempt {
    /// The mode: read-only, edit, unrestricted [default: the highest that this host permits]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<Mode>,

    /// Open this much of the network: none or all [default: as the mode has it]
    #[arg(long, value_name = "ACCESS", value_parser = ["none", "all"])]
    network: Option<String>,

    /// Run as this user; only root can
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// Policy of this host, instead of /etc/muster/policy.toml or policy.toml in the agent's directory
    #[arg(long, env = "MUSTER_POLICY", value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Read this file instead of running a command
    #[arg(long, value_name = "FILE", conflicts_with = "argv")]
    read: Option<String>,

    /// The program and its arguments
    #[arg(required_unless_present = "read", last = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The host's policy cannot be taken.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It was refused, or could not be started.
    #[error("{message} [{reason}]")]
    Refused {
        /// The reason of the contract, by its name.
        reason: &'static str,
        /// The same in words.
        message: String,
    },
    /// This host cannot be read.
    #[error("this host cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl AttemptError {
    fn refused(reason: Reason, message: String) -> Self {
        Self::Refused {
            reason: reason.name(),
            message,
        }
    }
}

impl From<StartError> for AttemptError {
    fn from(StartError { reason, message }: StartError) -> Self {
        Self::refused(reason, message)
    }
}

/// Does it with the streams of this process, and says with which code it ended. Blocks.
pub fn attempt(data_dir: PathBuf, wanted: Attempt) -> Result<u8, AttemptError> {
    let host = Host::new()?;
    let directory = Config::new(data_dir.clone()).directory();
    let policy = Policy::load(
        wanted.policy.as_deref(),
        &data_dir,
        &directory,
        host.user(),
        missing(),
    )?;
    let asked = Confinement {
        mode: wanted.mode.map_or(0, Mode::wire),
        network: wanted.network.as_deref().map(crate::policy::access),
        ..Confinement::default()
    };
    let user = wanted.user.clone().unwrap_or_default();
    let confine = |kind: &dyn Kind| {
        let sandbox = policy.confine(&asked, kind);
        sandbox.map_err(|refusal| AttemptError::refused(refusal.reason, refusal.message))
    };
    if let Some(path) = wanted.read {
        let read = FileRead {
            path,
            user,
            ..FileRead::default()
        };
        let sandbox = confine(&read)?;
        return reading::read(host, read, sandbox);
    }
    let command = Command {
        user,
        ..Command::default()
    };
    let sandbox = confine(&command)?;
    run(&host, wanted.argv, wanted.user, sandbox)
}

fn run(
    host: &Host,
    argv: Vec<String>,
    user: Option<String>,
    sandbox: Option<Sandbox>,
) -> Result<u8, AttemptError> {
    let child = host.start(Program {
        task_id: TaskId::from_bytes(&[0; 32]),
        argv,
        cwd: Some(std::env::current_dir()?),
        env: HashMap::new(),
        user,
        streams: Wanted::Ours,
        inherited: Environment {
            inherit: Inherit::All.into(),
            ..Environment::default()
        },
        limits: Limits::default(),
        sandbox,
    })?;
    let code = match Exit::of(child.pid)? {
        Exit::Code(code) => code,
        Exit::Signal(number) => 128 + number,
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::from_name(text).ok_or_else(|| "read-only, edit or unrestricted".to_owned())
}
