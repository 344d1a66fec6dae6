//! What idle programs cost, and how long the first result takes.

use std::{
    fs,
    time::{Duration, Instant},
};

use muster_client::Client;

use crate::{
    commands::run_true,
    figures::{heading, millis},
    fleet::{HOST, online, run_agent, start_agent, start_control_plane},
    process::Program,
    programs::Programs,
};

/// Starts control plane and agent, and then watches them do nothing.
pub(crate) async fn run(programs: &Programs, seconds: u64) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let started = Instant::now();
    let (control_plane, client) = start_control_plane(programs, directory.path()).await?;
    let ready = started.elapsed();
    let agent = start_agent(programs, directory.path(), &client, HOST).await?;
    online(&client, HOST).await?;
    run_true(&client, HOST).await?;
    drop(agent);

    heading("start");
    println!(
        "new control plane, to its first answer     {:>8.0} ms",
        millis(ready)
    );
    // Joined before: from the start of the agent to the first result.
    let started = Instant::now();
    let agent = run_agent(programs, directory.path(), HOST)?;
    run_true(&client, HOST).await?;
    println!(
        "agent, from its start to the first result  {:>8.0} ms",
        millis(started.elapsed())
    );
    idle(&control_plane, &agent, &client, seconds).await?;

    heading("size of the programs");
    for (name, path) in [
        ("muster", &programs.muster),
        ("muster-agent", &programs.agent),
    ] {
        let bytes = fs::metadata(path)?.len();
        println!("{name:<42} {:>8.1} MiB", bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}

async fn idle(
    control_plane: &Program,
    agent: &Program,
    client: &Client,
    seconds: u64,
) -> anyhow::Result<()> {
    for _ in 0..20 {
        run_true(client, HOST).await?;
    }
    // What runs after a task, as a sync, is over by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = [control_plane.cpu(), agent.cpu()];
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    heading(&format!("idle for {seconds} s, one host, heartbeats on"));
    for (name, program, before) in [
        ("control plane", control_plane, before[0]),
        ("agent", agent, before[1]),
    ] {
        let (rss, pss) = program.memory()?;
        println!(
            "{name:<14} RSS {:>6.1} MiB  PSS {:>6.1} MiB  CPU {:>6.2} ms/s",
            rss as f64 / 1024.0,
            pss as f64 / 1024.0,
            millis(program.cpu_since(before)) / seconds as f64,
        );
    }
    Ok(())
}
