//! The lean agent, for hosts that need nothing else of Muster.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use muster_agent::{
    Agent, AgentError, Attempt, Config, InstallArgs, InstallError, Join, Outcome, SERVICE,
    UninstallArgs, attempt, install, join, serve, uninstall,
};
use muster_runtime::{
    config::{self, DataDir},
    descriptors,
    service::Service,
    shutdown, telemetry, threads,
};
use tracing::Level;

/// Something outside failed (`EX_UNAVAILABLE` of sysexits.h).
const EXIT_UNAVAILABLE: u8 = 69;
/// Only an operator can help (`EX_NOPERM`): a service manager need not start it again.
const EXIT_NOT_ALLOWED: u8 = 77;

/// This program as a service.
const LEAN: Service = Service {
    command: "muster-agent",
    arguments: &["run"],
    ..SERVICE
};

/// Runs the tasks of a Muster control plane on this host.
#[derive(Parser)]
#[command(name = "muster-agent", version)]
struct Settings {
    #[command(flatten)]
    data_dir: DataDir,
    #[command(flatten)]
    telemetry: telemetry::Config,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Joins this host to a control plane, with a join string from `muster token create host`
    Join(Join),
    /// Serves this host until told to stop
    Run(Config),
    /// Run a command here as a task would be, to see what a mode lets it do
    Try(Attempt),
    /// Make it a service of systemd, which starts with this host; again, to upgrade it
    Install(InstallArgs),
    /// Take the service away
    Uninstall(UninstallArgs),
}

fn main() -> ExitCode {
    if let Some(code) = muster_agent::supervise() {
        return code;
    }
    let settings: Settings = config::parse();
    if let Command::Try(wanted) = settings.command {
        return try_command(settings.data_dir, wanted);
    }
    // Without, what is given has to do.
    let _ = descriptors::raise();
    let done = match threads::single() {
        Ok(runtime) => {
            let done = runtime.block_on(start(settings));
            // What blocks, as a program on a disk that hangs, does not keep the agent.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-agent: {error:#}");
            let next = error.downcast_ref::<InstallError>();
            if let Some(next) = next.and_then(InstallError::next) {
                eprintln!("  next: {next}");
            }
            ExitCode::from(match error.downcast_ref::<AgentError>() {
                Some(error) if error.is_final() => EXIT_NOT_ALLOWED,
                _ => EXIT_UNAVAILABLE,
            })
        }
    }
}

fn try_command(data_dir: DataDir, wanted: Attempt) -> ExitCode {
    let data_dir = match data_dir.path() {
        Ok(data_dir) => data_dir,
        Err(error) => {
            eprintln!("muster-agent: {error}");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    match attempt(data_dir, wanted) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("muster-agent: {error}");
            ExitCode::from(EXIT_NOT_ALLOWED)
        }
    }
}

async fn start(settings: Settings) -> anyhow::Result<()> {
    let telemetry = telemetry::start(&settings.telemetry, "muster-agent", Level::INFO)?;
    let done = match settings.command {
        Command::Join(wanted) => {
            let join_string = wanted.join_string()?;
            let name = wanted.name.unwrap_or_default();
            let joined = join(&Config::new(settings.data_dir.path()?), &join_string, &name).await;
            let identity = joined.map_err(|error| match error.reason() {
                Some(reason) => anyhow::anyhow!("{error} [{}]", reason.name()),
                None => anyhow::anyhow!("{error}"),
            })?;
            tracing::info!(
                "joined {} as {} ({})",
                identity.address(),
                identity.name(),
                identity.host_id().unwrap_or_default()
            );
            Ok(())
        }
        Command::Run(config) => {
            let data_dir = settings.data_dir.path()?;
            run(Config { data_dir, ..config }).await
        }
        // Done without a runtime.
        Command::Try(_) => Ok(()),
        Command::Install(args) => install(&LEAN, &args, &settings.data_dir)
            .await
            .map(say)
            .map_err(Into::into),
        Command::Uninstall(args) => uninstall(&LEAN, &args, &settings.data_dir)
            .await
            .map(say)
            .map_err(Into::into),
    };
    telemetry.stop().await;
    done
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    let agent = Agent::open(config).await?;
    serve(agent, stop).await?;
    Ok(())
}

/// Standard error holds what people read; this program has no other output.
fn say(outcome: Outcome) {
    eprint!("{outcome}");
}
