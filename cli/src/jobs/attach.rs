//! `muster job attach`: back to a task that runs.

use std::io::{self, IsTerminal as _};

use muster_client::{Attach as How, Client};
use muster_proto::v1::{
    Action, Command, GetJobRequest, ReadOutputRequest, Task, action,
    attach_open::Access,
    read_output_request::{Part, Range},
};

use super::chosen;
use crate::{
    attach::{self, Session, terminal},
    failure::Failure,
    screen::{bytes, say},
};

/// Only so much of the end of a longer output is shown first.
const SHOWN: i64 = 256 << 10;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster job attach j-…
  muster job attach j-… web-1 --take-over
  muster job attach t-… --read-only
  cat rest.sql | muster job attach t-… --input

One client writes to a task at a time. Ctrl-] detaches from a terminal, Ctrl-C from everything else; the task goes on.
Where standard input is no terminal, nothing of it is passed on without --input. Its end ends the task's input, but for a \
task with a terminal.")]
pub(crate) struct Attach {
    /// A job or a task
    id: String,
    /// This host's, of a job with several tasks
    host: Option<String>,
    /// Write to it, whoever does now
    #[arg(long, conflicts_with = "read_only")]
    take_over: bool,
    /// Only watch
    #[arg(long, conflicts_with = "input")]
    read_only: bool,
    /// Pass standard input on though it is no terminal, as a pipe or a file
    #[arg(long, short)]
    input: bool,
    /// Let nobody else put anything in meanwhile
    #[arg(long, conflicts_with = "read_only")]
    exclusive: bool,
    /// Show all output from the beginning, however long
    #[arg(long)]
    all: bool,
}

impl Attach {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<u8, Failure> {
        let task = chosen::task(client, &self.id, self.host.as_deref()).await?;
        let command = command(client, &task.job_id).await?;
        let takes_input = command.open_stdin || command.terminal.is_some();
        // What is there by chance, as nothing at all below cron, must not end the task's input.
        let meant = self.input || io::stdin().is_terminal();
        let input = takes_input && meant && !self.read_only;
        let raw = command.terminal.is_some() && input && terminal::is_there() && !json;
        let writes = self.take_over || self.exclusive;
        if !takes_input && (writes || self.input) {
            return Err(Failure::usage("the task has no open standard input")
                .next("start it with `muster run -i` or -t to be able to write to it"));
        }
        if !input && writes {
            return Err(Failure::usage(
                "standard input is no terminal, so nothing would be written",
            )
            .next("pass it on with --input, or leave out --take-over and --exclusive"));
        }
        let access = match (input, self.take_over) {
            (false, _) => Access::Read,
            (true, false) => Access::Write,
            (true, true) => Access::TakeOver,
        };
        let after_sequence = if self.all {
            0
        } else {
            skip(client, &task).await?
        };
        let how = How {
            access,
            exclusive: self.exclusive,
            after_sequence,
            terminal: raw.then(terminal::like_this).filter(|size| size.rows > 0),
        };
        let session = Session {
            job_id: task.job_id,
            raw,
            input,
            // A terminal outlives whoever works in it: there the end would be a key that ends a shell.
            closes: command.terminal.is_none(),
            json,
            own: None,
        };
        attach::run(session, client.attach(&task.task_id, how)).await
    }
}

pub(super) async fn command(client: &Client, job_id: &str) -> Result<Command, Failure> {
    let action = action(client, job_id).await?.unwrap_or_default();
    Ok(match action.kind {
        Some(action::Kind::Command(command)) => command,
        // No other kind has a terminal, whatever kinds there will be.
        _ => Command::default(),
    })
}

pub(super) async fn action(client: &Client, job_id: &str) -> Result<Option<Action>, Failure> {
    let request = GetJobRequest {
        job_id: job_id.to_owned(),
    };
    let job = client.jobs().get_job(request).await?.into_inner().job;
    Ok(job.unwrap_or_default().action)
}

/// After which sequence the end of the output begins.
async fn skip(client: &Client, task: &Task) -> Result<i64, Failure> {
    let size = task.output_size.unwrap_or_default();
    let from = size.stdout_bytes + size.stderr_bytes - SHOWN;
    if from <= 0 {
        return Ok(0);
    }
    let range = Range { from, length: 1 };
    let request = ReadOutputRequest {
        task_id: task.task_id.clone(),
        part: Some(Part::Range(range)),
        ..ReadOutputRequest::default()
    };
    let answer = client.read_output(request).await?;
    let first = answer.chunks.first().map_or(0, |chunk| chunk.sequence);
    say(&format!(
        "{} of earlier output are left out here; --all shows them",
        bytes(from)
    ));
    Ok(first)
}
