//! Fifty tasks that write without a pause, some into terminals, and whoever watches them: shows what an agent that is
//! replaced meanwhile costs them. All on one machine, so that both sides of a task go by one clock.
//!
//! Usage: `writers watch OPERATOR_DIRECTORY HOST DIRECTORY`. Says a line once every task has written on, and again
//! after each line that it reads, until that is "end": then it ends the tasks, checks them and prints figures.
// Its output is for a script.
#![allow(clippy::print_stdout)]

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use muster_client::Client;
use muster_proto::v1::{
    Action, Command, CreateJobRequest, Terminal, action, job_event::Event, task::State,
};
use tokio::{sync::watch, task::JoinSet};

/// Tasks, and each so many of them has a terminal.
const TASKS: usize = 50;
const TERMINAL_EACH: usize = 5;

/// Between two lines of a task.
const PAUSE: Duration = Duration::from_millis(40);

/// Lines that every task writes until it counts as writing on.
const LINES_ON: usize = 10;

/// How a task ends that was not disturbed.
const EXIT_CODE: u8 = 3;

/// Longer than this no task may be silent, beyond what the machine itself took from a thread of this program that does
/// nothing but wake up as often.
const SILENCE_MAX: Duration = Duration::from_millis(500);

/// Longer than this no watcher may hear nothing, on a machine that does much else. On an idle one it is below 500 ms.
const UNHEARD_MAX: Duration = Duration::from_secs(3);

/// For everything that has to come true.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["write", lines, end] => {
            write(Path::new(lines), Path::new(end))?;
            Ok(ExitCode::from(EXIT_CODE))
        }
        ["watch", operator, host, directory] => {
            watch_all(Path::new(operator), host, Path::new(directory)).await?;
            Ok(ExitCode::SUCCESS)
        }
        _ => anyhow::bail!("usage: writers watch OPERATOR_DIRECTORY HOST DIRECTORY"),
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Writes numbered lines with the time, to a file and to whoever holds the other end, until there is a file `end`.
fn write(lines: &Path, end: &Path) -> io::Result<()> {
    let (mut file, mut out) = (File::create(lines)?, io::stdout());
    for number in 1u64.. {
        let line = format!("{number} {}\n", now().as_micros());
        file.write_all(line.as_bytes())?;
        out.write_all(line.as_bytes())?;
        out.flush()?;
        if end.exists() {
            break;
        }
        std::thread::park_timeout(PAUSE);
    }
    Ok(())
}

/// Longest times, of one task or of all.
#[derive(Debug, Default, Clone, Copy)]
struct Longest {
    /// Between two lines, by the clock of the task.
    silence: Duration,
    /// Between two pieces of output, for the watcher.
    heard: Duration,
    /// From a line's writing to its being heard.
    late: Duration,
}

impl Longest {
    fn with(self, other: Self) -> Self {
        Self {
            silence: self.silence.max(other.silence),
            heard: self.heard.max(other.heard),
            late: self.late.max(other.late),
        }
    }
}

/// What a watcher has heard.
#[derive(Default)]
struct Heard {
    text: Vec<u8>,
    /// Where the line begins that is not whole.
    line: usize,
    lines: usize,
    written_at: Option<Duration>,
    heard_at: Option<Duration>,
    longest: Longest,
}

impl Heard {
    fn take(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let now = now();
        let since = |before: Option<Duration>, now: Duration| {
            before.map_or(Duration::ZERO, |before| now.saturating_sub(before))
        };
        let longest = &mut self.longest;
        longest.heard = longest.heard.max(since(self.heard_at.replace(now), now));
        self.text.extend_from_slice(data);
        while let Some(length) = self.text[self.line..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = std::str::from_utf8(&self.text[self.line..self.line + length])?.trim_end();
            let (number, time) = line.split_once(' ').context("a torn line")?;
            self.line += length + 1;
            self.lines += 1;
            ensure!(
                number.parse() == Ok(self.lines),
                "line {number} came as line {}",
                self.lines
            );
            let written = Duration::from_micros(time.parse()?);
            longest.silence = longest
                .silence
                .max(since(self.written_at.replace(written), written));
            longest.late = longest.late.max(now.saturating_sub(written));
        }
        Ok(())
    }
}

