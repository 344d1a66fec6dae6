//! `muster job input`: something for a task that runs, without attaching.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use muster_client::{Client, keys};
use muster_proto::v1::{
    CloseStdin, InputStatus, Reason, SendInputResponse, TaskInput, task_input::Kind,
};
use serde_json::json;

use super::{attach, chosen};
use crate::{
    failure::{Failure, exit},
    file, json,
    screen::{self, clean},
};

/// Bytes of a file: a task that does not read takes no more.
const FILE_MAX: u64 = 1 << 20;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster run -t web-1 --detach -- python3
  muster job input j-… --text 'print(6 * 7)' --keys enter
  muster job input j-… web-1 --keys ctrl-c
  muster job input j-… --file answers --close
  systemd-ask-password | muster job input j-… --file - --keys enter
  muster job input t-… --signal SIGHUP

Text or a file comes first, then keys, a signal, and the end of standard input.
Keys: enter, tab, esc, space, backspace, delete, up, down, left, right, home, end, page-up, page-down, f1 to f12, \
ctrl-X, alt-X, or a single character.")]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["text", "file", "keys", "signal", "close"])))]
pub(crate) struct Input {
    /// A job or a task
    id: String,
    /// This host's, of a job with several tasks
    host: Option<String>,
    /// Text, as it is
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// A file, as it is; "-" is standard input, for what is secret and must stand in no argument
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
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
        let data = self.data()?;
        let action = match self.keys.as_slice() {
            [] => None,
            // Some have other bytes in other terminals.
            _ => attach::action(client, &task.job_id).await?,
        };
        for (kind, part) in self.parts(data, keys::term(action.as_ref())) {
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

    fn data(&self) -> Result<Vec<u8>, Failure> {
        match &self.file {
            Some(path) => read(path),
            None => Ok(self.text.clone().unwrap_or_default().into_bytes()),
        }
    }

    /// What is sent one after the other to a terminal of that kind, and how the name of each ends.
    fn parts(&self, mut data: Vec<u8>, term: &str) -> Vec<(Kind, String)> {
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

/// As much of a file as one input may be, whatever the file is.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    let read = file::open(path)?.take(FILE_MAX + 1).read_to_end(&mut data);
    read.map_err(|error| Failure::file(path, &error))?;
    if data.len() as u64 > FILE_MAX {
        return Err(Failure::usage(format!(
            "{} has more than 1 MiB, which `muster job attach JOB -i` passes on",
            path.display()
        )));
    }
    Ok(data)
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
        "" => format!(
            "the input was not taken: {}",
            json::word(status.as_str_name(), "INPUT_STATUS_")
        ),
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
    fn a_file_is_put_in_as_it_is_and_no_more_than_a_task_takes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, b"secret\xff").unwrap();
        let input = parse(&["j-1", "--file", path, "--keys", "enter"]).unwrap();
        let parts = input.parts(input.data().unwrap(), "");
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].0, Kind::Data(Bytes::from_static(b"secret\xff\r")));
        file.as_file().set_len(FILE_MAX + 1).unwrap();
        assert!(input.data().is_err());
        assert!(parse(&["j-1", "--file", path, "--text", "x"]).is_err());
    }

    #[test]
    fn text_and_keys_are_one_input() {
        let keys = "enter,ctrl-c,up";
        let input = parse(&["j-1", "--text", "-x", "--keys", keys, "--close"]).unwrap();
        let parts = input.parts(input.data().unwrap(), "linux");
        let data = Bytes::from_static(b"-x\r\x03\x1b[A");
        assert_eq!(parts[0].0, Kind::Data(data));
        assert!(matches!(parts[1].0, Kind::CloseStdin(_)));
        let input = parse(&["j-1", "web-1", "--signal", "int"]).unwrap();
        assert_eq!(
            input.parts(Vec::new(), "")[0].0,
            Kind::Signal("SIGINT".into())
        );
    }

    #[test]
    fn something_is_put_in() {
        assert!(parse(&["j-1"]).is_err());
        assert!(parse(&["j-1", "--keys", "entr"]).is_err());
    }
}
