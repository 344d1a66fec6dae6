//! systemd's own commands: what they are asked, and what they answer.

use std::{
    io,
    process::{Command, Output, Stdio},
};

use super::{Scope, ServiceError};

/// Lines of a service's log that are shown when it does not start.
const LOG_LINES: &str = "12";

/// A service manager: the machine's, or the user's own.
#[derive(Debug, Clone, Copy)]
pub struct Manager(pub Scope);

impl Manager {
    /// What people type to ask it.
    pub fn systemctl(self) -> &'static str {
        match self.0 {
            Scope::System => "systemctl",
            Scope::User => "systemctl --user",
        }
    }

    /// What people type to read a service's log.
    pub fn journal(self, unit: &str) -> String {
        match self.0 {
            Scope::System => format!("journalctl -u {unit}"),
            Scope::User => format!("journalctl --user -u {unit}"),
        }
    }

    /// Asks, and waits for the answer. Blocks: starting takes as long as the unit allows.
    pub(super) fn call(self, arguments: &[&str]) -> Result<String, ServiceError> {
        let scope = match self.0 {
            Scope::System => None,
            Scope::User => Some("--user"),
        };
        let arguments: Vec<&str> = scope.into_iter().chain(arguments.iter().copied()).collect();
        call("systemctl", &arguments)
    }

    /// Where a unit stands. `None` where there is no service manager to ask.
    pub fn standing(self, unit: &str) -> Option<Standing> {
        let properties = "--property=LoadState,ActiveState,SubState,UnitFileState,StatusText,\
                          ActiveEnterTimestamp,NRestarts,Result,FragmentPath,MainPID";
        let answer = self.call(&["show", "--no-pager", properties, unit]).ok()?;
        Some(Standing::read(&answer))
    }

    /// The last lines of a unit's log, where they can be read.
    pub(super) fn log(self, unit: &str) -> String {
        let mut arguments = vec![
            "--no-pager",
            "--quiet",
            "--output=cat",
            "--lines",
            LOG_LINES,
        ];
        if self.0 == Scope::User {
            arguments.push("--user");
        }
        arguments.extend(["--unit", unit]);
        call("journalctl", &arguments).unwrap_or_default()
    }
}

/// Where a unit stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether the manager has read a unit of this name.
    pub loaded: bool,
    /// As systemd says it: `active`, `activating`, `inactive`, `failed`, ….
    pub active: String,
    /// More of the same: `running`, `auto-restart`, `dead`, ….
    pub sub: String,
    /// Whether it starts by itself: `enabled`, `disabled`, ….
    pub enabled: String,
    /// What the service says of itself.
    pub status: String,
    /// Since when it is active, as systemd writes it.
    pub since: String,
    /// How often it was started again since somebody started it.
    pub restarts: u64,
    /// How it ended last, as `success`, `exit-code`, `watchdog`.
    pub result: String,
    /// Process id of the service; 0 if there is none.
    pub process_id: u32,
}

impl Standing {
    /// Reads what `systemctl show` prints.
    fn read(text: &str) -> Self {
        let mut standing = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let text = || value.to_owned();
            match key {
                "LoadState" => standing.loaded = value == "loaded",
                "ActiveState" => standing.active = text(),
                "SubState" => standing.sub = text(),
                "UnitFileState" => standing.enabled = text(),
                "StatusText" => standing.status = text(),
                "ActiveEnterTimestamp" => standing.since = text(),
                "NRestarts" => standing.restarts = value.parse().unwrap_or(0),
                "Result" => standing.result = text(),
                "MainPID" => standing.process_id = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        standing
    }

    /// In a line, for people.
    pub fn describe(&self) -> String {
        if !self.loaded {
            return "not installed".to_owned();
        }
        let mut words = format!("{} ({})", self.active, self.sub);
        if self.active == "active" && !self.since.is_empty() {
            words += &format!(" since {}", self.since);
        }
        if self.active == "failed" || self.sub == "auto-restart" {
            words += &format!(", ended with {}", self.result);
        }
        if !self.enabled.is_empty() {
            words += &format!(", {}", self.enabled);
        }
        if self.restarts > 0 {
            words += &format!(", restarted {} times", self.restarts);
        }
        words
    }
}

/// Runs a command of the system to its end.
pub(super) fn call(program: &str, arguments: &[&str]) -> Result<String, ServiceError> {
    #[allow(clippy::disallowed_methods)]
    // no task: a command of the system that does one thing and ends
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    judge(program, arguments, output)
}

fn judge(
    program: &str,
    arguments: &[&str],
    output: io::Result<Output>,
) -> Result<String, ServiceError> {
    let detail = match output {
        Ok(output) if output.status.success() => {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if said.is_empty() {
                output.status.to_string()
            } else {
                said
            }
        }
        Err(error) => error.to_string(),
    };
    let command = format!("{program} {}", arguments.join(" "));
    Err(ServiceError::Command {
        next: format!("see why `{command}` fails here, then try again: it is safe"),
        command,
        detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_standing_is_read_and_said_in_a_line() {
        let running = Standing::read(
            "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nNRestarts=2\n\
             StatusText=attached to a=b\nActiveEnterTimestamp=Mon 10:00\nMainPID=77\nUnknown=x\n",
        );
        assert_eq!(running.status, "attached to a=b");
        assert_eq!(running.process_id, 77);
        assert_eq!(
            running.describe(),
            "active (running) since Mon 10:00, enabled, restarted 2 times"
        );
        let gone = Standing::read("LoadState=not-found\nActiveState=inactive\nSubState=dead\n");
        assert_eq!(gone.describe(), "not installed");
        let failing = Standing::read(
            "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\nUnitFileState=enabled\n",
        );
        assert_eq!(
            failing.describe(),
            "activating (auto-restart), ended with exit-code, enabled"
        );
    }

    #[test]
    fn a_command_that_fails_says_what_it_said() {
        let error = call("ls", &["/nowhere/at/all"]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        let error = call("no-such-program-anywhere", &[]).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
