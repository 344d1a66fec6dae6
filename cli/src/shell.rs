//! `muster shell`: work in a terminal of a host.

use muster_proto::v1::{Action, Command, CreateJobRequest, action};

use crate::{
    attach::terminal,
    failure::Failure,
    mode::Reach,
    operator::Operator,
    run::{
        alone::{self, Manner},
        confirm::Confirm,
        living::Living,
    },
    time,
};

/// Nobody waits longer in front of a terminal.
const START_DEADLINE: std::time::Duration = std::time::Duration::from_secs(120);

/// The login shell of whoever the agent runs as.
const LOGIN: [&str; 3] = ["/bin/sh", "-c", "exec \"${SHELL:-/bin/sh}\" -l"];

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster shell web-1
  muster shell web-1 --cwd /srv/app -- bash
  muster shell db-1 --record -- psql

Ctrl-] detaches and leaves the shell running; `muster job attach JOB` comes back.
The exit code is the shell's own, or 130 after detaching.")]
pub(crate) struct ShellCommand {
    /// Which host: its name or id
    host: String,

    /// Run this instead of a login shell
    #[arg(last = true, value_name = "CMD")]
    argv: Vec<String>,

    /// Where to begin: an absolute path on the host [default: home directory of the user who runs it]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,

    /// Set a variable of the environment; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = crate::hosts::label)]
    env: Vec<(String, String)>,

    /// Run as this user of the host, where its agent may
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// Record it with times, for `muster job replay`
    #[arg(long)]
    record: bool,

    #[command(flatten)]
    confirm: Confirm,

    #[command(flatten)]
    reach: Reach,

    #[command(flatten)]
    living: Living,
}

impl ShellCommand {
    pub(crate) async fn run(self, operator: &Operator) -> Result<u8, Failure> {
        if !terminal::is_there() {
            return Err(Failure::usage("standard input and output are no terminal")
                .next("pipe into a command with `muster run -i HOST -- CMD`"));
        }
        let client = operator.connect().await?;
        let manner = Manner {
            terminal: true,
            input: true,
            confirm: self.confirm,
        };
        alone::run(&client, self.request(), manner, operator).await
    }

    fn request(&self) -> CreateJobRequest {
        let argv = if self.argv.is_empty() {
            LOGIN.map(str::to_owned).to_vec()
        } else {
            self.argv.clone()
        };
        let mut command = Command {
            argv,
            cwd: self.cwd.clone().unwrap_or_default(),
            env: self.env.iter().cloned().collect(),
            user: self.user.clone().unwrap_or_default(),
            terminal: Some(terminal::like_this()),
            record: self.record,
            ..Command::default()
        };
        self.living.fill(&mut command);
        let mut request = CreateJobRequest {
            selector: self.host.clone(),
            action: Some(Action {
                kind: Some(action::Kind::Command(command)),
            }),
            start_deadline: time::wire(START_DEADLINE),
            ..CreateJobRequest::default()
        };
        self.reach.fill(&mut request);
        request
    }
}
