//! Many watchers of one job that writes a lot, some of which never read: memory of the control plane.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use muster_client::Client;
use muster_proto::v1::{
    CreateJobRequest, TaskInput, action::Kind, job_event::Event, task::State, task_input,
};
use tokio::{task::JoinSet, time};

use crate::{
    commands::run_true,
    figures::heading,
    fleet::{HOST, command, online, start_agent, start_control_plane},
    programs::Programs,
};

/// The job waits for a line and then writes lines.
const SCRIPT: &str = "read go; yes 'a line of text as a build writes it' | head -c 16777216";
const WRITTEN: usize = 16 << 20;

/// A job whose benchmark goes away ends by itself after this long.
const TASK_LIMIT: Duration = Duration::from_secs(300);

/// Until memory of watchers who have left is given back.
const SETTLED: Duration = Duration::from_secs(10);

/// Resident memory of the control plane, KiB.
pub(crate) struct Memory {
    before: u64,
    /// The most while they watched.
    pub(crate) during: u64,
    /// Some seconds after the last one left.
    pub(crate) after: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |kib: u64| kib * 1024 / 1_000_000;
        let (before, during, after) = (mb(self.before), mb(self.during), mb(self.after));
        write!(formatter, "{before} -> {during} MB, {after} after")
    }
}

/// Lets so many watch, of which some never read, and prints what the control plane has for it.
pub(crate) async fn run(programs: &Programs, watchers: usize, silent: usize) -> anyhow::Result<()> {
    let memory = measure(programs, watchers, silent).await?;
    heading(&format!(
        "{watchers} watchers of {} MiB of lines, {silent} of them never read",
        WRITTEN >> 20
    ));
    println!("control plane: RSS {memory}");
    Ok(())
}

/// Lets so many watch, of which some never read. All others must have all of it.
pub(crate) async fn measure(
    programs: &Programs,
    watchers: usize,
    silent: usize,
) -> anyhow::Result<Memory> {
    ensure!(silent < watchers, "somebody has to read");
    let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let root = directory.path();
    let (control_plane, client) = start_control_plane(programs, root).await?;
    let _agent = start_agent(programs, root, &client, HOST).await?;
    online(&client, HOST).await?;
    for _ in 0..100 {
        run_true(&client, HOST).await?;
    }
    let before = control_plane.memory()?.0;
    let (job_id, task_id) = start(&client).await?;
    let (mut readers, mut others) = (JoinSet::new(), Vec::new());
    for number in 0..watchers {
        let mut watch = client.watch(&job_id, "");
        watch.next().await.context("the job is over")??;
        if number < silent {
            others.push(watch);
        } else {
            readers.spawn(async move {
                let mut bytes = 0;
                while let Some(update) = watch.next().await {
                    for event in update?.events {
                        match event.event {
                            Some(Event::Output(chunk)) => bytes += chunk.data.len(),
                            Some(Event::Gap(gap)) => {
                                bail!("{} bytes were dropped: {}", gap.length, gap.cause)
                            }
                            _ => {}
                        }
                    }
                }
                ensure!(bytes == WRITTEN, "{bytes} bytes came");
                anyhow::Ok(())
            });
        }
    }
    let go = TaskInput {
        kind: Some(task_input::Kind::Data("go\n".into())),
    };
    client.send_input(&task_id, "", go).await?;
    while let Some(reader) = readers.join_next().await {
        reader.context("a reader panicked")??;
    }
    let during = control_plane.peak().context("the control plane is gone")?;
    drop(others);
    time::sleep(SETTLED).await;
    let after = control_plane.memory()?.0;
    Ok(Memory {
        before,
        during,
        after,
    })
}

/// Starts the job: its id, and that of its task, which runs.
async fn start(client: &Client) -> anyhow::Result<(String, String)> {
    let mut watch = client.run(chatty()?).await?;
    loop {
        for event in watch.next().await.context("the job is over")??.events {
            if let Some(Event::Task(task)) = event.event
                && task.state() == State::Running
            {
                return Ok((watch.job_id().to_owned(), task.task_id));
            }
        }
    }
}

fn chatty() -> anyhow::Result<CreateJobRequest> {
    let mut request = command(HOST, &["sh", "-c", SCRIPT]);
    if let Some(Kind::Command(command)) = request.action.as_mut().and_then(|it| it.kind.as_mut()) {
        command.open_stdin = true;
        command.timeout = Some(TASK_LIMIT.try_into()?);
    }
    Ok(request)
}
