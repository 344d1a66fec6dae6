//! Output of one task to a client that watches.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use aws_lc_rs::digest;
use muster_client::Client;
use muster_proto::v1::job_event::Event;

use crate::{
    figures::{heading, median, print_rate},
    fleet::{Fleet, HOST, command},
    process, reference,
};

/// CPU seconds of each process for one GB.
#[derive(Debug, Default)]
struct Cost {
    control_plane: Vec<f64>,
    agent: Vec<f64>,
    client: Vec<f64>,
}

/// Rounds of a pipe and of the same through Muster, each verified: the length and a checksum in every
/// round, SHA-256 in one more that is not timed.
pub(crate) async fn run(fleet: &Fleet, size: u64, rounds: usize) -> anyhow::Result<()> {
    let size_text = size.to_string();
    let zeros = ["head", "-c", &size_text, "/dev/zero"];
    let script = format!("yes 'a line of text as a build writes it' | head -c {size}");
    let text = ["sh", "-c", &script];
    for (name, argv) in [("zeros", zeros.as_slice()), ("text", text.as_slice())] {
        let (mut pipe, mut remote, mut openssh) = (Vec::new(), Vec::new(), Vec::new());
        let mut cost = Cost::default();
        for _ in 0..rounds {
            let (bytes, checksum, time) =
                tokio::task::block_in_place(|| reference::read_pipe(argv))?;
            ensure!(bytes == size, "the pipe gave {bytes} bytes");
            pipe.push(rate(size, time));

            let before = cpu(fleet);
            let started = Instant::now();
            let mut hasher = crc32fast::Hasher::new();
            watch(&fleet.client, argv, size, |data| hasher.update(data)).await?;
            let time = started.elapsed();
            let after = cpu(fleet);
            ensure!(hasher.finalize() == checksum, "the output differs");
            remote.push(rate(size, time));
            let per_gb = |at: usize| {
                after[at].saturating_sub(before[at]).as_secs_f64() / (size as f64 / 1e9)
            };
            cost.control_plane.push(per_gb(0));
            cost.agent.push(per_gb(1));
            cost.client.push(per_gb(2));

            if let Some(ssh) = &fleet.ssh {
                let argv = ssh.argv(argv);
                let (bytes, sum, time) =
                    tokio::task::block_in_place(|| reference::read_pipe(&argv))?;
                ensure!(
                    (bytes, sum) == (size, checksum),
                    "the output over ssh differs"
                );
                openssh.push(rate(size, time));
            }
        }
        let mut hash = digest::Context::new(&digest::SHA256);
        watch(&fleet.client, argv, size, |data| hash.update(data)).await?;
        let expected = tokio::task::block_in_place(|| hash_of_pipe(argv))?;
        ensure!(
            hash.finish().as_ref() == expected.as_ref(),
            "the output differs"
        );

        heading(&format!(
            "{} MiB of {name} to a watcher, {rounds} times",
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
        println!(
            "CPU s/GB: control plane {:.2}, agent {:.2}, client {:.2}; control plane RSS now {} MiB",
            median(cost.control_plane),
            median(cost.agent),
            median(cost.client),
            fleet.control_plane.memory()?.0 >> 10,
        );
    }
    Ok(())
}

fn rate(size: u64, time: Duration) -> f64 {
    size as f64 / 1e6 / time.as_secs_f64()
}

fn cpu(fleet: &Fleet) -> [Duration; 3] {
    [
        fleet.control_plane.cpu(),
        fleet.agent.cpu(),
        process::own_cpu(),
    ]
}

fn hash_of_pipe(argv: &[&str]) -> anyhow::Result<digest::Digest> {
    let mut hash = digest::Context::new(&digest::SHA256);
    reference::each_piece(argv, |piece| hash.update(piece))?;
    Ok(hash.finish())
}

/// Runs a command and takes its standard output, which must be whole.
async fn watch(
    client: &Client,
    argv: &[&str],
    size: u64,
    mut take: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let mut watch = client.run(command(HOST, argv)).await?;
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
