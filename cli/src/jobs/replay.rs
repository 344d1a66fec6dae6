//! `muster job replay`: a recorded terminal, played again or saved as asciicast v2.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_client::Client;
use muster_proto::v1::{
    Command, OutputStream, ReadOutputRequest, Task, Terminal,
    read_output_request::{Part, Range},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{attach, chosen};
use crate::{
    attach::{Signals, terminal::Modes},
    failure::{Failure, exit},
    screen::{self, clean, say},
};

/// Bytes asked for at once.
const PIECE: i32 = 256 << 10;

/// What a terminal has unless its job says otherwise.
const USUAL: (i32, i32, &str) = (24, 80, "xterm-256color");

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster job replay j-…
  muster job replay j-… web-1 --speed 4 --idle-limit 500ms
  muster job replay t-… --cast session.cast

Times are those at which output reached the control plane: what a host wrote while it was disconnected comes at once.")]
pub(crate) struct Replay {
    /// A job or a task
    id: String,
    /// This host's, of a job with several tasks
    host: Option<String>,
    /// So many times as fast
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = speed)]
    speed: f64,
    /// Cut longer pauses to this
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    idle_limit: Option<Duration>,
    /// Save it to a file instead, as asciicast v2; "-" is standard output
    #[arg(long, value_name = "FILE")]
    cast: Option<PathBuf>,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok();
    speed
        .filter(|speed: &f64| (0.01..=1000.0).contains(speed))
        .ok_or_else(|| "it must be from 0.01 to 1000".to_owned())
}

impl Replay {
    pub(super) async fn run(self, client: &Client) -> Result<u8, Failure> {
        let task = chosen::task(client, &self.id, self.host.as_deref()).await?;
        let command = attach::command(client, &task.job_id).await?;
        let terminal = command.terminal.clone().filter(|_| command.record);
        let Some(terminal) = terminal else {
            return Err(Failure::usage("the task was not recorded")
                .next("record the next one: `muster run -t --record` or `muster shell --record`"));
        };
        let reader = Reader::new(client, &task);
        match &self.cast {
            Some(path) => {
                let header = header(&task, &command, &terminal, self.idle_limit);
                save(path, &header, reader).await?;
                Ok(0)
            }
            None => self.perform(reader).await,
        }
    }

    /// Plays it, and leaves the terminal as it was on every way out.
    async fn perform(&self, reader: Reader) -> Result<u8, Failure> {
        let mut signals = Signals::new()?;
        let mut modes = Modes::default();
        let played = tokio::select! {
            played = self.play(reader, &mut modes) => played.map(|()| 0),
            () = signals.leave() => Ok(exit::INTERRUPTED),
        };
        modes.reset();
        if let Ok(exit::INTERRUPTED) = played {
            screen::print("\n")?;
        }
        played
    }

