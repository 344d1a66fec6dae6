//! How a process is lived in: what it may use, what its environment holds, what becomes of much output.

use muster_proto::v1::{Command, Environment, Limits, OutputLimit, environment, output_limit};

#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "What it may use")]
pub(crate) struct Living {
    /// Lower its priority, 0 to 19
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: Option<i32>,

    /// Memory of all its processes together, as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<i64>,

    /// Processes and threads at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    processes: Option<i32>,

    /// Processors' worth of time, as 0.5
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<i32>,

    /// How much of the agent's own environment it gets [default: all, without what looks secret]
    #[arg(long, value_name = "HOW")]
    env_inherit: Option<Inherit>,

    /// Leave out variables of these names, as 'AWS_*'; may be repeated
    #[arg(long, value_name = "PATTERN")]
    env_exclude: Vec<String>,

    /// Keep inherited variables whose names look secret
    #[arg(long)]
    env_keep_secrets: bool,

    /// What becomes of output beyond the limit [default: head-tail]
    #[arg(long, value_name = "HOW")]
    output_policy: Option<Policy>,

    /// The limit, as 64M, never beyond the host's own
    #[arg(long, value_name = "SIZE", value_parser = size)]
    output_max: Option<i64>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Inherit {
    /// All of it, without what looks secret
    All,
    /// HOME, LANG, PATH and the like
    Core,
    /// Nothing
    None,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Policy {
    /// Keep the beginning and the end
    HeadTail,
    /// Stop reading: the process waits
    Block,
    /// End the task
    Fail,
    /// Keep the newest, and little of the beginning
    DropOldest,
}

impl Living {
    /// Writes it into a command.
    pub(crate) fn fill(&self, command: &mut Command) {
        let limits = Limits {
            nice: self.nice.unwrap_or_default(),
            memory_bytes: self.memory.unwrap_or_default(),
            processes: self.processes.unwrap_or_default(),
            cpu_millis: self.cpus.unwrap_or_default(),
        };
        command.limits = (limits != Limits::default()).then_some(limits);
        let inherit = match self.env_inherit {
            None => environment::Inherit::Unspecified,
            Some(Inherit::All) => environment::Inherit::All,
            Some(Inherit::Core) => environment::Inherit::Core,
            Some(Inherit::None) => environment::Inherit::None,
        };
        let environment = Environment {
            inherit: inherit.into(),
            exclude: self.env_exclude.clone(),
            keep_secrets: self.env_keep_secrets,
        };
        command.environment = (environment != Environment::default()).then_some(environment);
        let policy = match self.output_policy {
            None => output_limit::Policy::Unspecified,
            Some(Policy::HeadTail) => output_limit::Policy::HeadTail,
            Some(Policy::Block) => output_limit::Policy::Block,
            Some(Policy::Fail) => output_limit::Policy::Fail,
            Some(Policy::DropOldest) => output_limit::Policy::DropOldest,
        };
        let limit = OutputLimit {
            policy: policy.into(),
            max_bytes: self.output_max.unwrap_or_default(),
        };
        command.output_limit = (limit != OutputLimit::default()).then_some(limit);
    }
}

/// A number of bytes with a unit of 1,024: "512", "64K", "2G".
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let wrong = || "it must be a number of bytes, or one with K, M, G or T".to_owned();
    let bare = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[bare.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1_i64 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: i64 = bare.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(wrong)
}

/// Processors as thousandths of one.
fn cpus(text: &str) -> Result<i32, String> {
    let wrong = || "it must be a number of processors, as 0.5 or 2".to_owned();
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.001..=1_000_000.0).contains(&number) {
        return Err(wrong());
    }
    Ok((number * 1000.0).round() as i32)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Program {
        #[command(flatten)]
        living: Living,
    }

    fn command(arguments: &[&str]) -> Command {
        let arguments = std::iter::once(&"run").chain(arguments);
        let mut command = Command::default();
        Program::parse_from(arguments).living.fill(&mut command);
        command
    }

    #[test]
    fn what_is_not_said_is_absent() {
        assert_eq!(command(&[]), Command::default());
    }

    #[test]
    fn what_is_said_has_its_unit() {
        let command = command(&[
            "--nice",
            "5",
            "--memory",
            "2G",
            "--processes",
            "9",
            "--cpus",
            "0.25",
            "--env-inherit",
            "core",
            "--env-exclude",
            "AWS_*",
            "--output-policy",
            "block",
            "--output-max",
            "64K",
        ]);
        let limits = command.limits.unwrap();
        assert_eq!((limits.memory_bytes, limits.cpu_millis), (2 << 30, 250));
        assert_eq!((limits.nice, limits.processes), (5, 9));
        let environment = command.environment.unwrap();
        assert_eq!(environment.inherit(), environment::Inherit::Core);
        let limit = command.output_limit.unwrap();
        assert_eq!(
            (limit.policy(), limit.max_bytes),
            (output_limit::Policy::Block, 64 << 10)
        );
    }

    #[test]
    fn sizes_are_plain() {
        for (text, bytes) in [
            ("1", 1),
            ("64k", 64 << 10),
            ("3MiB", 3 << 20),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "K", "0", "-1", "1X", "9999999T", "1.5G"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(cpus("0").is_err() && cpus("NaN").is_err() && cpus("two").is_err());
    }
}
