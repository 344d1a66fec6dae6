//! Output of tasks to a client that watches.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::digest;
use muster_client::Client;
use muster_proto::v1::job_event::Event;
use tokio::task::JoinSet;

use crate::{
    commands::GRPC,
    field::{Field, RELAY, SSH},
    figures::heading,
    first_byte::PIPE,
    fleet::{self, command},
    meter::Meter,
    process::own_cpu,
    reference, relay,
    rounds::{Contest, Plan, Way},
};

/// What came of one task: how many bytes, and their checksum.
type Came = (u64, u32);

/// Ways to bring output here.
#[derive(Clone)]
enum By {
    /// Through a pipe of a program here.
    Pipe,
    /// Through a control plane, or the relay.
    Grpc(Client, &'static str),
}

/// Output of so many programs at once.
struct Flow {
    by: By,
    argv: Vec<String>,
    tasks: usize,
    expected: Came,
    /// CPU time of this process.
    client: Duration,
}

impl Way for Flow {
    /// MB in a second, each task's bytes and checksum verified.
    async fn once(&mut self) -> anyhow::Result<f64> {
        let cpu = own_cpu();
        let started = Instant::now();
        let mut readers = JoinSet::new();
        let size = self.expected.0;
        for _ in 0..self.tasks {
            let argv = self.argv.clone();
            match self.by.clone() {
                By::Pipe => readers.spawn_blocking(move || reference::read_pipe(&argv)),
                By::Grpc(client, host) => readers.spawn(async move {
                    let mut hasher = crc32fast::Hasher::new();
                    watch(&client, host, &argv, size, |data| hasher.update(data)).await?;
                    Ok((size, hasher.finalize()))
                }),
            };
        }
        while let Some(reader) = readers.join_next().await {
            let came = reader.context("a reader panicked")??;
            ensure!(came == self.expected, "the output differs");
        }
        let bytes = size * self.tasks as u64;
        let rate = bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
        self.client += own_cpu().saturating_sub(cpu);
        Ok(rate)
    }
}

/// Rounds of `size` bytes in all from each number of tasks at once.
pub(crate) async fn run(
    field: &Field,
    size: u64,
    rounds: usize,
    tasks: &[usize],
) -> anyhow::Result<()> {
    for tasks in tasks.iter().copied().filter(|tasks| *tasks > 0) {
        let each = size / tasks as u64;
        let script = format!("yes 'a line of text as a build writes it' | head -c {each}");
        let zeros = ["head", "-c", &each.to_string(), "/dev/zero"].map(str::to_owned);
        let text = ["sh", "-c", &script].map(str::to_owned);
        for (name, argv) in [("zeros", zeros.as_slice()), ("text", text.as_slice())] {
            let expected = tokio::task::block_in_place(|| reference::read_pipe(argv))?;
            ensure!(expected.0 == each, "the pipe gave {} bytes", expected.0);
            measure(field, name, argv, expected, (tasks, rounds)).await?;
        }
    }
    Ok(())
}

/// Rounds of pipes and of the same through Muster, each verified: the length and a checksum of every task in every
/// round, SHA-256 in one more that is not timed.
async fn measure(
    field: &Field,
    name: &str,
    argv: &[String],
    expected: Came,
    (tasks, rounds): (usize, usize),
) -> anyhow::Result<()> {
    let flow = |by, argv: &[String]| Flow {
        by,
        argv: argv.to_vec(),
        tasks,
        expected,
        client: Duration::ZERO,
    };
    let relay = By::Grpc(field.relay.client.clone(), relay::HOST);
    let (here, relay) = (flow(By::Pipe, argv), flow(relay, argv));
    let mut contest = Contest::new("MB/s", (PIPE, here), relay);
    for side in &field.sides {
        let by = By::Grpc(side.fleet.client.clone(), fleet::HOST);
        contest.add(GRPC, &side.label, flow(by, argv));
    }
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    if let Some(over_ssh) = field.over_ssh(&words) {
        contest.add(SSH, "", flow(By::Pipe, &over_ssh));
    }
    let meters: Vec<_> = field.sides.iter().map(|side| side.fleet.meter()).collect();
    let relay = Meter::start(&field.relay.server, &field.relay.agent);
    let plan = Plan {
        rounds,
        each: 1,
        warm_up: 0,
        pause: Duration::ZERO,
    };
    contest.run(plan).await?;
    let size = expected.0 * tasks as u64;
    heading(&format!(
        "{} MiB of {name} to a watcher from {tasks} at once, {rounds} times",
        size >> 20
    ));
    contest.print();
    let megabytes = size as usize / 1_000_000 * rounds;
    let client = |what, side: &str| {
        let used = contest
            .way(what, side)
            .map_or(Duration::ZERO, |it| it.client);
        used.as_micros() / megabytes.max(1) as u128
    };
    println!("CPU us each MB, which are ms each GB:");
    println!(
        "  relay: {}, client {}",
        relay.stop().each(megabytes),
        client(RELAY, "")
    );
    for (side, meter) in field.sides.iter().zip(meters) {
        println!(
            "  {}: {}, client {}; RSS now: control plane {} MiB, agent {} MiB",
            side.name(),
            meter.stop().each(megabytes),
            client(GRPC, &side.label),
            side.fleet.control_plane.memory()?.0 >> 10,
            side.fleet.agent.memory()?.0 >> 10,
        );
    }
    for side in &field.sides {
        check_hash(&side.fleet.client, argv, expected.0).await?;
    }
    Ok(())
}

async fn check_hash(client: &Client, argv: &[String], size: u64) -> anyhow::Result<()> {
    let mut hash = digest::Context::new(&digest::SHA256);
    watch(client, fleet::HOST, argv, size, |data| hash.update(data)).await?;
    let expected = tokio::task::block_in_place(|| hash_of_pipe(argv))?;
    ensure!(
        hash.finish().as_ref() == expected.as_ref(),
        "the output differs"
    );
    Ok(())
}

fn hash_of_pipe(argv: &[String]) -> anyhow::Result<digest::Digest> {
    let mut hash = digest::Context::new(&digest::SHA256);
    reference::each_piece(argv, |piece| hash.update(piece))?;
    Ok(hash.finish())
}

/// Runs a command and takes its standard output, which must be whole.
async fn watch(
    client: &Client,
    host: &str,
    argv: &[String],
    size: u64,
    mut take: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut watch = client.run(command(host, &argv)).await?;
    let mut bytes = 0;
    while let Some(update) = watch.next().await {
        for event in update?.events {
            match event.event {
                Some(Event::Output(chunk)) => {
                    ensure!(chunk.offset == bytes as i64, "bytes are missing");
                    bytes += chunk.data.len() as u64;
                    take(&chunk.data);
                }
                Some(Event::Gap(gap)) => bail!("{} bytes were dropped: {}", gap.length, gap.cause),
                Some(Event::Job(_) | Event::Task(_)) | None => {}
            }
        }
    }
    ensure!(bytes == size, "{bytes} bytes came");
    Ok(())
}