    async fn play(&self, mut reader: Reader, modes: &mut Modes) -> Result<(), Failure> {
        let mut due = Instant::now();
        let mut before = 0.0;
        while let Some((time, bytes)) = reader.next().await? {
            let pause = Duration::from_secs_f64((time - before).max(0.0));
            let pause = self.idle_limit.map_or(pause, |limit| pause.min(limit));
            before = time;
            due += pause.div_f64(self.speed);
            sleep_until(due).await;
            modes.look(&bytes);
            let mut out = io::stdout().lock();
            out.write_all(&bytes)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// The first line of an asciicast.
fn header(
    task: &Task,
    command: &Command,
    terminal: &Terminal,
    idle_limit: Option<Duration>,
) -> serde_json::Value {
    let or = |given, usual| if given > 0 { given } else { usual };
    let term = match terminal.term.as_str() {
        "" => USUAL.2,
        given => given,
    };
    let mut header = json!({
        "version": 2,
        "width": or(terminal.columns, USUAL.1),
        "height": or(terminal.rows, USUAL.0),
        "timestamp": task.start_time.map(|time| time.seconds),
        "title": format!("{} on {}", command.argv.join(" "), task.host_name),
        "env": {"TERM": term},
    });
    if let Some(limit) = idle_limit {
        header["idle_time_limit"] = limit.as_secs_f64().into();
    }
    header
}

async fn save(path: &Path, header: &serde_json::Value, mut reader: Reader) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::file(path, &error);
    let mut out: Box<dyn io::Write + Send> = if path == Path::new("-") {
        Box::new(io::stdout())
    } else {
        Box::new(BufWriter::new(File::create(path).map_err(failed)?))
    };
    writeln!(out, "{header}").map_err(failed)?;
    let mut text = Text::default();
    let mut last = 0.0;
    while let Some((time, bytes)) = reader.next().await? {
        // A clock that was set back must not turn the recording back.
        last = time.max(last);
        let shown = text.push(&bytes);
        if !shown.is_empty() {
            writeln!(out, "{}", json!([last, "o", shown])).map_err(failed)?;
        }
    }
    let rest = text.end();
    if !rest.is_empty() {
        writeln!(out, "{}", json!([last, "o", rest])).map_err(failed)?;
    }
    out.flush().map_err(failed)
}

/// Bytes as text, though a character may be cut in two between chunks.
#[derive(Default)]
struct Text(Vec<u8>);

impl Text {
    /// The whole characters so far.
    fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let begun = match std::str::from_utf8(&self.0) {
            Ok(_) => 0,
            // No error length: it may be the beginning of a character.
            Err(error) => match error.error_len() {
                None => self.0.len() - error.valid_up_to(),
                Some(_) => unfinished(&self.0),
            },
        };
        let rest = self.0.split_off(self.0.len() - begun);
        let whole = std::mem::replace(&mut self.0, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }

    fn end(self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// Bytes at the end that may be the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    bytes.utf8_chunks().last().map_or(0, |chunk| {
        let odd = chunk.invalid();
        match std::str::from_utf8(odd) {
            Err(error) if error.error_len().is_none() => odd.len(),
            _ => 0,
        }
    })
}

/// Reads output with its times, in seconds since the start.
struct Reader {
    output: muster_client::OutputReader,
    start: Option<f64>,
    pieces: std::collections::VecDeque<(f64, Vec<u8>)>,
    last: f64,
}

impl Reader {
    fn new(client: &Client, task: &Task) -> Self {
        let request = ReadOutputRequest {
            task_id: task.task_id.clone(),
            part: Some(Part::Range(Range::default())),
            max_bytes: PIECE,
            ..ReadOutputRequest::default()
        };
        Self {
            output: client.output(request, false),
            start: task.start_time.as_ref().map(seconds),
            pieces: Default::default(),
            last: 0.0,
        }
    }

    async fn next(&mut self) -> Result<Option<(f64, Vec<u8>)>, Failure> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            let Some(answer) = self.output.next().await? else {
                return Ok(None);
            };
            for gap in &answer.gaps {
                say(&format!(
                    "muster: {} of the recording are missing: {}",
                    screen::bytes(gap.length),
                    clean(&gap.cause)
                ));
            }
            for chunk in answer.chunks {
                if chunk.stream() != OutputStream::Pty {
                    continue;
                }
                // A piece without a time belongs to the one before.
                if let Some(time) = chunk.time.as_ref().map(seconds) {
                    let start = *self.start.get_or_insert(time);
                    self.last = (time - start).max(0.0);
                }
                self.pieces.push_back((self.last, chunk.data.to_vec()));
            }
        }
    }
}

fn seconds(time: &prost_types::Timestamp) -> f64 {
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_put_together_again() {
        let mut text = Text::default();
        let bytes = "aé日".as_bytes();
        let shown: Vec<String> = bytes.iter().map(|byte| text.push(&[*byte])).collect();
        assert_eq!(shown, ["a", "", "é", "", "", "日"]);
        assert_eq!(text.push(b"x\xffy\xe6"), "x\u{fffd}y");
        assert_eq!(text.push(b"\x97\xa5"), "日");
        assert_eq!(text.push(b"\xe6"), "");
        assert_eq!(text.end(), "\u{fffd}");
    }

    #[test]
    fn a_header_is_whole() {
        let task = Task {
            host_name: "web-1".into(),
            ..Task::default()
        };
        let command = Command {
            argv: vec!["top".into()],
            ..Command::default()
        };
        let limit = Some(Duration::from_millis(500));
        let header = header(&task, &command, &Terminal::default(), limit);
        assert_eq!(
            (&header["version"], &header["width"]),
            (&json!(2), &json!(80))
        );
        assert_eq!(header["title"], "top on web-1");
        assert_eq!(header["idle_time_limit"], 0.5);
        assert!(speed("0").is_err() && speed("2").is_ok());
    }
}
