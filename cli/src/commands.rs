//! Every command, and what it leads to.

use std::io;

use clap::CommandFactory as _;
use muster_runtime::{
    config::DataDir,
    telemetry::{self, Telemetry},
    threads,
};
use serde_json::json;
use tokio::runtime::Runtime;
use tracing::Level;

use crate::{
    access::{self, AccessCommand},
    approvals::{self, ApprovalCommand},
    audit::{self, AuditCommand},
    authority::{self, AuthorityCommand},
    failure::Failure,
    fs::{self, FsCommand},
    grants::{self, GrantCommand},
    hosts::{self, HostCommand},
    jobs::{self, JobCommand},
    login::{Login, Logout},
    operator::Operator,
    policy::{self, PolicyCommand},
    roles::{self, agent::AgentCommand, control_plane::ControlPlane, gateway::GatewayCommand},
    run::RunCommand,
    screen,
    shell::ShellCommand,
    tokens::{self, TokenCommand},
};

/// Operate a fleet of machines as one: from a shell, from scripts, from AI clients.
#[derive(clap::Parser, Debug)]
#[command(
    name = "muster",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "First steps:
  muster up                              a whole fleet of one, on this machine
  muster run all -- uname -a             run a command on it
  muster token create host web-1         make the command that adds another machine

