//! The cost of confining a task: the same command under each mode, on one host whose policy changes.

use std::{
    fs,
    time::{Duration, Instant},
};

use muster_client::Client;

use crate::{
    commands::run_true,
    figures::{Samples, heading, millis},
    fleet::{HOST, away, online, run_agent, start_agent, start_control_plane},
    programs::Programs,
};

/// In which order the host takes them.
const MODES: [&str; 3] = ["unrestricted", "read-only", "edit"];

/// Not measured: until the agent's supervisors are there.
const WARM_UP: usize = 20;

/// Runs `true` so many times in each mode, in some rounds, so that what disturbs disturbs all.
pub(crate) async fn run(programs: &Programs, samples: usize, rounds: usize) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let root = directory.path();
    let (_control_plane, client) = start_control_plane(programs, root).await?;
    let mut agent = start_agent(programs, root, &client, HOST).await?;
    online(&client, HOST).await?;
    let policy = root.join(HOST).join("agent/policy.toml");
    let work = root.join("work");
    fs::create_dir(&work)?;
    let mut times: [Samples; 3] = Default::default();
    for _ in 0..rounds.max(1) {
        for (mode, times) in MODES.into_iter().zip(&mut times) {
            let text = format!("mode = {mode:?}\n[edit]\nroots = [{work:?}]\n");
            fs::write(&policy, text)?;
            drop(agent);
            away(&client, HOST).await?;
            agent = run_agent(programs, root, HOST)?;
            online(&client, HOST).await?;
            for _ in 0..WARM_UP {
                one(&client).await?;
            }
            for _ in 0..samples.div_ceil(rounds.max(1)) {
                times.add(one(&client).await?);
            }
        }
    }
    heading(&format!("true on a host, {samples} in each mode"));
    let [free, read_only, edit] = &times;
    for (mode, times) in MODES.into_iter().zip(&times) {
        times.print(mode, free);
    }
    println!(
        "confining a task costs {:.3} ms (read-only) and {:.3} ms (edit)",
        millis(read_only.median()) - millis(free.median()),
        millis(edit.median()) - millis(free.median()),
    );
    Ok(())
}

async fn one(client: &Client) -> anyhow::Result<Duration> {
    let started = Instant::now();
    run_true(client, HOST).await?;
    Ok(started.elapsed())
}
