//! Runs a program, or a script by a shell.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::v1::{Command, Mode, OutputLimit, Reason};

use super::{Declared, GRACE, Kind, Work};
use crate::process::StartError;

pub(super) const DECLARED: Declared = Declared {
    name: "command",
    needs: Mode::ReadOnly,
    starts_programs: true,
};

/// Where a script names no shell.
const SHELL: &str = "/bin/sh";

impl Kind for Command {
    fn declared(&self) -> &'static Declared {
        &DECLARED
    }

    fn user(&self) -> &str {
        &self.user
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout.and_then(|timeout| timeout.try_into().ok())
    }

    fn grace(&self) -> Duration {
        let grace = self.grace.and_then(|grace| grace.try_into().ok());
        grace.unwrap_or(GRACE)
    }

    fn output_limit(&self) -> OutputLimit {
        self.output_limit.unwrap_or_default()
    }

    fn environment(&mut self) -> Option<&mut BTreeMap<String, String>> {
        Some(&mut self.env)
    }

    fn work(mut self: Box<Self>) -> Result<Work, StartError> {
        match self.script.take() {
            Some(script) if self.argv.is_empty() => {
                let shell = match script.shell.is_empty() {
                    true => SHELL.to_owned(),
                    false => script.shell,
                };
                self.argv = vec![shell, "-c".to_owned(), script.text];
            }
            None if !self.argv.is_empty() => {}
            _ => {
                return Err(StartError {
                    reason: Reason::ArgumentInvalid,
                    message: "a command has either argv or a script".to_owned(),
                });
            }
        }
        Ok(Work::Program(self))
    }
}