Every flag that shows [env: …] can be set there. Settings under a heading can also stand in config.toml \
of the data directory, in the section of that name: [control-plane] listen = \"0.0.0.0:8766\". A flag \
stands over the environment, which stands over the file."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    data_dir: DataDir,
    #[command(flatten)]
    telemetry: telemetry::Config,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Serve a whole fleet of one: control plane, MCP gateway and an agent for this machine
    Up(Box<roles::up::Up>),
    /// Serve as control plane only; back it up, restore it, or make it a service
    ControlPlane(Box<ControlPlane>),
    /// Join or serve this machine as a host, or make that a service
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Join or serve as MCP gateway, over HTTP, or make that a service
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// Serve MCP over standard input and output, for AI clients that start it themselves
    Mcp(roles::mcp::Mcp),

    /// Hosts: list, show, label, lower, lock, remove, watch, instruct
    Host {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Run a command on hosts, as if it ran here
    Run {
        #[command(flatten)]
        run: Box<RunCommand>,
        // Behind, since the heading of a group also covers what follows it.
        #[command(flatten)]
        operator: Operator,
    },
    /// Work in a terminal of a host
    Shell {
        #[command(flatten)]
        shell: Box<ShellCommand>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Files of hosts: read them, and see what they are
    Fs {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: FsCommand,
    },
    /// Jobs: list, show, watch, attach, read output, cancel, release
    Job {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: JobCommand,
    },
    /// Tokens: let machines join, let people, AI clients and scripts ask
    Token {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Rights: principals with their roles, locks and tokens
    Access {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: AccessCommand,
    },
    /// The authority behind all certificates: show it, or have another take its place
    Authority {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: AuthorityCommand,
    },
    /// Become an operator here, by a join string from `muster access invite`
    Login(Login),
    /// Forget the operator's certificate here
    Logout(Logout),
    /// The audit log: list, export, verify, and the heads that prove it
    Audit {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Policies: show, set, edit, check, explain, test
    Policy {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Approvals: list what waits for somebody's word, show it, approve, decline
    Approval {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: ApprovalCommand,
    },
    /// Grants: ask for a temporary permit, list, revoke
    Grant {
        #[command(flatten)]
        operator: Operator,
        #[command(subcommand)]
        command: GrantCommand,
    },
    /// Print completions for a shell
    #[command(after_help = "Examples:
  muster completion bash > ~/.local/share/bash-completion/completions/muster
  muster completion zsh > \"${fpath[1]}/_muster\"
  muster completion fish > ~/.config/fish/completions/muster.fish")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    /// Errors are JSON too where the answer would be.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Host { operator, .. }
            | Self::Run { operator, .. }
            | Self::Shell { operator, .. }
            | Self::Fs { operator, .. }
            | Self::Job { operator, .. }
            | Self::Token { operator, .. }
            | Self::Access { operator, .. }
            | Self::Approval { operator, .. }
            | Self::Grant { operator, .. }
            | Self::Authority { operator, .. } => operator.json,
            Self::Login(login) => login.json,
            Self::Audit { operator, .. } | Self::Policy { operator, .. } => operator.json,
            Self::Version { json } | Self::Agent(AgentCommand::Status { json }) => *json,
            _ => false,
        }
    }

    /// What the command runs on.
    pub(crate) fn runtime(&self) -> io::Result<Runtime> {
        match self {
            Self::Agent(_) => threads::single(),
            Self::Up(_) | Self::ControlPlane(_) | Self::Gateway(_) | Self::Mcp(_) => {
                threads::serving()
            }
            // One thread prints, and whoever reads slowly may hold it up; another keeps the connection.
            _ => threads::spread(1),
        }
    }

    /// The name in traces, and what is logged unless a setting says otherwise.
    fn telemetry(&self) -> (&'static str, Level) {
        match self {
            // It speaks to a person: a dozen calm lines, and only what is wrong after them.
            Self::Up(_) => ("muster-up", Level::WARN),
            Self::ControlPlane(role) if role.command.is_none() => {
                ("muster-control-plane", Level::INFO)
            }
            Self::Agent(AgentCommand::Run(_)) => ("muster-agent", Level::INFO),
            Self::Gateway(GatewayCommand::Run(_)) => ("muster-mcp-gateway", Level::INFO),
            Self::Mcp(_) => ("muster-mcp", Level::WARN),
            _ => ("muster", Level::WARN),
        }
    }
}

impl Cli {
    pub(crate) async fn run(self) -> Result<u8, Failure> {
        let (service, level) = self.command.telemetry();
        let telemetry = telemetry::start(&self.telemetry, service, level)
            .map_err(|error| Failure::internal(error.to_string()))?;
        let done = self.dispatch().await;
        Telemetry::stop(telemetry).await;
        done
    }

    async fn dispatch(self) -> Result<u8, Failure> {
        let data_dir = || {
            self.data_dir
                .path()
                .map_err(|error| Failure::usage(error.to_string()))
        };
        let at =
            |operator: Operator| -> Result<Operator, Failure> { Ok(operator.within(data_dir()?)) };
        match self.command {
            Command::Up(up) => up.run(data_dir()?).await,
            Command::ControlPlane(config) => config.run(&self.data_dir).await,
            Command::Agent(command) => roles::agent::run(command, &self.data_dir).await,
            Command::Gateway(command) => roles::gateway::run(command, &self.data_dir).await,
            Command::Mcp(mcp) => mcp.run(data_dir()?).await,
            Command::Host { operator, command } => hosts::run(command, &at(operator)?).await,
            Command::Run { operator, run } => run.run(&at(operator)?).await,
            Command::Shell { operator, shell } => shell.run(&at(operator)?).await,
            Command::Fs { operator, command } => fs::run(command, &at(operator)?).await,
            Command::Job { operator, command } => jobs::run(command, &at(operator)?).await,
            Command::Approval { operator, command } => {
                approvals::run(command, &at(operator)?).await
            }
            Command::Grant { operator, command } => grants::run(command, &at(operator)?).await,
            Command::Token { operator, command } => tokens::run(command, &at(operator)?).await,
            Command::Access { operator, command } => access::run(command, &at(operator)?).await,
            Command::Authority { operator, command } => {
                authority::run(command, &at(operator)?).await
            }
            Command::Login(login) => login.run(&data_dir()?).await,
            Command::Logout(logout) => logout.run(&data_dir()?),
            Command::Audit { operator, command } => audit::run(command, &at(operator)?).await,
            Command::Policy { operator, command } => policy::run(command, &at(operator)?).await,
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "muster", &mut script);
                io::Write::write_all(&mut io::stdout().lock(), &script)?;
                Ok(0)
            }
            Command::Version { json } => {
                let version = env!("CARGO_PKG_VERSION");
                if json {
                    screen::print_json(&json!({"version": version}))?;
                } else {
                    screen::print(&format!("muster {version}\n"))?;
                }
                Ok(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn operator_flags_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["muster", "host", "list", "--json", "--address", "h:1"]);
        assert!(cli.unwrap().command.wants_json());
    }
    /// The sample that people copy: every line of it, uncommented, is a setting that exists.
    #[test]
    fn the_sample_settings_are_settings() {
        let sample = include_str!("../../deploy/config.toml");
        let settings: String = sample
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(setting) if setting.contains(" = ") => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert!(settings.lines().filter(|line| line.contains(" = ")).count() > 20);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.toml"), settings).unwrap();
        let arguments = ["muster", "control-plane", "--data-dir"].map(Into::into);
        let arguments = arguments.into_iter().chain([directory.path().into()]);
        let loaded: Result<Cli, _> = muster_runtime::config::load(arguments, &|_| None);
        if let Err(refusal) = loaded {
            panic!("{refusal}");
        }
    }
}
