//! `muster run`: a command on hosts, as if it ran here.

pub(crate) mod alone;
pub(crate) mod confirm;
pub(crate) mod follow;
mod input;
mod live;
pub(crate) mod living;

use std::{path::PathBuf, time::Duration};

use muster_proto::v1::{Action, Command, CreateJobRequest, Script, action};
use serde_json::json;

use crate::{
    attach::terminal,
    failure::Failure,
    json,
    mode::Reach,
    operator::Operator,
    screen::{self, clean, say},
    time,
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster run web-1 -- uname -a
  muster run web-1,web-2 -- systemctl is-active nginx
  muster run 'env=prod,role in (web,api)' --timeout 30s -- df -h /
  muster run all --script 'cd /var/log && ls -t | head -3'
  muster run db-1 --shell bash --script-file migrate.sh --cwd /srv/db
  tar c conf | muster run web-1 --cwd /etc/app -- tar x
  muster run web-1 --detach -- ./long-build.sh
  muster run -t web-1 --detach -- python3
  muster run -t web-1 -- top
  cat dump.sql | muster run -i db-1 -- psql
  muster run all --mode read-only -- df -h
  muster run batch-1 --nice 10 --memory 2G --cpus 1.5 -- ./report.sh

Exit codes:
  of the command itself on one host; on several 0 if it succeeded everywhere, else 1
  64 called wrongly, 69 nobody answers, 77 not allowed or not confirmed
  124 timed out, 125 lost, rejected or expired, 126 not executable, 127 not found
  128 + N ended by signal N, 130 interrupted or cancelled")]
pub(crate) struct RunCommand {
    /// Which hosts: all, names or ids (web-1,web-2), or requirements (env=prod,!retired)
    selector: String,

    /// The program and its arguments; no shell is involved
    #[arg(last = true, required_unless_present_any = ["script", "script_file"], value_name = "CMD")]
    argv: Vec<String>,

    /// Run this text with a shell instead
    #[arg(long, short = 'c', value_name = "TEXT", conflicts_with_all = ["argv", "script_file"])]
    script: Option<String>,

    /// Run the text of this file with a shell instead
    #[arg(long, value_name = "FILE", conflicts_with = "argv")]
    script_file: Option<PathBuf>,

    /// The shell for a script: a name or path on the host [default: /bin/sh]
    #[arg(long, value_name = "SHELL", conflicts_with = "argv")]
    shell: Option<String>,

    /// Where to run: an absolute path on the host [default: home directory of the user who runs it]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,

    /// Set a variable of the environment; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = crate::hosts::label)]
    env: Vec<(String, String)>,

    /// Run as this user of the host, where its agent may
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// End it after this long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// How long the processes may take to end politely before they are killed [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,

    /// Expire where the host has not started it after this long; at most 7d [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    start_deadline: Option<Duration>,

    /// Give up a host that stays silent for this long while it holds the task [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lost_after: Option<Duration>,

    /// Leave standard input alone; otherwise a pipe or file there is passed on, up to 1 MiB
    #[arg(long, short = 'n', conflicts_with_all = ["input", "terminal"])]
    no_stdin: bool,

    /// Pass standard input on as it comes, however long, to one host; its end ends the command's input.
    /// With --detach nothing is passed on, and the command's input stays open for `muster job input`
    #[arg(long, short)]
    input: bool,

    /// Give the command a terminal, and work in it; to one host. Ctrl-] detaches.
    /// With --detach `muster job input` and `muster job attach` work in it
    #[arg(long, short)]
    terminal: bool,

    /// Record the terminal with times, for `muster job replay`
    #[arg(long, requires = "terminal")]
    record: bool,

    /// Print the job's id and do not wait
    #[arg(long, short)]
    detach: bool,

    /// Names this request: asked again with the same id, it is not run again
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,

    #[command(flatten)]
    confirm: confirm::Confirm,

    #[command(flatten)]
    reach: Reach,

    #[command(flatten)]
    living: living::Living,
}

impl RunCommand {
    pub(crate) async fn run(self, operator: &Operator) -> Result<u8, Failure> {
        let request = self.request().await?;
        let client = operator.connect().await?;
        if (self.input || self.terminal) && !self.detach {
            let manner = alone::Manner {
                terminal: self.terminal,
                input: self.input || terminal::is_there(),
                confirm: self.confirm,
            };
            return alone::run(&client, request, manner, operator).await;
        }
        if self.detach {
            let create = |request| client.create(request);
            let job = self.confirm.run(request, create).await?;
            if operator.json {
                screen::print_json(&json!({"job": json::document(&job)}))?;
            } else {
                let id = clean(&job.job_id);
                screen::print(&format!("{id}\n"))?;
                say(&format!("follow it: muster job watch {id}"));
                // What stands at our own standard input is not passed on.
                if self.input || self.terminal {
                    say(&format!(
                        "its input: muster job input {id} --text TEXT; --close ends it"
                    ));
                }
            }
            return Ok(0);
        }
        let run = |request| client.run(request);
        let watch = self.confirm.run(request, run).await?;
        follow::follow(&client, watch, operator.json).await
    }

    async fn request(&self) -> Result<CreateJobRequest, Failure> {
        let script = match (&self.script, &self.script_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => {
                Some(std::fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?)
            }
            (None, None) => None,
        };
        let script = script.map(|text| Script {
            text,
            shell: self.shell.clone().unwrap_or_default(),
        });
        let stdin = if self.no_stdin || self.input || self.terminal {
            Vec::new()
        } else {
            input::read().await?
        };
        let env = self.env.iter().cloned().collect();
        let mut command = Command {
            argv: self.argv.clone(),
            script,
            cwd: self.cwd.clone().unwrap_or_default(),
            env,
            user: self.user.clone().unwrap_or_default(),
            timeout: self.timeout.and_then(time::wire),
            stdin: stdin.into(),
            grace: self.grace.and_then(time::wire),
            open_stdin: self.input,
            terminal: self.terminal.then(terminal::like_this),
            record: self.record,
            ..Command::default()
        };
        self.living.fill(&mut command);
        let mut request = CreateJobRequest {
            request_id: self.request_id.clone().unwrap_or_default(),
            selector: self.selector.clone(),
            action: Some(Action {
                kind: Some(action::Kind::Command(command)),
            }),
            start_deadline: self.start_deadline.and_then(time::wire),
            lost_after: self.lost_after.and_then(time::wire),
            ..CreateJobRequest::default()
        };
        self.reach.fill(&mut request);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Program {
        #[command(flatten)]
        run: RunCommand,
    }

    fn parse(arguments: &[&str]) -> Result<RunCommand, clap::Error> {
        let arguments = std::iter::once(&"run").chain(arguments);
        Program::try_parse_from(arguments).map(|program| program.run)
    }

    #[tokio::test]
    async fn a_command_keeps_its_arguments() {
        let run = parse(&[
            "web-1",
            "-n",
            "--timeout",
            "90s",
            "-e",
            "A=b c",
            "--",
            "grep",
            "-e",
            "x y",
            "--",
            "f",
        ])
        .unwrap();
        let request = run.request().await.unwrap();
        let Some(action::Kind::Command(command)) = request.action.unwrap().kind else {
            panic!("a command");
        };
        assert_eq!(command.argv, ["grep", "-e", "x y", "--", "f"]);
        assert_eq!(command.timeout.unwrap().seconds, 90);
        assert_eq!(command.env["A"], "b c");
        assert!(command.script.is_none() && command.stdin.is_empty());
    }

    #[tokio::test]
    async fn a_script_has_its_shell() {
        let run = parse(&["all", "-n", "-c", "cd / && ls", "--shell", "bash"]).unwrap();
        let request = run.request().await.unwrap();
        let Some(action::Kind::Command(command)) = request.action.unwrap().kind else {
            panic!("a command");
        };
        let script = command.script.unwrap();
        assert_eq!((&*script.text, &*script.shell), ("cd / && ls", "bash"));
    }

    #[test]
    fn one_thing_is_run() {
        for wrong in [
            &["web-1"][..],
            &["web-1", "-c", "x", "--", "y"],
            &["web-1", "ls"],
            &["web-1", "--shell", "sh", "--", "ls"],
            &["web-1", "--timeout", "soon", "--", "ls"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
