//! What is asked for on the command line.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::{programs::Programs, relay};

/// Measures Muster beside what bounds it
#[derive(Parser)]
#[command(version)]
pub(crate) struct Settings {
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
    pub(crate) ssh: Option<String>,
    /// Measures the programs of this directory too, as "before", in turn with those
    #[arg(long, global = true, value_name = "DIR")]
    before: Option<PathBuf>,
    /// Goes on though the relay is implausible; the run is void all the same, and ends with exit code 3
    #[arg(long, global = true)]
    pub(crate) even_if_void: bool,
    #[command(subcommand)]
    pub(crate) benchmark: Benchmark,
}

#[derive(Subcommand)]
pub(crate) enum Benchmark {
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
    /// Many watchers of one job that writes a lot, some of which never read: memory of the control plane
    Watchers {
        /// How many
        #[arg(long, default_value_t = 300)]
        count: usize,
        /// How many of them never read
        #[arg(long, default_value_t = 100)]
        silent: usize,
    },
    /// Bytes that a command leaves on disk, at the control plane and at the agent
    Remains {
        /// How many
        #[arg(long, default_value_t = 8_000)]
        commands: usize,
    },
    /// All that is held against a target, in one table
    Table,
    /// All of the above but agents, watchers, remains and the table
    All,
    /// A process of the relay
    #[command(subcommand, hide = true)]
    Relay(relay::Role),
}

impl Settings {
    /// The programs that are measured.
    pub(crate) fn programs(&self) -> anyhow::Result<Programs> {
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

    /// All programs that are measured in turn, each with its label.
    pub(crate) fn sides(&self) -> anyhow::Result<Vec<(String, Programs)>> {
        let now = self.programs()?;
        Ok(match &self.before {
            Some(before) => vec![
                ("before".to_owned(), Programs::of(before)),
                ("now".to_owned(), now),
            ],
            None => vec![(String::new(), now)],
        })
    }
}
