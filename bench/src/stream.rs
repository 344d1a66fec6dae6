//! Output of tasks to a client that watches.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::digest;
use muster_client::Client;
use muster_proto::v1::job_event::Event;
use tokio::task::JoinSet;

use crate::{
    figures::{heading, median, print_rate},
    fleet::{Fleet, HOST, command},
    meter::{Meter, Usage},
    reference,
};

/// What came of one task: how many bytes, and their checksum.
type Came = (u64, u32);

/// Rounds of `size` bytes in all from each number of tasks at once.
pub(crate) async fn run(
    fleet: &Fleet,
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
            measure(fleet, name, argv, each, tasks, rounds).await?;
        }
    }
    Ok(())
}

/// Rounds of pipes and of the same through Muster, each verified: the length and a checksum of every task in every
/// round, SHA-256 in one more that is not timed.
async fn measure(
    fleet: &Fleet,
    name: &str,
    argv: &[String],
    each: u64,
    tasks: usize,
    rounds: usize,
) -> anyhow::Result<()> {
    let size = each * tasks as u64;
    let (mut pipe, mut remote, mut openssh) = (Vec::new(), Vec::new(), Vec::new());
    let mut usage = Usage::default();
    let expected = tokio::task::block_in_place(|| reference::read_pipe(argv))?;
    ensure!(expected.0 == each, "the pipe gave {} bytes", expected.0);
    for _ in 0..rounds {
        pipe.push(rate(size, pipes(argv, tasks, expected).await?));

        let meter = Meter::start(fleet);
        let started = Instant::now();
        let mut watching = JoinSet::new();
        for _ in 0..tasks {
            let (client, argv) = (fleet.client.clone(), argv.to_vec());
            watching.spawn(async move {
                let mut hasher = crc32fast::Hasher::new();
                watch(&client, &argv, each, |data| hasher.update(data)).await?;
                Ok((each, hasher.finalize()))
            });
        }
        all(watching, expected).await?;
        remote.push(rate(size, started.elapsed()));
        usage = usage.and(meter.stop());

        if let Some(ssh) = &fleet.ssh {
            let time = pipes(&ssh.argv(argv), tasks, expected).await?;
            openssh.push(rate(size, time));
        }
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    watch(&fleet.client, argv, each, |data| hash.update(data)).await?;
    let expected = tokio::task::block_in_place(|| hash_of_pipe(argv))?;
    ensure!(
        hash.finish().as_ref() == expected.as_ref(),
        "the output differs"
    );

    heading(&format!(
        "{} MiB of {name} to a watcher from {tasks} at once, {rounds} times",
        size >> 20
    ));
    let limit = median(pipe);
    print_rate("local pipe", limit, "MB/s", limit);
    let remote = median(remote);
    print_rate("gRPC, RunJob", remote, "MB/s", limit);
    if !openssh.is_empty() {
        let openssh = median(openssh);
        print_rate("ssh over an open connection", openssh, "MB/s", limit);
        println!("gRPC has {:.2} x of what ssh has", remote / openssh);
    }
    let per_gb = |time: Duration| time.as_secs_f64() / (size as f64 * rounds as f64 / 1e9);
    println!(
        "CPU s/GB: control plane {:.2}, agent {:.2}, supervisors {:.2}, client {:.2}; RSS now: control plane {} MiB, agent {} MiB",
        per_gb(usage.control_plane),
        per_gb(usage.agent),
        per_gb(usage.supervisors),
        per_gb(usage.client),
        fleet.control_plane.memory()?.0 >> 10,
        fleet.agent.memory()?.0 >> 10,
    );
    Ok(())
}

fn rate(size: u64, time: Duration) -> f64 {
    size as f64 / 1e6 / time.as_secs_f64()
}

/// How long it takes to read as many pipes at once.
async fn pipes(
    argv: &[String],
    count: usize,
    expected: (u64, u32, Duration),
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut reading = JoinSet::new();
    for _ in 0..count {
        let argv = argv.to_vec();
        reading.spawn_blocking(move || {
            let (bytes, checksum, _) = reference::read_pipe(&argv)?;
            Ok((bytes, checksum))
        });
    }
    all(reading, expected).await?;
    Ok(started.elapsed())
}

/// Waits for all, each of which must have brought the same.
async fn all(
    mut readers: JoinSet<anyhow::Result<Came>>,
    (bytes, checksum, _): (u64, u32, Duration),
) -> anyhow::Result<()> {
    while let Some(reader) = readers.join_next().await {
        let came = reader.context("a reader panicked")??;
        ensure!(came == (bytes, checksum), "the output differs");
    }
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
    argv: &[String],
    size: u64,
    mut take: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut watch = client.run(command(HOST, &argv)).await?;
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
