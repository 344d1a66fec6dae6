//! From the call to the first byte of output.

use std::time::{Duration, Instant};

use anyhow::bail;
use muster_client::Client;
use muster_proto::v1::job_event::Event;

use crate::{
    commands::wait,
    figures::{Samples, heading},
    fleet::{Fleet, HOST, command},
    reference,
};

const ARGV: [&str; 2] = ["echo", "first"];

/// One after the other, each beside a local one. `pause` goes ahead of each.
pub(crate) async fn run(fleet: &Fleet, samples: usize, pause: Duration) -> anyhow::Result<()> {
    let (mut limit, mut remote) = (Samples::default(), Samples::default());
    let mut openssh = Samples::default();
    let ssh = fleet.ssh.as_ref().map(|ssh| ssh.argv(&ARGV));
    for round in 0..samples + 10 {
        wait(pause).await;
        let local = reference::first_byte(&ARGV)?;
        wait(pause).await;
        let started = Instant::now();
        let time = first_byte(&fleet.client, started).await?;
        let over_ssh = ssh.as_deref().map(reference::first_byte).transpose()?;
        if round >= 10 {
            over_ssh.into_iter().for_each(|time| openssh.add(time));
            limit.add(local);
            remote.add(time);
        }
    }
    heading(&format!("first byte of output, {samples} times"));
    limit.print("local pipe", &limit);
    remote.print("gRPC, RunJob", &limit);
    if ssh.is_some() {
        openssh.print("ssh over an open connection", &limit);
    }
    Ok(())
}

async fn first_byte(client: &Client, started: Instant) -> anyhow::Result<Duration> {
    let mut watch = client.run(command(HOST, &ARGV)).await?;
    let mut first = None;
    while let Some(update) = watch.next().await {
        let has_output = |event: &Option<Event>| matches!(event, Some(Event::Output(_)));
        if update?.events.iter().any(|event| has_output(&event.event)) {
            first.get_or_insert_with(|| started.elapsed());
        }
    }
    match first {
        Some(time) => Ok(time),
        None => bail!("no output came"),
    }
}