/// Runs a task and hears it to its end, which has to be its own.
async fn hear(
    client: Client,
    host: String,
    number: usize,
    directory: PathBuf,
    lines: watch::Sender<usize>,
) -> anyhow::Result<Longest> {
    let file = directory.join(format!("lines-{number}"));
    let terminal = number.is_multiple_of(TERMINAL_EACH);
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let command = Command {
        argv: vec![
            text(env::current_exe()?),
            "write".to_owned(),
            text(file.clone()),
            text(directory.join("end")),
        ],
        cwd: "/".to_owned(),
        terminal: terminal.then(Terminal::default),
        ..Command::default()
    };
    let request = CreateJobRequest {
        selector: host,
        action: Some(Action {
            kind: Some(action::Kind::Command(command)),
        }),
        ..CreateJobRequest::default()
    };
    let mut watching = client.run(request).await?;
    let (mut heard, mut last) = (Heard::default(), None);
    while let Some(update) = watching.next().await {
        for event in update?.events {
            match event.event {
                Some(Event::Output(chunk)) => heard.take(&chunk.data)?,
                Some(Event::Gap(gap)) => anyhow::bail!("task {number} lost output: {gap:?}"),
                Some(Event::Task(task)) => last = Some(task),
                _ => {}
            }
        }
        lines.send_replace(heard.lines);
    }
    let task = last.context("no task")?;
    let ended = task.state() == State::Failed && task.exit_code == Some(EXIT_CODE.into());
    ensure!(ended, "task {number} did not end by itself: {task:?}");
    let mut expected = fs::read_to_string(file)?;
    if terminal {
        expected = expected.replace('\n', "\r\n");
    }
    let (came, written) = (heard.text.len(), expected.len());
    ensure!(
        heard.text == expected.as_bytes(),
        "task {number}: {came} bytes of {written}"
    );
    Ok(heard.longest)
}

async fn watch_all(operator: &Path, host: &str, directory: &Path) -> anyhow::Result<()> {
    let client = Client::from_directory(operator).await?;
    let mut hearing = JoinSet::new();
    let mut all_lines = Vec::new();
    for number in 0..TASKS {
        let (sender, lines) = watch::channel(0);
        let (client, host) = (client.clone(), host.to_owned());
        hearing.spawn(hear(client, host, number, directory.to_owned(), sender));
        all_lines.push(lines);
    }
    let ended = Arc::new(AtomicBool::new(false));
    let noise = std::thread::spawn({
        let (ended, file) = (Arc::clone(&ended), directory.join("noise"));
        move || noise(&ended, &file)
    });
    loop {
        let goals: Vec<usize> = all_lines
            .iter()
            .map(|lines| *lines.borrow() + LINES_ON)
            .collect();
        for (lines, goal) in all_lines.iter_mut().zip(goals) {
            let reached = lines.wait_for(|so_far| *so_far >= goal);
            let reached = tokio::time::timeout(LIMIT, reached).await;
            if !matches!(reached, Ok(Ok(_))) {
                // The reason, where there is one.
                while let Some(heard) = hearing.try_join_next() {
                    heard??;
                }
                anyhow::bail!("not within {LIMIT:?}: every task writes on");
            }
        }
        println!("all write");
        let said = tokio::task::spawn_blocking(|| io::stdin().lines().next()).await?;
        if said.transpose()?.is_none_or(|said| said == "end") {
            break;
        }
    }
    File::create(directory.join("end"))?;
    let mut longest = Longest::default();
    while let Some(heard) = tokio::time::timeout(LIMIT, hearing.join_next()).await? {
        longest = longest.with(heard??);
    }
    ended.store(true, Ordering::Relaxed);
    let noise = noise
        .join()
        .map_err(|_| anyhow::anyhow!("no figure for the machine"))??;
    let lines: usize = all_lines.iter().map(|lines| *lines.borrow()).sum();
    println!(
        "{TASKS} tasks, {} in terminals, {lines} lines: 0 lost, 0 bytes missing; a line each {PAUSE:?}; longest: \
         {:?} between two lines of a task, {:?} between two pieces for a watcher, {:?} from a line to its \
         watcher; {noise:?} for a thread beside them",
        TASKS.div_ceil(TERMINAL_EACH),
        longest.silence,
        longest.heard,
        longest.late,
    );
    let Longest { silence, heard, .. } = longest;
    ensure!(
        silence < SILENCE_MAX + noise,
        "a task was silent for {silence:?}"
    );
    ensure!(heard < UNHEARD_MAX, "a watcher heard nothing for {heard:?}");
    Ok(())
}

/// The longest time between two lines of a thread that writes to a file as a task does: what this machine and its disk
/// hold up by themselves.
fn noise(ended: &AtomicBool, file: &Path) -> io::Result<Duration> {
    let (mut longest, mut before) = (Duration::ZERO, Instant::now());
    let mut lines = File::create(file)?;
    while !ended.load(Ordering::Relaxed) {
        lines.write_all(b"a line as long as that of a task\n")?;
        let _ = file.exists();
        std::thread::park_timeout(PAUSE);
        longest = longest.max(before.elapsed());
        before = Instant::now();
    }
    Ok(longest)
}
