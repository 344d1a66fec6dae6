//! `muster job input`: something for a task that runs, without attaching.

use bytes::Bytes;
use muster_client::{Client, keys};
use muster_proto::v1::{
    CloseStdin, InputStatus, Reason, SendInputResponse, TaskInput, task_input::Kind,
};
use serde_json::json;

use super::{attach, chosen};
use crate::{
    failure::{Failure, exit},
    json,
    screen::{self, clean},
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster job input j-… --text 'print(6 * 7)' --keys enter
  muster job input j-… web-1 --keys ctrl-c
  muster job input j-… --text \"$(cat answers)\" --close
  muster job input t-… --signal SIGHUP

Text comes first, then keys, a signal, and the end of standard input.
Keys: enter, tab, esc, space, backspace, delete, up, down, left, right, home, end, page-up, page-down, f1 to f12, \
ctrl-X, alt-X, or a single character.")]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["text", "keys", "signal", "close"])))]
pub(crate) struct Input {
    /// A job or a task
    id: String,
    /// Of a job with several tasks, this host's
    host: Option<String>,
    /// Text, as it is
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// Keys by name, as enter or ctrl-c,up
    #[arg(long, value_name = "KEY,...", value_delimiter = ',', value_parser = key)]
    keys: Vec<String>,
    /// A signal, as SIGINT, for the foreground processes of a terminal, or all of them without one
    #[arg(long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// End standard input
    #[arg(long)]
    close: bool,
    /// Names the input: sent again under the same name, it is not put in again
    #[arg(long, value_name = "ID")]
    write_id: Option<String>,
}

fn key(name: &str) -> Result<String, String> {
    match keys::key(name, "") {
        Some(_) => Ok(name.to_owned()),
        None => Err("it is the name of no key; --help lists them".to_owned()),
    }
}

impl Input {
    pub(super) async fn run(self, client: &Client, as_json: bool) -> Result<(), Failure> {
        let task = chosen::task(client, &self.id, self.host.as_deref()).await?;
        let action = match self.keys.as_slice() {
            [] => None,
            // Some have other bytes in other terminals.
            _ => attach::action(client, &task.job_id).await?,
        };
        for (kind, part) in self.parts(keys::term(action.as_ref())) {
            let write_id = match &self.write_id {
                Some(id) => format!("{id}{part}"),
                None => String::new(),
            };
            let input = TaskInput { kind: Some(kind) };
            let answer = client.send_input(&task.task_id, &write_id, input).await?;
            if answer.status() != InputStatus::Accepted {
                return Err(refused(&answer));
            }
        }
        if as_json {
            screen::print_json(&json!({"task_id": task.task_id, "status": "accepted"}))?;
        }
        Ok(())
    }

    /// What is sent one after the other to a terminal of that kind, and how the name of each ends.
    fn parts(&self, term: &str) -> Vec<(Kind, String)> {
        let mut data = self.text.clone().unwrap_or_default().into_bytes();
        for key in self.keys.iter().filter_map(|name| keys::key(name, term)) {
            data.extend_from_slice(&key);
        }
        let mut data = Bytes::from(data);
        let mut parts = Vec::new();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(64 << 10));
            parts.push((Kind::Data(piece), format!("-{}", parts.len())));
        }
        if let Some(signal) = &self.signal {
            let name = signal.to_ascii_uppercase();
            let name = match name.strip_prefix("SIG") {
                Some(_) => name,
                None => format!("SIG{name}"),
            };
            parts.push((Kind::Signal(name), "-signal".to_owned()));
        }
        if self.close {
            parts.push((Kind::CloseStdin(CloseStdin {}), "-close".to_owned()));
        }
        parts
    }
}

fn refused(answer: &SendInputResponse) -> Failure {
    let status = answer.status();
    let (code, next) = match status {
        InputStatus::Refused => (
            exit::NOT_ALLOWED,
            "take over with `muster job attach JOB --take-over`",
        ),
        InputStatus::Closed => (exit::USAGE, "`muster job get JOB` says what became of it"),
        _ => (
            exit::UNAVAILABLE,
            "try again in a moment; with --write-id a repeat is harmless",
        ),
    };
    let reason = Some(answer.reason()).filter(|reason| *reason != Reason::Unspecified);
    let message = match answer.message.as_str() {
        "" => format!("the input was not taken: {}", json::input_status(status)),
        message => clean(message).into_owned(),
    };
    Failure {
        reason,
        ..Failure::new(code, message).next(next)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Program {
        #[command(flatten)]
        input: Input,
    }

    fn parse(arguments: &[&str]) -> Result<Input, clap::Error> {
        let arguments = std::iter::once(&"input").chain(arguments);
        Program::try_parse_from(arguments).map(|program| program.input)
    }

    #[test]
    fn text_and_keys_are_one_input() {
        let keys = "enter,ctrl-c,up";
        let input = parse(&["j-1", "--text", "-x", "--keys", keys, "--close"]).unwrap();
        let parts = input.parts("linux");
        let data = Bytes::from_static(b"-x\r\x03\x1b[A");
        assert_eq!(parts[0].0, Kind::Data(data));
        assert!(matches!(parts[1].0, Kind::CloseStdin(_)));
        let input = parse(&["j-1", "web-1", "--signal", "int"]).unwrap();
        assert_eq!(input.parts("")[0].0, Kind::Signal("SIGINT".into()));
    }

    #[test]
    fn something_is_put_in() {
        assert!(parse(&["j-1"]).is_err());
        assert!(parse(&["j-1", "--keys", "entr"]).is_err());
    }
}
