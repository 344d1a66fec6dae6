//! Standard input there and standard output back, while a task runs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use muster_client::{Attach, AttachEvent, Attachment, Client, Writing};
use muster_proto::v1::{
    Terminal, action::Kind, attach_open::Access, job_event::Event, task::State,
};

use crate::{
    field::{Field, RELAY, SSH},
    figures::{heading, millis},
    first_byte::PIPE,
    fleet::{self, command},
    meter::Meter,
    reference::Echo,
    relay,
    rounds::{Contest, Plan, Way},
};

const ARGV: [&str; 1] = ["cat"];

/// Names of the ways in what is printed.
pub(crate) const ATTACHED: &str = "gRPC, AttachTask, pipes";
pub(crate) const ATTACHED_TO_TERMINAL: &str = "gRPC, AttachTask, a terminal";

/// Samples in a round.
const EACH: usize = 50;

/// A task whose client goes away ends by itself after this long.
const TASK_LIMIT: Duration = Duration::from_secs(600);

/// `cat` on the host, and somebody attached to it.
struct Session {
    attachment: Attachment,
    writing: Writing,
    has_terminal: bool,
}

/// Ways to write a line to `cat` and have it back.
pub(crate) struct Line {
    to: To,
    /// Lines so far, modulo ten.
    count: u8,
}

enum To {
    /// A program here, through pipes.
    Here(Echo),
    /// A task.
    Attached(Box<Session>),
}

impl Way for Line {
    async fn once(&mut self) -> anyhow::Result<f64> {
        // Another one each time, so that an old answer is not taken for this one's.
        self.count = (self.count + 1) % 10;
        let line = [b'0' + self.count, b'\n'];
        let time = match &mut self.to {
            To::Here(echo) => echo.line(&line)?,
            To::Attached(session) => session.line(&line).await?,
        };
        Ok(millis(time))
    }
}

/// One line after the other, through each way in turn. Prints what it came to.
pub(crate) async fn run(field: &Field, samples: usize) -> anyhow::Result<Contest<Line>> {
    let line = |to| Line { to, count: 0 };
    let here = |argv: &[String]| anyhow::Ok(line(To::Here(Echo::start(argv)?)));
    let session = Session::open(&field.relay.client, relay::HOST, false).await?;
    let relay = line(To::Attached(Box::new(session)));
    let mut contest = Contest::new("ms", (PIPE, here(&ARGV.map(str::to_owned))?), relay);
    for side in &field.sides {
        for (what, has_terminal) in [(ATTACHED, false), (ATTACHED_TO_TERMINAL, true)] {
            let session = Session::open(&side.fleet.client, fleet::HOST, has_terminal).await?;
            contest.add(what, &side.label, line(To::Attached(Box::new(session))));
        }
    }
    if let Some(argv) = field.over_ssh(&ARGV) {
        contest.add(SSH, "", here(&argv)?);
    }
    let meters: Vec<_> = field.sides.iter().map(|side| side.fleet.meter()).collect();
    let relay = Meter::start(&field.relay.server, &field.relay.agent);
    contest.run(Plan::of(samples, EACH)).await?;
    heading(&format!(
        "a line of one byte to cat and back, {samples} times"
    ));
    contest.print();
    println!("CPU us each:");
    println!("  relay: {}", relay.stop().each(contest.done(RELAY, "")));
    for (side, meter) in field.sides.iter().zip(meters) {
        let done = |what| contest.done(what, &side.label);
        let lines = done(ATTACHED) + done(ATTACHED_TO_TERMINAL);
        println!("  {}: {}", side.name(), meter.stop().each(lines));
    }
    Ok(contest)
}

/// Ends every `cat` that was written to.
pub(crate) async fn close(contest: Contest<Line>) -> anyhow::Result<()> {
    for line in contest.into_ways() {
        if let To::Attached(session) = line.to {
            session.close().await?;
        }
    }
    Ok(())
}

impl Session {
    async fn open(client: &Client, host: &str, has_terminal: bool) -> anyhow::Result<Session> {
        let mut request = command(host, &ARGV);
        if let Some(Kind::Command(command)) =
            request.action.as_mut().and_then(|it| it.kind.as_mut())
        {
            command.open_stdin = true;
            command.terminal = has_terminal.then(Terminal::default);
            command.timeout = Some(TASK_LIMIT.try_into()?);
        }
        let mut watch = client.run(request).await?;
        let mut running = None;
        while running.is_none() {
            let update = watch.next().await.context("cat ended")??;
            running = update
                .events
                .into_iter()
                .find_map(|event| match event.event {
                    Some(Event::Task(task)) => {
                        (task.state() == State::Running).then_some(task.task_id)
                    }
                    _ => None,
                });
        }
        drop(watch);
        let attach = Attach {
            access: Access::Write,
            ..Attach::default()
        };
        let mut attachment = client.attach(&running.unwrap_or_default(), attach);
        loop {
            match attachment.next().await.context("cat ended")?? {
                AttachEvent::Attached(attached) => {
                    ensure!(
                        attached.writer.is_some_and(|writer| writer.you),
                        "somebody else writes"
                    );
                    break;
                }
                AttachEvent::Broken(why) => bail!("attaching failed: {why}"),
                _ => {}
            }
        }
        Ok(Session {
            writing: attachment.writing(),
            attachment,
            has_terminal,
        })
    }

    /// Writes a line and waits until it has come back.
    async fn line(&mut self, line: &[u8]) -> anyhow::Result<Duration> {
        let expected = if self.has_terminal {
            // As the terminal shows what is typed, and then as cat writes it.
            let shown = [&line[..line.len() - 1], b"\r\n"].concat();
            [&shown[..], &shown[..]].concat()
        } else {
            line.to_vec()
        };
        let mut came = Vec::with_capacity(expected.len());
        let started = Instant::now();
        self.writing.write(Bytes::copy_from_slice(line)).await?;
        while came.len() < expected.len() {
            match self.attachment.next().await.context("cat ended")?? {
                AttachEvent::Output(chunk) => came.extend_from_slice(&chunk.data),
                AttachEvent::Gap(gap) => bail!("{} bytes were dropped", gap.length),
                AttachEvent::Broken(why) => bail!("the attachment broke: {why}"),
                _ => {}
            }
        }
        let time = started.elapsed();
        ensure!(came == expected, "{came:?} came back");
        Ok(time)
    }

    /// Ends cat, and waits for its end.
    async fn close(mut self) -> anyhow::Result<()> {
        if self.has_terminal {
            // A terminal's standard input ends with a key.
            self.writing.write(Bytes::from_static(b"\x04")).await?;
        } else {
            self.writing.close().await?;
        }
        while let Some(event) = self.attachment.next().await {
            event?;
        }
        Ok(())
    }
}
