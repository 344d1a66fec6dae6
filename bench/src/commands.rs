//! `true` on a host, one after the other: how long it takes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use muster_client::Client;
use muster_proto::v1::{job_event::Event, task};

use crate::{
    field::{Field, RELAY, SSH},
    figures::{heading, millis},
    fleet::{self, command},
    mcp::McpClient,
    meter::Meter,
    reference, relay,
    rounds::{Contest, Plan, Way},
};

/// Names of the ways in what is printed.
pub(crate) const SPAWN: &str = "spawn";
pub(crate) const GRPC: &str = "gRPC, RunJob";
pub(crate) const MCP: &str = "MCP over HTTP, run";
pub(crate) const CONFINED: &str = "the same by an ai, confined";

/// Samples in a round.
const EACH: usize = 20;

/// Calls of an ai: with more within a minute it would be suspended, as the shipped limits say.
const OF_AN_AI_MAX: usize = 550;

/// Ways to run `true`.
pub(crate) enum True {
    /// A program here.
    Here(Vec<String>),
    /// Through a control plane, or the relay.
    Grpc(Client, &'static str),
    /// Through a gateway.
    Mcp(McpClient),
}

impl Way for True {
    async fn once(&mut self) -> anyhow::Result<f64> {
        let started = Instant::now();
        match self {
            True::Here(argv) => return Ok(millis(reference::spawn_and_wait(argv)?)),
            True::Grpc(client, host) => run_true(client, host).await?,
            True::Mcp(client) => client.run_true(fleet::HOST).await?,
        }
        Ok(millis(started.elapsed()))
    }
}

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

/// A spawn here and one through the relay.
pub(crate) fn yardsticks(field: &Field) -> Contest<True> {
    let here = True::Here(vec!["true".to_owned()]);
    let relay = True::Grpc(field.relay.client.clone(), relay::HOST);
    Contest::new("ms", (SPAWN, here), relay)
}

/// Measures them all in turn; `pause` goes ahead of each. Prints what it came to.
pub(crate) async fn latency(
    field: &Field,
    samples: usize,
    pause: Duration,
) -> anyhow::Result<Contest<True>> {
    let mut contest = yardsticks(field);
    for side in &field.sides {
        let (fleet, label) = (&side.fleet, &side.label);
        let script = McpClient::connect(fleet.mcp, &fleet.script_token).await?;
        let ai = McpClient::connect(fleet.mcp, &fleet.ai_token).await?;
        let grpc = True::Grpc(fleet.client.clone(), fleet::HOST);
        contest.add(GRPC, label, grpc);
        contest.add(MCP, label, True::Mcp(script));
        contest.add_limited(CONFINED, label, True::Mcp(ai), OF_AN_AI_MAX);
    }
    if let Some(argv) = field.over_ssh(&["true"]) {
        contest.add(SSH, "", True::Here(argv));
    }
    let meters: Vec<_> = field.sides.iter().map(|side| side.fleet.meter()).collect();
    let gateways: Vec<_> = field
        .sides
        .iter()
        .map(|it| it.fleet.gateway.cpu())
        .collect();
    let relay = Meter::start(&field.relay.server, &field.relay.agent);
    contest.run(Plan::of(samples, EACH).paused(pause)).await?;

    heading(&match pause.as_millis() {
        0 => format!("true on one host, {samples} times"),
        pause => format!("true on one host, {samples} times, {pause} ms apart"),
    });
    contest.print();
    println!("CPU us each:");
    println!("  relay: {}", relay.stop().each(contest.done(RELAY, "")));
    for ((side, meter), gateway) in field.sides.iter().zip(meters).zip(gateways) {
        let done = |what| contest.done(what, &side.label);
        let (grpc, mcp) = (done(GRPC), done(MCP) + done(CONFINED));
        let gateway = side.fleet.gateway.cpu_since(gateway) / mcp.max(1) as u32;
        println!(
            "  {}: {}; gateway {} for a call over MCP",
            side.name(),
            meter.stop().each(grpc + mcp),
            gateway.as_micros()
        );
    }
    Ok(contest)
}
