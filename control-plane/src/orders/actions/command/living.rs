//! How a process may be lived in: terminal, limits, environment, output.

use muster_proto::v1::{
    Command, Environment, Limits, OutputLimit, Reason, Terminal, environment::Inherit,
    output_limit::Policy,
};

use crate::model::Refusal;

/// Characters of a terminal's kind.
const TERM_MAX: usize = 64;
/// The lowest priority.
const NICE_MAX: i32 = 19;
/// With less memory nothing starts.
const MEMORY_MIN: i64 = 1 << 20;
/// Patterns of names that are left out of an environment.
const PATTERNS_MAX: usize = 100;
/// Characters of one.
const PATTERN_MAX: usize = 128;

/// Checks what a command says about it.
pub(super) fn check(command: &Command) -> Result<(), Refusal> {
    match &command.terminal {
        Some(terminal) => check_terminal(terminal)?,
        None if command.record => {
            return Err(Refusal::invalid(
                "action.command.record",
                "needs action.command.terminal: pipes have no screen to record",
            ));
        }
        None => {}
    }
    command.limits.as_ref().map_or(Ok(()), check_limits)?;
    command
        .environment
        .as_ref()
        .map_or(Ok(()), check_environment)?;
    command.output_limit.as_ref().map_or(Ok(()), check_output)
}

fn check_terminal(terminal: &Terminal) -> Result<(), Refusal> {
    let sides = 0..=super::SIDE_MAX;
    if !sides.contains(&terminal.rows) || !sides.contains(&terminal.columns) {
        return Err(Refusal::invalid(
            "action.command.terminal",
            "rows and columns are 1 to 1,000, or 0 for what is usual",
        ));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if terminal.term.len() > TERM_MAX || !terminal.term.chars().all(plain) {
        return Err(Refusal::invalid(
            "action.command.terminal.term",
            "is the kind of a terminal, as \"xterm-256color\"",
        ));
    }
    Ok(())
}

fn check_limits(limits: &Limits) -> Result<(), Refusal> {
    if !(0..=NICE_MAX).contains(&limits.nice) {
        return Err(Refusal::invalid("action.command.limits.nice", "is 0 to 19"));
    }
    if limits.memory_bytes != 0 && limits.memory_bytes < MEMORY_MIN {
        return Err(Refusal::invalid(
            "action.command.limits.memory_bytes",
            "is at least 1 MiB, or 0 for no limit",
        ));
    }
    if limits.processes < 0 || limits.cpu_millis < 0 {
        return Err(Refusal::invalid(
            "action.command.limits",
            "processes and cpu_millis are not negative; 0 means no limit",
        ));
    }
    Ok(())
}

fn check_environment(environment: &Environment) -> Result<(), Refusal> {
    if Inherit::try_from(environment.inherit).is_err() {
        return Err(Refusal::invalid(
            "action.command.environment.inherit",
            "is unknown to this control plane",
        ));
    }
    if environment.exclude.len() > PATTERNS_MAX {
        return Err(Refusal::new(
            Reason::LimitExceeded,
            "action.command.environment.exclude: has at most 100 patterns",
        ));
    }
    let good = |pattern: &String| {
        let inner = pattern.strip_prefix('*').unwrap_or(pattern);
        let inner = inner.strip_suffix('*').unwrap_or(inner);
        !pattern.is_empty() && pattern.len() <= PATTERN_MAX && !inner.contains(['*', '=', '\0'])
    };
    if !environment.exclude.iter().all(good) {
        return Err(Refusal::invalid(
            "action.command.environment.exclude",
            "holds names with \"*\" at most at their ends, as \"AWS_*\"",
        ));
    }
    Ok(())
}

fn check_output(limit: &OutputLimit) -> Result<(), Refusal> {
    if Policy::try_from(limit.policy).is_err() {
        return Err(Refusal::invalid(
            "action.command.output_limit.policy",
            "is unknown to this control plane",
        ));
    }
    if limit.max_bytes < 0 {
        return Err(Refusal::invalid(
            "action.command.output_limit.max_bytes",
            "is not negative; 0 means the host's own limit",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(rows: i32, columns: i32, term: &str) -> Command {
        Command {
            terminal: Some(Terminal {
                rows,
                columns,
                term: term.to_owned(),
            }),
            ..Command::default()
        }
    }

    fn limits(limits: Limits) -> Command {
        Command {
            limits: Some(limits),
            ..Command::default()
        }
    }

    fn without(pattern: &str) -> Command {
        Command {
            environment: Some(Environment {
                exclude: vec![pattern.to_owned()],
                ..Environment::default()
            }),
            ..Command::default()
        }
    }

    fn output(policy: i32, max_bytes: i64) -> Command {
        Command {
            output_limit: Some(OutputLimit { policy, max_bytes }),
            ..Command::default()
        }
    }

    #[test]
    fn what_makes_sense_is_taken() {
        let recorded = Command {
            record: true,
            stdin: "exit\n".into(),
            ..terminal(24, 80, "xterm-256color")
        };
        let limited = limits(Limits {
            nice: 19,
            memory_bytes: MEMORY_MIN,
            processes: 10,
            cpu_millis: 500,
        });
        for command in [
            Command::default(),
            terminal(0, 0, ""),
            terminal(1000, 1, "rxvt+tabs"),
            recorded,
            limited,
            without("AWS_*"),
            without("*TOKEN*"),
            output(Policy::Block.into(), 1),
        ] {
            check(&command).unwrap();
        }
    }

    #[test]
    fn what_does_not_is_refused() {
        let record = Command {
            record: true,
            ..Command::default()
        };
        for command in [
            record,
            terminal(1001, 80, ""),
            terminal(24, -1, ""),
            terminal(24, 80, "a b"),
            limits(Limits {
                nice: 20,
                ..Limits::default()
            }),
            limits(Limits {
                nice: -1,
                ..Limits::default()
            }),
            limits(Limits {
                memory_bytes: 1,
                ..Limits::default()
            }),
            limits(Limits {
                processes: -1,
                ..Limits::default()
            }),
            without(""),
            without("A*B"),
            without("A=B"),
            output(99, 0),
            output(0, -1),
        ] {
            assert!(check(&command).is_err(), "{command:?}");
        }
    }
}
