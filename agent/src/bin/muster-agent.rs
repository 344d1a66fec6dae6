//! The lean agent, for hosts that need nothing else of Muster.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use muster_agent::{Agent, Config, Join, join};
use muster_runtime::{
    config::{self, DataDir},
    descriptors, shutdown, telemetry,
};
use tracing::Level;

/// Something outside failed (`EX_UNAVAILABLE` of sysexits.h).
const EXIT_UNAVAILABLE: u8 = 69;

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
}

fn main() -> ExitCode {
    if let Some(code) = muster_agent::supervise() {
        return code;
    }
    let settings: Settings = config::parse();
    // Without, what is given has to do.
    let _ = descriptors::raise();
    // Two: one may be busy with a large output while the other goes on.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let done = match runtime {
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
            ExitCode::from(EXIT_UNAVAILABLE)
        }
    }
}

async fn start(settings: Settings) -> anyhow::Result<()> {
    let telemetry = telemetry::start(&settings.telemetry, "muster-agent", Level::INFO)?;
    let data_dir = settings.data_dir.path()?;
    let done = match settings.command {
        Command::Join(settings) => {
            let join_string = settings.join_string()?;
            let name = settings.name.unwrap_or_default();
            let joined = join(&Config::new(data_dir), &join_string, &name).await;
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
        Command::Run(config) => run(Config { data_dir, ..config }).await,
    };
    telemetry.stop().await;
    done
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    let agent = Agent::open(config).await?;
    agent.run(stop).await?;
    Ok(())
}
