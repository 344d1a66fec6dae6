//! The kind `command`: runs a program, by argv or by a script.

mod living;

use std::time::Duration;

use muster_proto::v1::Command;

use crate::model::{Refusal, redaction::REDACTED};

/// Bytes of arguments and environment, as of standard input.
const TEXT_MAX: usize = 1 << 20;
/// Lines of a terminal, and characters in a line.
pub(crate) const SIDE_MAX: i32 = 1000;
/// Bytes of a path or a user.
const NAME_MAX: usize = 4096;

/// Refuses what no host could run.
pub(super) fn check(command: &Command) -> Result<(), Refusal> {
    check_program(command)?;
    check_lengths(command)?;
    check_surroundings(command)?;
    check_times(command)?;
    living::check(command)
}

/// There is one thing to run: a program, or a script.
fn check_program(command: &Command) -> Result<(), Refusal> {
    match (command.argv.as_slice(), &command.script) {
        ([], None) => return Err(Refusal::invalid("action.command", "needs argv or script")),
        ([_, ..], Some(_)) => {
            return Err(Refusal::invalid(
                "action.command",
                "has argv or script, not both",
            ));
        }
        ([program, ..], None) if program.is_empty() => {
            return Err(Refusal::invalid(
                "action.command.argv",
                "begins with a program",
            ));
        }
        ([], Some(script)) if script.text.is_empty() => {
            return Err(Refusal::invalid("action.command.script.text", "is empty"));
        }
        _ => {}
    }
    Ok(())
}

/// Texts hold no NUL, and nothing is longer than a host takes.
fn check_lengths(command: &Command) -> Result<(), Refusal> {
    let script = command
        .script
        .iter()
        .flat_map(|script| [&script.text, &script.shell]);
    let env = command.env.iter().flat_map(|(name, value)| [name, value]);
    let texts = command.argv.iter().chain(script).chain(env);
    let mut bytes = 0;
    for text in texts.chain([&command.cwd, &command.user]) {
        if text.contains('\0') {
            return Err(Refusal::invalid("action.command", "no text may hold a NUL"));
        }
        bytes += text.len() + 1;
    }
    if bytes > TEXT_MAX {
        return Err(Refusal::too_long(
            "action.command: argv, script and env",
            "1 MiB in all",
        ));
    }
    if command.stdin.len() > TEXT_MAX {
        return Err(Refusal::too_long("action.command.stdin", "1 MiB"));
    }
    if command.cwd.len() > NAME_MAX || command.user.len() > NAME_MAX {
        return Err(Refusal::too_long(
            "action.command: cwd and user",
            "4096 bytes",
        ));
    }
    Ok(())
}

/// Environment and directory are such as a process can have.
fn check_surroundings(command: &Command) -> Result<(), Refusal> {
    if command
        .env
        .keys()
        .any(|name| name.is_empty() || name.contains('='))
    {
        return Err(Refusal::invalid(
            "action.command.env",
            "a name is not empty and holds no \"=\"",
        ));
    }
    if command.env.values().any(|value| value == REDACTED) {
        return Err(Refusal::invalid(
            "action.command.env",
            "holds \"[redacted]\", which is what history shows of a secret; give its value",
        ));
    }
    if !command.cwd.is_empty() && !command.cwd.starts_with('/') {
        return Err(Refusal::invalid(
            "action.command.cwd",
            "is an absolute path",
        ));
    }
    Ok(())
}

fn check_times(command: &Command) -> Result<(), Refusal> {
    let timeout = command.timeout.map(Duration::try_from);
    if timeout.is_some_and(|timeout| timeout.is_err() || timeout.is_ok_and(|time| time.is_zero())) {
        return Err(Refusal::invalid("action.command.timeout", "is more than 0"));
    }
    if command
        .grace
        .is_some_and(|grace| Duration::try_from(grace).is_err())
    {
        return Err(Refusal::invalid("action.command.grace", "is not negative"));
    }
    Ok(())
}

/// The program, without its arguments.
pub(super) fn summary(command: &Command) -> String {
    match (&command.script, command.argv.first()) {
        (Some(_), _) => "a shell script".to_owned(),
        (None, Some(program)) => program.chars().take(200).collect(),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Reason;

    use super::*;

    fn command(argv: &[&str]) -> Command {
        Command {
            argv: argv.iter().map(ToString::to_string).collect(),
            ..Command::default()
        }
    }

    #[test]
    fn what_no_host_could_run_is_refused() {
        check(&command(&["true"])).unwrap();
        let relative = Command {
            cwd: "tmp".into(),
            ..command(&["true"])
        };
        let copied = Command {
            env: [("API_TOKEN".into(), REDACTED.into())].into(),
            ..command(&["true"])
        };
        for malformed in [command(&[]), command(&["a\0b"]), relative, copied] {
            let refusal = check(&malformed).unwrap_err();
            assert_eq!(refusal.reason, Reason::ArgumentInvalid, "{malformed:?}");
        }
        let long = "x".repeat(TEXT_MAX);
        let refusal = check(&command(&[&long])).unwrap_err();
        assert_eq!(refusal.reason, Reason::LimitExceeded);
    }
}
