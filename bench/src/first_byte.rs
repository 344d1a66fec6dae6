//! From the call to the first byte of output.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_client::Client;
use muster_proto::v1::job_event::Event;

use crate::{
    commands::GRPC,
    field::{Field, SSH},
    figures::{heading, millis},
    fleet::{self, command},
    reference, relay,
    rounds::{Contest, Plan, Way},
};

const ARGV: [&str; 2] = ["echo", "first"];
const WRITTEN: &[u8] = b"first\n";

/// The pipe's name in what is printed.
pub(crate) const PIPE: &str = "pipe";

/// Samples in a round.
const EACH: usize = 20;

/// Ways to run a program that writes a line.
pub(crate) enum FirstByte {
    /// Here, through a pipe.
    Here(Vec<String>),
    /// Through a control plane, or the relay.
    Grpc(Client, &'static str),
}

impl Way for FirstByte {
    async fn once(&mut self) -> anyhow::Result<f64> {
        let time = match self {
            FirstByte::Here(argv) => reference::first_byte(argv, WRITTEN)?,
            FirstByte::Grpc(client, host) => first_byte(client, host).await?,
        };
        Ok(millis(time))
    }
}

/// Measures them all in turn; `pause` goes ahead of each. Prints what it came to.
pub(crate) async fn run(
    field: &Field,
    samples: usize,
    pause: Duration,
) -> anyhow::Result<Contest<FirstByte>> {
    let here = FirstByte::Here(ARGV.map(str::to_owned).to_vec());
    let relay = FirstByte::Grpc(field.relay.client.clone(), relay::HOST);
    let mut contest = Contest::new("ms", (PIPE, here), relay);
    for side in &field.sides {
        let way = FirstByte::Grpc(side.fleet.client.clone(), fleet::HOST);
        contest.add(GRPC, &side.label, way);
    }
    if let Some(argv) = field.over_ssh(&ARGV) {
        contest.add(SSH, "", FirstByte::Here(argv));
    }
    contest.run(Plan::of(samples, EACH).paused(pause)).await?;
    heading(&format!("first byte of output, {samples} times"));
    contest.print();
    Ok(contest)
}

async fn first_byte(client: &Client, host: &str) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut watch = client.run(command(host, &ARGV)).await?;
    let (mut first, mut written) = (None, Vec::new());
    while let Some(update) = watch.next().await {
        for event in update?.events {
            if let Some(Event::Output(chunk)) = event.event {
                first.get_or_insert_with(|| started.elapsed());
                written.extend_from_slice(&chunk.data);
            }
        }
    }
    ensure!(written == WRITTEN, "{written:?} was written");
    first.context("no output came")
}
