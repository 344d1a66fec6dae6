//! `true` on a host: how long it takes, and how many a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_client::Client;
use muster_proto::v1::{job_event::Event, task};
use tokio::task::JoinSet;

use crate::{
    figures::{Samples, heading, print_rate},
    fleet::{Fleet, HOST, command},
    mcp::McpClient,
    meter::Meter,
    reference,
};

const WARM_UP: usize = 20;

/// Calls of an ai: with more within a minute it would be suspended, as the shipped limits say.
const OF_AN_AI_MAX: usize = 550;

/// Runs `true` on a host to its end, and checks how it ended.
pub(crate) async fn run_true(client: &Client, host: &str) -> anyhow::Result<()> {
    let mut watch = client.run(command(host, &["true"])).await?;
    let mut state = None;
    while let Some(update) = watch.next().await {
        for event in update?.events {
            if let Some(Event::Task(task)) = event.event {
                state = Some((task.state(), task.exit_code));
            }
        }
    }
    ensure!(
        state == Some((task::State::Succeeded, Some(0))),
        "true ended as {state:?}"
    );
    Ok(())
}

/// One after the other, each kind in turn, so that noise hits all alike. `pause` goes ahead of each.
pub(crate) async fn latency(fleet: &Fleet, samples: usize, pause: Duration) -> anyhow::Result<()> {
    let mut script = McpClient::connect(fleet.mcp, &fleet.script_token).await?;
    let mut ai = McpClient::connect(fleet.mcp, &fleet.ai_token).await?;
    let mut limit = Samples::default();
    let mut grpc = Samples::default();
    let mut over_mcp = Samples::default();
    let mut confined = Samples::default();
    let mut openssh = Samples::default();
    let ssh = fleet.ssh.as_ref().map(|ssh| ssh.argv(&["true"]));
    let gateway = fleet.gateway.cpu();
    let meter = Meter::start(fleet);
    for round in 0..samples + WARM_UP {
        wait(pause).await;
        let local_time = reference::spawn_and_wait(&["true"])?;
        wait(pause).await;
        let started = Instant::now();
        run_true(&fleet.client, HOST).await?;
        let remote = started.elapsed();
        wait(pause).await;
        let started = Instant::now();
        script.run_true(HOST).await?;
        let through_gateway = started.elapsed();
        if round < OF_AN_AI_MAX {
            wait(pause).await;
            let started = Instant::now();
            ai.run_true(HOST).await?;
            if round >= WARM_UP {
                confined.add(started.elapsed());
            }
        }
        let over_ssh = ssh.as_deref().map(reference::spawn_and_wait).transpose()?;
        if round >= WARM_UP {
            over_ssh.into_iter().for_each(|time| openssh.add(time));
            limit.add(local_time);
            grpc.add(remote);
            over_mcp.add(through_gateway);
        }
    }
    let usage = meter.stop();
    let paused = match pause.as_millis() {
        0 => String::new(),
        pause => format!(", {pause} ms apart"),
    };
    heading(&format!("true on one host, {samples} times{paused}"));
    limit.print("local spawn and wait", &limit);
    grpc.print("gRPC, RunJob", &limit);
    over_mcp.print("MCP over HTTP, run", &limit);
    confined.print("the same by an ai, confined", &limit);
    if ssh.is_some() {
        openssh.print("ssh over an open connection", &limit);
    }
    let calls = samples + WARM_UP;
    let calls_of_gateway = calls + calls.min(OF_AN_AI_MAX);
    let gateway = fleet.gateway.cpu_since(gateway) / calls_of_gateway as u32;
    println!(
        "CPU us each: {}; gateway {} for a call over MCP",
        usage.each(calls + calls_of_gateway),
        gateway.as_micros()
    );
    Ok(())
}

/// Nothing is done for so long.
pub(crate) async fn wait(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// Many at once; the local spawns before and after, as neighbours would disturb each other.
pub(crate) async fn rate(fleet: &Fleet, samples: usize, in_flight: usize) -> anyhow::Result<()> {
    let argv = vec!["true".to_owned()];
    let before = local_rate(&argv, samples, in_flight).await?;
    let meter = Meter::start(fleet);
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let (client, next) = (fleet.client.clone(), next.clone());
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < samples {
                run_true(&client, HOST).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker panicked")??;
    }
    let remote = samples as f64 / started.elapsed().as_secs_f64();
    let usage = meter.stop();
    let each = usage.each(samples);
    let local = before.max(local_rate(&argv, samples, in_flight).await?);
    heading(&format!("true with {in_flight} in flight, {samples} times"));
    print_rate("local spawn and wait", local, "/s", local);
    print_rate("gRPC, RunJob", remote, "/s", local);
    if let Some(ssh) = &fleet.ssh {
        // A session for each; sshd allows ten on a connection unless it is told otherwise.
        let rate = local_rate(&ssh.argv(&["true"]), samples / 4, in_flight).await?;
        print_rate("ssh over an open connection", rate, "/s", local);
    }
    println!(
        "CPU us each: {each}, client {:.0}; the processes themselves {:.0}",
        each.micros(usage.client),
        each.micros(usage.programs)
    );
    Ok(())
}

async fn local_rate(argv: &[String], samples: usize, in_flight: usize) -> anyhow::Result<f64> {
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let (next, argv) = (next.clone(), argv.to_vec());
        workers.spawn_blocking(move || {
            while next.fetch_add(1, Ordering::Relaxed) < samples {
                reference::spawn_and_wait(&argv)?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker panicked")??;
    }
    Ok(samples as f64 / started.elapsed().as_secs_f64())
}
