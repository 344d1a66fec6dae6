//! Many agents on one control plane: dial-in, memory, a no-op on all of them and on one, and what they cost idle.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_client::Client;
use muster_proto::v1::{JoinKind, job_event::Event, task};
use tokio::time;

use crate::{
    commands::run_true,
    figures::{Samples, heading, millis},
    fleet::{command, join_string, start_control_plane},
    process::Program,
    programs::Programs,
    simulated::{Simulation, enroll},
};

/// How long all of them may take to attach.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often all of them run something.
const ROUNDS: u32 = 5;

/// Until work that was put off is done.
const SETTLED: Duration = Duration::from_secs(3);

/// A ping of each end of each connection, and some heartbeats, fall into it.
const IDLE: Duration = Duration::from_secs(30);

/// Times, costs and memory, as measured.
pub(crate) struct Figures {
    attached_in: Duration,
    turned_away: usize,
    /// CPU time of the control plane to let all of them in.
    let_in: Duration,
    memory_each_kib: f64,
    pub(crate) memory_kib: u64,
    all: Samples,
    one: Samples,
    /// CPU time of the control plane for one of the tasks on all of them.
    pub(crate) task: Duration,
    /// CPU time of the control plane in a second.
    pub(crate) idle: Duration,
}

/// Joins and attaches `count` agents, `at_once` at a time, and prints what they cost.
pub(crate) async fn run(programs: &Programs, count: usize, at_once: usize) -> anyhow::Result<()> {
    let figures = measure(programs, count, at_once).await?;
    heading(&format!("{count} agents, {at_once} dialling at once"));
    println!(
        "attached in {:.2} s; {} were turned away and came again",
        figures.attached_in.as_secs_f64(),
        figures.turned_away
    );
    println!(
        "control plane: {:.2} CPU s to let them in, {:.0} KiB each",
        figures.let_in.as_secs_f64(),
        figures.memory_each_kib
    );
    println!("idle: {:.1} ms/s of CPU", millis(figures.idle));
    println!(
        "no-op on all of them: {:.0} ms",
        millis(figures.all.median())
    );
    println!(
        "control plane: {:.0} us of CPU per task",
        millis(figures.task) * 1e3
    );
    println!(
        "no-op on one of them: {:.2} ms, p99 {:.2} ms",
        millis(figures.one.median()),
        millis(figures.one.percentile(99))
    );
    println!("control plane: RSS {} MiB", figures.memory_kib >> 10);
    Ok(())
}

/// Joins and attaches `count` agents, `at_once` at a time.
pub(crate) async fn measure(
    programs: &Programs,
    count: usize,
    at_once: usize,
) -> anyhow::Result<Figures> {
    let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let (control_plane, client) = start_control_plane(programs, directory.path()).await?;
    let uses = i32::try_from(count).context("too many agents")?;
    let join = join_string(&client, JoinKind::Host, "", uses).await?;
    let identities = enroll(&join, count, at_once).await?;

    let (memory, cpu) = (control_plane.memory()?.0, control_plane.cpu());
    let started = Instant::now();
    let agents = Simulation::start(identities, at_once);
    while agents.attached() < count {
        ensure!(
            started.elapsed() < PATIENCE,
            "only {} of {count} agents attached",
            agents.attached()
        );
        time::sleep(Duration::from_millis(5)).await;
    }
    let attached_in = started.elapsed();
    let let_in = control_plane.cpu_since(cpu);
    let memory_each = control_plane.memory()?.0.saturating_sub(memory) as f64 / count as f64;

    time::sleep(SETTLED).await;
    let cpu = control_plane.cpu();
    time::sleep(IDLE).await;
    let idle = control_plane.cpu_since(cpu) / IDLE.as_secs() as u32;
    let (all, task) = on_all(&control_plane, &client, count, idle).await?;
    let mut one = Samples::default();
    for _ in 0..100 {
        let started = Instant::now();
        run_true(&client, "sim-0").await?;
        one.add(started.elapsed());
    }
    let figures = Figures {
        attached_in,
        turned_away: agents.turned_away(),
        let_in,
        memory_each_kib: memory_each,
        memory_kib: control_plane.memory()?.0,
        all,
        one,
        task,
        idle,
    };
    agents.stop().await;
    Ok(figures)
}

/// A no-op on all, some times: how long it takes, and what one of the tasks costs, put off or not, beside what the agents
/// cost anyway.
async fn on_all(
    control_plane: &Program,
    client: &Client,
    count: usize,
    idle: Duration,
) -> anyhow::Result<(Samples, Duration)> {
    let mut all = Samples::default();
    let (cpu, started) = (control_plane.cpu(), Instant::now());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        run_everywhere(client, count).await?;
        all.add(started.elapsed());
    }
    time::sleep(SETTLED).await;
    let anyway = idle.mul_f64(started.elapsed().as_secs_f64());
    let used = control_plane.cpu_since(cpu).saturating_sub(anyway);
    Ok((all, used / ROUNDS / u32::try_from(count)?))
}

async fn run_everywhere(client: &Client, count: usize) -> anyhow::Result<()> {
    let mut watch = client.run(command("all", &["true"])).await?;
    let mut states = BTreeMap::new();
    while let Some(update) = watch.next().await {
        for event in update?.events {
            if let Some(Event::Task(task)) = event.event {
                let state = task.state();
                states.insert(task.task_id, state);
            }
        }
    }
    let succeeded = |state: &&task::State| **state == task::State::Succeeded;
    let succeeded = states.values().filter(succeeded).count();
    ensure!(
        succeeded == count && states.len() == count,
        "{succeeded} of {} tasks on {count} hosts succeeded",
        states.len()
    );
    Ok(())
}
