//! Benchmarks of the programs as they are shipped, each beside what bounds it, measured in the same run.
//!
//! Not tests: they print medians, 99th percentiles and ratios. `README.md` says how to read them.
// A benchmark's only result is what it prints.
#![allow(clippy::print_stdout)]

mod accept;
mod agents;
mod audit;
mod commands;
mod echo;
mod family;
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
mod reference;
mod sandbox;
mod simulated;
mod ssh;
mod stream;
mod supervisors;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};

use crate::{fleet::Fleet, programs::Programs};

/// Measures Muster beside what bounds it
#[derive(Parser)]
#[command(version)]
struct Settings {
    /// Directory of the release binaries `muster` and `muster-agent` [default: that of this program]
    #[arg(long, global = true)]
    binaries: Option<PathBuf>,
    /// Another `muster`, as one that was kept
    #[arg(long, global = true, value_name = "PATH")]
    muster: Option<PathBuf>,
    /// Another `muster-agent`
    #[arg(long, global = true, value_name = "PATH")]
    muster_agent: Option<PathBuf>,
    /// Measures OpenSSH too: arguments with which ssh reaches this machine without a password, as
    /// "-p 2222 root@127.0.0.1"
    #[arg(
        long,
        global = true,
        value_name = "ARGUMENTS",
        allow_hyphen_values = true
    )]
    ssh: Option<String>,
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// `true` on one host, one after the other: over gRPC, over MCP, and beside them a local spawn
    Latency {
        /// How many of each
        #[arg(long, default_value_t = 500)]
        samples: usize,
        /// Milliseconds without work before each, as between commands that a person or a model gives
        #[arg(long, default_value_t = 0)]
        pause: u64,
    },
    /// `true` per second, many in flight
    Rate {
        /// How many in all
        #[arg(long, default_value_t = 4_000)]
        samples: usize,
        /// How many at once
        #[arg(long, default_value_t = 32)]
        in_flight: usize,
    },
    /// Output of tasks to a client that watches, verified, with the CPU time of each process
    Stream {
        /// MiB, of all tasks together
        #[arg(long, default_value_t = 256)]
        size: u64,
        /// How many times
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// How many tasks at once, each number by itself
        #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
        tasks: Vec<usize>,
    },
    /// From the call to the first byte of output
    FirstByte {
        /// How many
        #[arg(long, default_value_t = 300)]
        samples: usize,
        /// Milliseconds without work before each
        #[arg(long, default_value_t = 0)]
        pause: u64,
    },
    /// A line to the standard input of a running task, and back as its output
    Echo {
        /// How many
        #[arg(long, default_value_t = 1_000)]
        samples: usize,
    },
    /// What a process between the agent and each task costs: memory of sleeping tasks, starts on new agents
    Supervisors {
        /// How many times the agent is started anew
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// From a lock to the last stream's end
    Locks {
        /// Streams that are open
        #[arg(long, default_value_t = 1_000)]
        streams: usize,
        /// How many locks of each kind
        #[arg(long, default_value_t = 20)]
        rounds: usize,
    },
    /// `true` on a host without confinement, read-only and in edit, one after the other
    Sandbox {
        /// How many of each
        #[arg(long, default_value_t = 300)]
        samples: usize,
        /// How often the host changes from one to the next
        #[arg(long, default_value_t = 4)]
        rounds: usize,
    },
    /// Jobs accepted per second, durably, for a host that is away
    Accept {
        /// How many in all
        #[arg(long, default_value_t = 10_000)]
        jobs: usize,
        /// How many at once
        #[arg(long, default_value_t = 64)]
        in_flight: usize,
    },
    /// Memory and CPU of idle programs, sizes, and the time to the first result
    Footprint {
        /// Seconds to watch the idle programs
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// What policy takes to decide: once, and about a job on many hosts. Starts nothing
    Policy {
        /// Hosts of the job
        #[arg(long, default_value_t = 10_000)]
        hosts: usize,
        /// Policies beside those that are shipped
        #[arg(long, default_value_t = 100)]
        policies: usize,
        /// Different sets of labels
        #[arg(long, default_value_t = 1_000)]
        sets: usize,
    },
    /// What the audit log costs: on the way of a call, in the ledger, and to verify one that was written down
    Audit {
        /// Entries of the log that is verified
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
        /// Calls of each kind, and entries in a ledger of their own
        #[arg(long, default_value_t = 2_000)]
        samples: usize,
    },
    /// Many agents on one control plane: connections with an identity each, which answer without a process
    Agents {
        /// How many
        #[arg(long, default_value_t = 1_000)]
        count: usize,
        /// How many dial at once
        #[arg(long, default_value_t = 200)]
        at_once: usize,
    },
    /// All of the above but the agents
    All,
}

impl Settings {
    fn programs(&self) -> anyhow::Result<Programs> {
        let mut programs = match &self.binaries {
            Some(binaries) => Programs::of(binaries),
            None => {
                let program = std::env::current_exe()?;
                Programs::of(program.parent().unwrap_or(Path::new("")))
            }
        };
        programs.muster = self.muster.clone().unwrap_or(programs.muster);
        programs.agent = self.muster_agent.clone().unwrap_or(programs.agent);
        Ok(programs)
    }
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let programs = settings.programs()?;
    // Every connection of a simulated agent is a descriptor.
    let _ = process::raise_file_limit();
    // As a program that has the SDK in it: no work on the thread that only waits. Simulated agents are many programs.
    let threads = match settings.benchmark {
        Benchmark::Agents { .. } => 2,
        _ => 1,
    };
    let runtime = muster_runtime::threads::spread(threads)?;
    let running = runtime.spawn(run(settings.benchmark, programs, settings.ssh));
    runtime.block_on(running)?
}

async fn run(benchmark: Benchmark, programs: Programs, ssh: Option<String>) -> anyhow::Result<()> {
    // These start programs of their own.
    match benchmark {
        Benchmark::Footprint { seconds } => return footprint::run(&programs, seconds).await,
        Benchmark::Supervisors { rounds } => return supervisors::run(&programs, rounds).await,
        Benchmark::Sandbox { samples, rounds } => {
            return sandbox::run(&programs, samples, rounds).await;
        }
        Benchmark::Agents { count, at_once } => {
            return agents::run(&programs, count, at_once).await;
        }
        Benchmark::Policy {
            hosts,
            policies,
            sets,
        } => return policy::run(hosts, policies, sets),
        _ => {}
    }
    let fleet = Fleet::start(&programs, ssh.as_deref()).await?;
    match benchmark {
        Benchmark::Latency { samples, pause } => {
            commands::latency(&fleet, samples, Duration::from_millis(pause)).await
        }
        Benchmark::Rate { samples, in_flight } => commands::rate(&fleet, samples, in_flight).await,
        Benchmark::Stream {
            size,
            rounds,
            tasks,
        } => stream::run(&fleet, size << 20, rounds, &tasks).await,
        Benchmark::Echo { samples } => echo::run(&fleet, samples).await,
        Benchmark::FirstByte { samples, pause } => {
            first_byte::run(&fleet, samples, Duration::from_millis(pause)).await
        }
        Benchmark::Accept { jobs, in_flight } => accept::run(&fleet, jobs, in_flight).await,
        Benchmark::Locks { streams, rounds } => locks::run(&fleet, streams, rounds).await,
        Benchmark::Audit { entries, samples } => {
            audit::run(&fleet, &programs, entries, samples).await
        }
        Benchmark::Footprint { .. }
        | Benchmark::Supervisors { .. }
        | Benchmark::Sandbox { .. }
        | Benchmark::Agents { .. }
        | Benchmark::Policy { .. } => Ok(()),
        Benchmark::All => {
            commands::latency(&fleet, 500, Duration::ZERO).await?;
            commands::rate(&fleet, 4_000, 32).await?;
            first_byte::run(&fleet, 300, Duration::ZERO).await?;
            echo::run(&fleet, 1_000).await?;
            stream::run(&fleet, 256 << 20, 5, &[1, 64]).await?;
            accept::run(&fleet, 10_000, 64).await?;
            audit::run(&fleet, &programs, 1_000_000, 2_000).await?;
            drop(fleet);
            supervisors::run(&programs, 10).await?;
            sandbox::run(&programs, 300, 4).await?;
            footprint::run(&programs, 20).await?;
            policy::run(10_000, 100, 1_000)
        }
    }
}
