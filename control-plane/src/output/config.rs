//! How much output is kept: the settings.

use std::time::Duration;

use super::OutputLimits;

/// How much output of tasks is kept.
#[derive(clap::Args, Debug, Clone)]
#[group(skip)]
pub struct OutputConfig {
    /// Output kept of one task, MiB; beyond it beginning and end are kept, and a gap says how much is not.
    #[arg(long, env = "MUSTER_OUTPUT_OF_TASK", value_name = "MIB", default_value_t = 512,
          value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub output_of_task: u64,

    /// Output kept of all tasks, MiB; beyond it the oldest goes first.
    #[arg(long, env = "MUSTER_OUTPUT_TOTAL", value_name = "MIB", default_value_t = 20_480,
          value_parser = clap::value_parser!(u64).range(128..=1_073_741_824))]
    pub output_total: u64,

    /// How long output is kept.
    #[arg(long, env = "MUSTER_OUTPUT_AGE", value_name = "DURATION", default_value = "30d",
          value_parser = humantime::parse_duration)]
    pub output_age: Duration,

    /// Space on the disk that output leaves free, MiB: it is refused rather than fill it.
    #[arg(long, env = "MUSTER_OUTPUT_FREE", value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u64).range(0..=1_073_741_824))]
    pub output_free: u64,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            output_of_task: 512,
            output_total: 20_480,
            output_age: Duration::from_secs(30 * 24 * 60 * 60),
            output_free: 256,
        }
    }
}

impl OutputConfig {
    /// The same, as the store takes it.
    pub(crate) fn limits(&self) -> OutputLimits {
        OutputLimits {
            task_bytes: self.output_of_task << 20,
            total_bytes: self.output_total << 20,
            age: self.output_age,
            free_bytes: self.output_free << 20,
            segment_bytes: 64 << 20,
        }
    }
}
