//! The cost of a process between the agent and each task: memory, and time where none is at hand.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_client::Client;
use muster_proto::v1::{action::Kind, job_event::Event, task::State};
use tokio::{task::JoinSet, time};

use crate::{
    commands::run_true,
    family::Family,
    figures::{Samples, heading, millis},
    fleet::{HOST, away, command, online, run_agent, start_agent, start_control_plane},
    process::{Program, memory},
    programs::Programs,
};

/// How many tasks sleep while memory is looked at.
const SLEEPING: [usize; 4] = [0, 1, 64, 256];

/// Tasks that begin at once, of which only two find a supervisor that waits.
const BURST: usize = 64;

/// A sleeping task whose benchmark goes away ends by itself after this long.
const TASK_LIMIT: Duration = Duration::from_secs(300);

/// How long a task may take to be seen running.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take until a number of supervisors is no more than is kept.
const PATIENCE: Duration = Duration::from_secs(60);

/// Restarts the agent `rounds` times for the starts, and then counts memory on one that is new.
pub(crate) async fn run(programs: &Programs, rounds: usize) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let root = directory.path();
    let (control_plane, client) = start_control_plane(programs, root).await?;
    let mut agent = start_agent(programs, root, &client, HOST).await?;
    online(&client, HOST).await?;
    let mut times: [Samples; 4] = Default::default();
    for _ in 0..rounds {
        agent = restarted(agent, programs, root, &client).await?;
        times[0].add(one(&client).await?);
        for _ in 0..20 {
            times[1].add(one(&client).await?);
        }
        // New again, so that no supervisor is left of anything before.
        agent = restarted(agent, programs, root, &client).await?;
        one(&client).await?;
        times[2].add(at_once(&client).await?);
        times[3].add(at_once(&client).await?);
    }
    heading(&format!("starts, on {rounds} new agents each"));
    let [first, later, cold, warm] = times;
    later.print("true, one after the other", &later);
    first.print("the first true of an agent", &later);
    warm.print(&format!("{BURST} at once, supervisors at hand"), &warm);
    cold.print(&format!("{BURST} at once, for the first time"), &warm);
    println!(
        "a supervisor that must be made first adds {:.3} ms to each of {BURST} at once",
        (millis(cold.median()) - millis(warm.median())) / BURST as f64
    );

    let agent = restarted(agent, programs, root, &client).await?;
    memory_of(&control_plane, &agent, &client).await
}

async fn restarted(
    agent: Program,
    programs: &Programs,
    root: &Path,
    client: &Client,
) -> anyhow::Result<Program> {
    drop(agent);
    away(client, HOST).await?;
    let agent = run_agent(programs, root, HOST)?;
    online(client, HOST).await?;
    Ok(agent)
}

async fn one(client: &Client) -> anyhow::Result<Duration> {
    let started = Instant::now();
    run_true(client, HOST).await?;
    Ok(started.elapsed())
}

async fn at_once(client: &Client) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..BURST {
        let client = client.clone();
        running.spawn(async move { run_true(&client, HOST).await });
    }
    while let Some(ended) = running.join_next().await {
        ended.context("a task of the benchmark panicked")??;
    }
    Ok(started.elapsed())
}

/// Memory of the agent and of everything below it but the tasks' own processes.
async fn memory_of(
    control_plane: &Program,
    agent: &Program,
    client: &Client,
) -> anyhow::Result<()> {
    heading("memory while tasks sleep, KiB (PSS; the programs of the tasks apart)");
    println!(
        " tasks  supervisors      agent    nursery  supervisors  RSS of one  a task  control plane"
    );
    // Once, so that what is made at the first task is there before.
    run_true(client, HOST).await?;
    let mut jobs = Vec::new();
    let mut nothing = (0, 0);
    for count in SLEEPING {
        let mut all_run = true;
        while all_run && jobs.len() < count {
            let (job, runs) = sleeping(client).await?;
            jobs.push(job);
            all_run = runs;
        }
        let count = jobs.len();
        if !all_run {
            println!(
                "of {count} tasks at once the last is not seen running within {START_LIMIT:?}"
            );
        }
        let family = settled(agent.id(), count).await?;
        let (_, agent_pss) = agent.memory()?;
        let mut nursery_pss = 0;
        for pid in &family.nurseries {
            nursery_pss += memory(*pid)?.1;
        }
        let (mut rss, mut pss) = (0, 0);
        for pid in &family.supervisors {
            let (more_rss, more_pss) = memory(*pid)?;
            rss += more_rss;
            pss += more_pss;
        }
        let sum = agent_pss + nursery_pss + pss;
        let control_plane = control_plane.memory()?.1;
        if count == 0 {
            nothing = (sum, control_plane);
        }
        let each = |now: u64, before: u64| now.saturating_sub(before) / count.max(1) as u64;
        println!(
            "{count:>6}  {:>11}  {agent_pss:>9}  {nursery_pss:>9}  {pss:>11}  {:>10}  {:>6}  {control_plane:>6} (+{} a task)",
            family.supervisors.len(),
            rss / family.supervisors.len().max(1) as u64,
            each(sum, nothing.0),
            each(control_plane, nothing.1),
        );
        if !all_run {
            break;
        }
    }
    for job in &jobs {
        client.cancel(job, "", Some(Duration::ZERO)).await?;
    }
    // Nothing may be left of them when the agent goes.
    settled(agent.id(), 0).await?;
    Ok(())
}

/// The family once it has as many supervisors as tasks, and the few that wait.
async fn settled(agent: u32, tasks: usize) -> anyhow::Result<Family> {
    /// Supervisors that wait though nothing has happened for long.
    const SPARE: usize = 2;
    let started = Instant::now();
    loop {
        let family = Family::of(agent);
        if family.supervisors.len() == tasks + SPARE {
            return Ok(family);
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "{tasks} tasks have {} supervisors",
            family.supervisors.len()
        );
        time::sleep(Duration::from_millis(100)).await;
    }
}

/// Starts a task that sleeps: the job's id, and whether the task is soon seen running.
async fn sleeping(client: &Client) -> anyhow::Result<(String, bool)> {
    let mut request = command(HOST, &["sleep", "600"]);
    if let Some(Kind::Command(command)) = request.action.as_mut().and_then(|it| it.kind.as_mut()) {
        command.timeout = Some(TASK_LIMIT.try_into()?);
    }
    let mut watch = client.run(request).await?;
    let job = watch.job_id().to_owned();
    let seen = async {
        loop {
            let update = watch.next().await.context("the job ended")??;
            let runs = update.events.iter().any(|event| {
                matches!(&event.event, Some(Event::Task(task)) if task.state() == State::Running)
            });
            if runs {
                return anyhow::Ok(());
            }
        }
    };
    match time::timeout(START_LIMIT, seen).await {
        Ok(seen) => seen.map(|()| (job, true)),
        Err(_) => Ok((job, false)),
    }
}
