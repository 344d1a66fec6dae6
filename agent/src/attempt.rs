//! A command run here as a task would be, to see what a mode lets it do.

use std::{collections::HashMap, io, path::PathBuf};

use muster_proto::{
    ids::TaskId,
    v1::{Command, Confinement, Environment, Limits, environment::Inherit},
};

use crate::{
    config::Config,
    policy::{Mode, Policy, PolicyError},
    process::{Exit, Host, Program, Wanted, missing},
};

/// What to run, and how far to confine it.
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

    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
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

/// Runs the command with the streams of this process, and says with which code it ended. Blocks.
pub fn attempt(data_dir: PathBuf, wanted: Attempt) -> Result<u8, AttemptError> {
    let refused = |reason: muster_proto::v1::Reason, message| AttemptError::Refused {
        reason: reason.name(),
        message,
    };
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
        network: wanted.network.map(|access| crate::policy::access(&access)),
        ..Confinement::default()
    };
    let command = Command {
        user: wanted.user.clone().unwrap_or_default(),
        ..Command::default()
    };
    let sandbox = policy
        .confine(&asked, &command)
        .map_err(|refusal| refused(refusal.reason, refusal.message))?;
    let program = Program {
        task_id: TaskId::from_bytes(&[0; 32]),
        argv: wanted.argv,
        cwd: Some(std::env::current_dir()?),
        env: HashMap::new(),
        user: wanted.user,
        streams: Wanted::Ours,
        inherited: Environment {
            inherit: Inherit::All.into(),
            ..Environment::default()
        },
        limits: Limits::default(),
        sandbox,
    };
    let child = host
        .start(program)
        .map_err(|error| refused(error.reason, error.message))?;
    let code = match Exit::of(child.pid)? {
        Exit::Code(code) => code,
        Exit::Signal(number) => 128 + number,
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::from_name(text).ok_or_else(|| "read-only, edit or unrestricted".to_owned())
}
