//! Benchmarks of the programs as they are shipped, each beside what bounds it, measured in the same run.
//!
//! Not tests: they print medians, 99th percentiles and ratios. `README.md` says how to read them.
// A benchmark's only result is what it prints.
#![allow(clippy::print_stdout)]

mod accept;
mod agents;
mod alone;
mod audit;
mod commands;
mod echo;
mod family;
mod field;
mod figures;
mod first_byte;
mod fleet;
mod footprint;
mod locks;
mod mcp;
mod meter;
mod policy;
mod process;
mod programs;
mod rate;
mod reference;
mod relay;
mod remains;
mod rounds;
mod sandbox;
mod settings;
mod simulated;
mod ssh;
mod stream;
mod supervisors;
mod table;
mod verdict;
mod watchers;

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;

use crate::{
    field::Field,
    fleet::Fleet,
    programs::Programs,
    settings::{Benchmark, Settings},
    verdict::Void,
};

/// A run that is void.
const VOID: u8 = 3;

fn main() -> ExitCode {
    let settings = Settings::parse();
    // Every connection of a simulated agent is a descriptor.
    let _ = process::raise_file_limit();
    let error = match measure(settings) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    match error.downcast_ref::<Void>() {
        Some(void) => {
            eprintln!("\n{void}");
            ExitCode::from(VOID)
        }
        None => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn measure(settings: Settings) -> anyhow::Result<()> {
    // As a program that has the SDK in it: no work on the thread that only waits. Simulated agents are many programs.
    let threads = match settings.benchmark {
        Benchmark::Relay(role) => return role.play(),
        Benchmark::Agents { .. } => 2,
        _ => 1,
    };
    let runtime = muster_runtime::threads::spread(threads)?;
    let running = runtime.spawn(run(settings));
    runtime.block_on(running)?
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let programs = settings.programs()?;
    // These start programs of their own, and compare them with nobody's.
    match settings.benchmark {
        Benchmark::Footprint { seconds } => footprint::run(&programs, seconds).await,
        Benchmark::Supervisors { rounds } => supervisors::run(&programs, rounds).await,
        Benchmark::Sandbox { samples, rounds } => sandbox::run(&programs, samples, rounds).await,
        Benchmark::Agents { count, at_once } => agents::run(&programs, count, at_once).await,
        Benchmark::Watchers { count, silent } => watchers::run(&programs, count, silent).await,
        Benchmark::Remains { commands } => remains::run(&programs, commands).await,
        Benchmark::Policy {
            hosts,
            policies,
            sets,
        } => policy::run(hosts, policies, sets),
        Benchmark::Accept { jobs, in_flight } => {
            accept::run(&Fleet::start(&programs).await?, jobs, in_flight).await
        }
        Benchmark::Locks { streams, rounds } => {
            locks::run(&Fleet::start(&programs).await?, streams, rounds).await
        }
        Benchmark::Audit { entries, samples } => {
            audit::run(&Fleet::start(&programs).await?, &programs, entries, samples).await
        }
        Benchmark::Table => {
            let (sides, ssh) = (settings.sides()?, settings.ssh.as_deref());
            table::run(&sides, ssh, settings.even_if_void).await
        }
        _ => compare(settings, &programs).await,
    }
}

/// Measures beside the relay.
async fn compare(settings: Settings, programs: &Programs) -> anyhow::Result<()> {
    let field = Field::start(&settings.sides()?, settings.ssh.as_deref()).await?;
    let verdict = verdict::of(&field).await?;
    if !settings.even_if_void {
        verdict?;
    }
    match settings.benchmark {
        Benchmark::Latency { samples, pause } => {
            commands::latency(&field, samples, Duration::from_millis(pause)).await?;
        }
        Benchmark::Rate { samples, in_flight } => {
            rate::rate(&field, samples, in_flight).await?;
        }
        Benchmark::Stream {
            size,
            rounds,
            tasks,
        } => stream::run(&field, size << 20, rounds, &tasks).await?,
        Benchmark::Echo { samples } => echo::close(echo::run(&field, samples).await?).await?,
        Benchmark::FirstByte { samples, pause } => {
            first_byte::run(&field, samples, Duration::from_millis(pause)).await?;
        }
        _ => all(field, programs).await?,
    }
    Ok(verdict?)
}

async fn all(field: Field, programs: &Programs) -> anyhow::Result<()> {
    commands::latency(&field, 500, Duration::ZERO).await?;
    rate::rate(&field, 4_000, 32).await?;
    first_byte::run(&field, 300, Duration::ZERO).await?;
    echo::close(echo::run(&field, 1_000).await?).await?;
    stream::run(&field, 256 << 20, 5, &[1, 64]).await?;
    drop(field);
    let fleet = Fleet::start(programs).await?;
    accept::run(&fleet, 10_000, 64).await?;
    audit::run(&fleet, programs, 1_000_000, 2_000).await?;
    drop(fleet);
    supervisors::run(programs, 10).await?;
    sandbox::run(programs, 300, 4).await?;
    footprint::run(programs, 20).await?;
    policy::run(10_000, 100, 1_000)
}
