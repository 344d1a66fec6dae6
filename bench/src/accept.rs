//! Jobs accepted per second: told to the caller once a power cut cannot take them away.

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use muster_client::enrollment;
use muster_proto::v1::JoinKind;
use tokio::task::JoinSet;

use crate::{
    figures::{heading, print_rate},
    fleet::{Fleet, command, join_string},
};

const AWAY: &str = "away-1";

/// Creates jobs for a host that has joined and never attaches.
pub(crate) async fn run(fleet: &Fleet, jobs: usize, in_flight: usize) -> anyhow::Result<()> {
    let join = join_string(&fleet.client, JoinKind::Host, AWAY, 1).await?;
    enrollment::join(&fleet.directory().join(AWAY), &join, "").await?;

    let syncs = tokio::task::block_in_place(|| syncs_per_second(fleet))?;
    let cpu = fleet.control_plane.cpu();
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let (client, next) = (fleet.client.clone(), next.clone());
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < jobs {
                client.create(command(AWAY, &["true"])).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker panicked")??;
    }
    let rate = jobs as f64 / started.elapsed().as_secs_f64();
    let cpu = fleet.control_plane.cpu_since(cpu).as_secs_f64() / jobs as f64;
    heading(&format!("{jobs} jobs accepted, {in_flight} in flight"));
    print_rate("4 KiB written and synced, one by one", syncs, "/s", syncs);
    print_rate("CreateJob, durable when answered", rate, "/s", syncs);
    println!("CPU of the control plane: {:.0} us per job", cpu * 1e6);
    Ok(())
}

fn syncs_per_second(fleet: &Fleet) -> anyhow::Result<f64> {
    const COUNT: u32 = 200;
    let mut file = File::create(fleet.directory().join("sync"))?;
    let started = Instant::now();
    for _ in 0..COUNT {
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
    }
    Ok(f64::from(COUNT) / started.elapsed().as_secs_f64())
}
