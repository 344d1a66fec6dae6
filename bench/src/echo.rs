//! Standard input there and standard output back, while a task runs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use muster_client::{Attach, AttachEvent, Attachment, Writing};
use muster_proto::v1::{
    Terminal, action::Kind, attach_open::Access, job_event::Event, task::State,
};

use crate::{
    figures::{Samples, heading, millis},
    fleet::{Fleet, HOST, command},
    meter::Meter,
    reference::Echo,
};

const ARGV: [&str; 1] = ["cat"];
const WARM_UP: usize = 20;

/// A task whose client goes away ends by itself after this long.
const TASK_LIMIT: Duration = Duration::from_secs(600);

/// `cat` on the host, and somebody attached to it.
struct Session {
    attachment: Attachment,
    writing: Writing,
    has_terminal: bool,
}

/// One line after the other, through each way in turn.
pub(crate) async fn run(fleet: &Fleet, samples: usize) -> anyhow::Result<()> {
    let mut pipes = Session::open(fleet, false).await?;
    let mut terminal = Session::open(fleet, true).await?;
    let mut local = Echo::start(&ARGV)?;
    let ssh = fleet.ssh.as_ref().map(|ssh| ssh.argv(&ARGV));
    let mut ssh = ssh.as_deref().map(Echo::start).transpose()?;
    let mut times: [Samples; 4] = Default::default();
    let meter = Meter::start(fleet);
    for round in 0..samples + WARM_UP {
        // Another one each time, so that an old answer is not taken for this one's.
        let line = [b'0' + (round % 10) as u8, b'\n'];
        let [limit, through_pipes, through_terminal, through_ssh] = [
            Some(local.line(&line)?),
            Some(pipes.line(&line).await?),
            Some(terminal.line(&line).await?),
            ssh.as_mut().map(|ssh| ssh.line(&line)).transpose()?,
        ];
        if round >= WARM_UP {
            let measured = [limit, through_pipes, through_terminal, through_ssh];
            for (times, time) in times.iter_mut().zip(measured) {
                time.into_iter().for_each(|time| times.add(time));
            }
        }
    }
    let usage = meter.stop();
    pipes.close().await?;
    terminal.close().await?;

    let [limit, through_pipes, through_terminal, through_ssh] = times;
    heading(&format!(
        "a line of one byte to cat and back, {samples} times"
    ));
    limit.print("local pipe", &limit);
    through_pipes.print("gRPC, AttachTask, pipes", &limit);
    through_terminal.print("gRPC, AttachTask, a terminal", &limit);
    if ssh.is_some() {
        through_ssh.print("ssh over an open connection", &limit);
        println!(
            "gRPC through pipes takes {:.2} x of what ssh takes",
            millis(through_pipes.median()) / millis(through_ssh.median())
        );
    }
    let each = usage.each(2 * (samples + WARM_UP));
    println!(
        "CPU us each: {each}, client {:.0} with its share of the references",
        each.micros(usage.client)
    );
    Ok(())
}

impl Session {
    async fn open(fleet: &Fleet, has_terminal: bool) -> anyhow::Result<Session> {
        let mut request = command(HOST, &ARGV);
        if let Some(Kind::Command(command)) =
            request.action.as_mut().and_then(|it| it.kind.as_mut())
        {
            command.open_stdin = true;
            command.terminal = has_terminal.then(Terminal::default);
            command.timeout = Some(TASK_LIMIT.try_into()?);
        }
        let mut watch = fleet.client.run(request).await?;
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
        let mut attachment = fleet.client.attach(&running.unwrap_or_default(), attach);
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
