//! `muster job output`: what tasks wrote.

use std::io::{self, Write as _};

use muster_client::Client;
use muster_proto::v1::{
    OutputStream, ReadOutputRequest, ReadOutputResponse, Task,
    read_output_request::{Grep, Part, Range, Tail},
};
use serde_json::json;

use super::tasks;
use crate::{
    failure::Failure,
    json,
    screen::{self, bytes, clean, say},
};

/// Bytes asked for at once.
const PIECE: i32 = 1 << 20;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster job output j-… --tail 50
  muster job output j-… web-1 --grep 'error|fatal' -i -B 2
  muster job output j-… --follow
  muster job output t-… --stream stderr
  muster job output t-… --range 1000000:4096")]
pub(crate) struct Output {
    /// A job or a task
    id: String,
    /// Only this host's, of a job with several tasks
    host: Option<String>,
    /// Only the last lines
    #[arg(long, short = 't', value_name = "LINES", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    tail: Option<i32>,
    /// Only lines that match a regular expression
    #[arg(long, short = 'g', value_name = "PATTERN", conflicts_with_all = ["tail", "range", "follow"])]
    grep: Option<String>,
    /// Match whatever the case
    #[arg(long, short = 'i', requires = "grep")]
    ignore_case: bool,
    /// Keep lines that do not match instead
    #[arg(long, short = 'v', requires = "grep")]
    invert: bool,
    /// Lines shown before each match
    #[arg(long, short = 'B', default_value_t = 0, requires = "grep", value_name = "LINES", value_parser = clap::value_parser!(i32).range(0..=100))]
    before: i32,
    /// Lines shown after each match
    #[arg(long, short = 'A', default_value_t = 0, requires = "grep", value_name = "LINES", value_parser = clap::value_parser!(i32).range(0..=100))]
    after: i32,
    /// Only bytes from a position, as FROM or FROM:LENGTH
    #[arg(long, value_parser = range, conflicts_with = "tail")]
    range: Option<Range>,
    /// Only one stream
    #[arg(long)]
    stream: Option<Stream>,
    /// Go on until the task is done
    #[arg(long, short)]
    follow: bool,
}

/// Where output comes from.
#[derive(clap::ValueEnum, Debug, Clone, Copy)]
pub(crate) enum Stream {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

fn range(text: &str) -> Result<Range, String> {
    let wrong = || "expected FROM or FROM:LENGTH, in bytes".to_owned();
    let (from, length) = text.split_once(':').unwrap_or((text, "0"));
    let range = Range {
        from: from.parse().map_err(|_| wrong())?,
        length: length.parse().map_err(|_| wrong())?,
    };
    if range.from < 0 || range.length < 0 {
        return Err(wrong());
    }
    Ok(range)
}

impl Output {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        if self.id.starts_with("t-") {
            return self.read(client, &self.id, json).await;
        }
        let tasks = tasks(client, self.id.clone()).await?;
        let tasks = self.chosen(tasks)?;
        let several = tasks.len() > 1;
        if several && self.follow {
            return Err(Failure::usage("--follow follows one task")
                .next("name the host, or use `muster job watch` for all of them"));
        }
        for task in &tasks {
            if several && !json {
                screen::print(&format!("==> {} <==\n", clean(&task.host_name)))?;
            }
            self.read(client, &task.task_id, json).await?;
        }
        Ok(())
    }

    fn chosen(&self, tasks: Vec<Task>) -> Result<Vec<Task>, Failure> {
        let Some(host) = &self.host else {
            return Ok(tasks);
        };
        let chosen: Vec<Task> = tasks
            .into_iter()
            .filter(|task| task.host_name == *host || task.host_id == *host)
            .collect();
        if chosen.is_empty() {
            return Err(
                Failure::usage(format!("the job has no task on {}", clean(host))).next(format!(
                    "`muster job get {}` shows its tasks",
                    clean(&self.id)
                )),
            );
        }
        Ok(chosen)
    }

    fn request(&self, task_id: &str) -> ReadOutputRequest {
        let part = match (&self.grep, self.tail, &self.range) {
            (Some(pattern), ..) => Some(Part::Grep(Grep {
                pattern: pattern.clone(),
                ignore_case: self.ignore_case,
                before: self.before,
                after: self.after,
                invert: self.invert,
                max_matches: 0,
            })),
            (None, Some(lines), _) => Some(Part::Tail(Tail { lines })),
            (None, None, range) => range.map(Part::Range),
        };
        let stream = match self.stream {
            None => OutputStream::Unspecified,
            Some(Stream::Stdout) => OutputStream::Stdout,
            Some(Stream::Stderr) => OutputStream::Stderr,
        };
        ReadOutputRequest {
            task_id: task_id.to_owned(),
            stream: stream.into(),
            part,
            max_bytes: PIECE,
            page_token: String::new(),
            wait: None,
        }
    }

    async fn read(&self, client: &Client, task_id: &str, json: bool) -> Result<(), Failure> {
        let mut reader = client.output(self.request(task_id), self.follow);
        loop {
            let piece = tokio::select! {
                piece = reader.next() => piece?,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            let Some(piece) = piece else {
                return Ok(());
            };
            if json {
                print_json(&piece)?;
            } else {
                print(&piece)?;
            }
        }
    }
}

/// Chunks and gaps in the order of their positions.
fn print(piece: &ReadOutputResponse) -> Result<(), Failure> {
    let mut gaps = piece.gaps.iter().peekable();
    for chunk in &piece.chunks {
        while let Some(gap) = gaps.next_if(|gap| gap.position <= chunk.position) {
            tell(gap);
        }
        if chunk.stream() == OutputStream::Stderr {
            io::stderr().lock().write_all(&chunk.data)?;
        } else {
            let mut out = io::stdout().lock();
            out.write_all(&chunk.data)?;
            out.flush()?;
        }
    }
    gaps.for_each(tell);
    let mut out = io::stdout().lock();
    for line in &piece.lines {
        let mark = if line.r#match { ':' } else { '-' };
        write!(out, "{}{mark}", line.number)?;
        out.write_all(&line.data)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

fn tell(gap: &muster_proto::v1::OutputGap) {
    say(&format!(
        "muster: {} are missing here: {}",
        bytes(gap.length),
        clean(&gap.cause)
    ));
}

fn print_json(piece: &ReadOutputResponse) -> Result<(), Failure> {
    for chunk in &piece.chunks {
        screen::print_json_line(&json!({"output": json::document(chunk)}))?;
    }
    for gap in &piece.gaps {
        screen::print_json_line(&json!({"gap": json::document(gap)}))?;
    }
    for line in &piece.lines {
        screen::print_json_line(&json!({"line": json::document(line)}))?;
    }
    screen::print_json_line(&json!({"read": {
        "end_position": piece.end_position,
        "output_complete": piece.output_complete,
        "size": piece.size.as_ref().map(json::document),
        "task": piece.task.as_ref().map(json::document),
        "match_count": piece.match_count,
        "next_page_token": piece.next_page_token,
    }}))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed() {
        assert_eq!(
            range("10").unwrap(),
            Range {
                from: 10,
                length: 0
            }
        );
        assert_eq!(
            range("5000000000:4096").unwrap(),
            Range {
                from: 5_000_000_000,
                length: 4_096
            }
        );
        for wrong in ["", "-1", "1:-2", "a:b", "1:2:3"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
