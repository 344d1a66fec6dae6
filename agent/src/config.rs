//! Every setting and its default.

use std::path::PathBuf;

/// The program that runs, also after its file was replaced by another version.
const OURSELVES: &str = "/proc/self/exe";

/// How an agent runs.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Agent")]
#[group(skip)]
pub struct Config {
    /// The data directory, of which the part `agent` holds identity, journal and spool. Set by the program.
    #[arg(skip)]
    pub data_dir: PathBuf,

    /// The program that supervises tasks: one that calls [`supervise`](crate::supervise) first. Set by the program;
    /// by default itself.
    #[arg(skip = PathBuf::from(OURSELVES))]
    pub supervisor: PathBuf,

    /// Address of the control plane, as "HOST:PORT" [default: that of the join string]
    #[arg(long, env = "MUSTER_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: Option<String>,

    /// What this host permits at most, instead of /etc/muster/policy.toml or policy.toml in the agent's directory.
    #[arg(long, env = "MUSTER_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Tasks that run at once; further offers are refused.
    #[arg(long, env = "MUSTER_MAX_TASKS", value_name = "NUMBER", default_value_t = 1024,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    pub max_tasks: usize,

    /// Output kept on this host for one task until the control plane has it, MiB; beyond, beginning and
    /// end are kept.
    #[arg(long, env = "MUSTER_TASK_SPOOL", value_name = "MIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub task_spool: u64,

    /// The same for all tasks together, MiB.
    #[arg(long, env = "MUSTER_SPOOL", value_name = "MIB", default_value_t = 4096,
          value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub spool: u64,

    /// Share of the disk that output leaves free, percent.
    #[arg(long, env = "MUSTER_SPOOL_FREE", value_name = "PERCENT", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(0..=99))]
    pub spool_free: u64,
}

impl Config {
    /// The defaults, in this data directory.
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            supervisor: PathBuf::from(OURSELVES),
            control_plane: None,
            policy: None,
            max_tasks: 1024,
            task_spool: 1024,
            spool: 4096,
            spool_free: 5,
        }
    }

    /// Where the agent keeps its state.
    pub fn directory(&self) -> PathBuf {
        self.data_dir.join("agent")
    }
}
