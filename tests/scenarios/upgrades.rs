//! An agent that makes way for another build of itself, under all that its host does.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::v1::{
    Command, OutputStream, Script, Terminal, WatchJobRequest, job_event::Event, task::State,
};
use muster_tests::{
    fleet::{Agent, Fleet},
    operator::{Operator, Watched, command, request},
    process,
    tally::Tally,
};

/// Tasks that run at once.
const TASKS: usize = 50;

/// Each so many of them has a terminal, and each so many writes often.
const TERMINAL_EACH: usize = 10;
const OFTEN_EACH: usize = 5;

/// Lines that every task writes between two upgrades.
const LINES_BETWEEN: usize = 3;

/// How long a process may be silent at most, by its own clock, on a machine that does much else. On an idle
/// one it is below 500 ms.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A task that writes numbered lines with the time, and the same lines into a file of its own.
struct Writer {
    job: Watched,
    lines: PathBuf,
    terminal: bool,
}

impl Writer {
    async fn start(fleet: &Fleet, number: usize, tally: &Tally, go: &Path) -> Self {
        let lines = fleet.directory().join(format!("lines-{number}"));
        let pause = if number.is_multiple_of(OFTEN_EACH) {
            "0.05"
        } else {
            "0.5"
        };
        let text = format!(
            "{}; i=0; until [ -e '{}' ]; do i=$((i+1)); read up rest < /proc/uptime; \
             echo \"$i $up\"; echo \"$i $up\" >> '{}'; sleep {pause}; done; exit 3",
            tally.mark(),
            go.display(),
            lines.display(),
        );
        let terminal = number.is_multiple_of(TERMINAL_EACH);
        let wanted = Command {
            script: Some(Script {
                text,
                shell: String::new(),
            }),
            cwd: "/".to_owned(),
            terminal: terminal.then(Terminal::default),
            ..Command::default()
        };
        let operator = fleet.operator();
        let created = operator.create(request("web-1", command(wanted)));
        Self {
            job: created.await.unwrap(),
            lines,
            terminal,
        }
    }

    fn written(&self) -> String {
        fs::read_to_string(&self.lines).unwrap_or_default()
    }

    fn lines(&self) -> usize {
        self.written().lines().count()
    }

    /// Waits until it has written so many lines.
    async fn reaches(&self, lines: usize) {
        muster_tests::eventually(muster_tests::PATIENCE, "it writes on", || async {
            (self.lines() >= lines).then_some(())
        })
        .await;
    }

    /// Its end, its output, and the longest time between two of its lines.
    async fn is_whole(&self) -> Duration {
        let task = self.job.reaches(State::Failed).await;
        assert_eq!(task.exit_code, Some(3));
        self.job.complete().await;
        let written = self.written();
        let (stream, expected) = if self.terminal {
            (OutputStream::Pty, written.replace('\n', "\r\n"))
        } else {
            (OutputStream::Stdout, written.clone())
        };
        let output = self.job.output(stream).await;
        assert!(
            output == expected.as_bytes(),
            "{} bytes of {}",
            output.len(),
            expected.len()
        );
        let mut longest = Duration::ZERO;
        let mut before: Option<Duration> = None;
        for (index, line) in written.lines().enumerate() {
            let (number, time) = line.split_once(' ').unwrap();
            assert_eq!(number, (index + 1).to_string());
            let time = Duration::from_secs_f64(time.parse().unwrap());
            longest = longest.max(time - before.unwrap_or(time));
            before = Some(time);
        }
        longest
    }
}

/// The longest time between two pieces of output, for whoever watches a job from its start to its end.
async fn longest_silence(operator: Operator, job_id: String) -> Duration {
    let request = WatchJobRequest {
        job_id,
        ..WatchJobRequest::default()
    };
    let watching = operator.jobs().watch_job(request).await.unwrap();
    let mut stream = watching.into_inner();
    let mut longest = Duration::ZERO;
    let mut before: Option<Instant> = None;
    while let Some(answer) = stream.message().await.unwrap() {
        let events = answer.update.unwrap().events;
        if events
            .iter()
            .any(|event| matches!(event.event, Some(Event::Output(_))))
        {
            longest = longest.max(before.map_or(Duration::ZERO, |before| before.elapsed()));
            before = Some(Instant::now());
        }
    }
    longest
}

/// Another build of the agent: a program may have more behind it than its headers say.
fn another_build(fleet: &Fleet, name: &str) -> PathBuf {
    let path = fleet.directory().join(name);
    fs::copy(process::muster_agent(), &path).unwrap();
    let mut file = fs::File::options().append(true).open(&path).unwrap();
    file.write_all(name.as_bytes()).unwrap();
    path
}

/// Starts another build in the place of the one that ran.
async fn takes_over(fleet: &Fleet, host: &Arc<Agent>, build: &Path) {
    host.start_build(fleet, build);
    fleet.operator().online("web-1").await;
    let runs = fs::read_link(format!("/proc/{}/exe", host.pid())).unwrap();
    assert_eq!(runs, build);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_upgraded_under_fifty_tasks_costs_them_nothing() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let tally = Tally::new(fleet.directory());
    let go = fleet.directory().join("go");
    let mut writers = Vec::new();
    for number in 0..TASKS {
        writers.push(Writer::start(&fleet, number, &tally, &go).await);
    }
    for writer in &writers {
        writer.job.reaches(State::Running).await;
    }
    let watched = &writers[OFTEN_EACH];
    let watching = longest_silence(operator.clone(), watched.job.job_id.clone());
    let watching = tokio::spawn(watching);
    let all_write_on = async || {
        let before: Vec<usize> = writers.iter().map(Writer::lines).collect();
        for (writer, before) in writers.iter().zip(&before) {
            writer.reaches(before + LINES_BETWEEN).await;
        }
    };

    all_write_on().await;
    let second = another_build(&fleet, "muster-agent-2");
    let third = another_build(&fleet, "muster-agent-3");
    let ended = host.stop().await;
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    takes_over(&fleet, &host, &second).await;
    all_write_on().await;
    host.kill();
    takes_over(&fleet, &host, &third).await;
    all_write_on().await;
    fs::write(&go, "").unwrap();

    let (mut often, mut seldom) = (Duration::ZERO, Duration::ZERO);
    for (number, writer) in writers.iter().enumerate() {
        let silence = writer.is_whole().await;
        let longest = if number.is_multiple_of(OFTEN_EACH) {
            &mut often
        } else {
            &mut seldom
        };
        *longest = silence.max(*longest);
    }
    assert_eq!(tally.runs(), TASKS, "each ran once");
    let seen = watching.await.unwrap();
    eprintln!(
        "{TASKS} tasks, 2 upgrades: longest silence {often:?} of those that write each 50 ms, {seldom:?} of \
         those that write each 500 ms, {seen:?} for a watcher"
    );
    assert!(often < SILENCE_MAX, "{often:?}");
    assert!(seldom < SILENCE_MAX, "{seldom:?}");
}
