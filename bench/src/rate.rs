//! `true` on a host, many in flight: how many a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use muster_client::Client;
use tokio::task::JoinSet;

use crate::{
    commands::{GRPC, SPAWN, run_true},
    field::{Field, RELAY, SSH},
    figures::heading,
    fleet,
    meter::{Each, Meter, SETTLED},
    process::own_cpu,
    reference, relay,
    rounds::{Contest, Plan, Way},
};

/// Rounds of which a run consists.
const ROUNDS: usize = 8;

/// Rates and costs, as measured.
pub(crate) struct Rates {
    pub(crate) contest: Contest<InFlight>,
    /// CPU time for one of many, of each side.
    pub(crate) costs: Vec<Each>,
    /// That of the relay.
    pub(crate) relay: Each,
}

/// Many at once.
pub(crate) struct InFlight {
    by: By,
    count: usize,
    at_once: usize,
    /// CPU time of this process.
    client: Duration,
}

enum By {
    /// Programs here.
    Here(Vec<String>),
    /// Through a control plane, or the relay.
    Grpc(Client, &'static str),
}

impl Way for InFlight {
    async fn once(&mut self) -> anyhow::Result<f64> {
        let cpu = own_cpu();
        let started = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers: JoinSet<anyhow::Result<()>> = JoinSet::new();
        for _ in 0..self.at_once {
            let (next, count) = (next.clone(), self.count);
            let is_left = move || next.fetch_add(1, Ordering::Relaxed) < count;
            match &self.by {
                By::Here(argv) => {
                    let argv = argv.clone();
                    workers.spawn_blocking(move || {
                        while is_left() {
                            reference::spawn_and_wait(&argv)?;
                        }
                        Ok(())
                    });
                }
                By::Grpc(client, host) => {
                    let (client, host) = (client.clone(), *host);
                    workers.spawn(async move {
                        while is_left() {
                            run_true(&client, host).await?;
                        }
                        Ok(())
                    });
                }
            }
        }
        while let Some(worker) = workers.join_next().await {
            worker.context("a worker panicked")??;
        }
        let rate = self.count as f64 / started.elapsed().as_secs_f64();
        self.client += own_cpu().saturating_sub(cpu);
        Ok(rate)
    }
}

/// Measures and prints.
pub(crate) async fn rate(field: &Field, samples: usize, at_once: usize) -> anyhow::Result<Rates> {
    let count = samples.div_ceil(ROUNDS);
    let way = |by, count| InFlight {
        by,
        count,
        at_once,
        client: Duration::ZERO,
    };
    let here = way(By::Here(vec!["true".to_owned()]), count);
    let relay = By::Grpc(field.relay.client.clone(), relay::HOST);
    let mut contest = Contest::new("/s", (SPAWN, here), way(relay, count));
    for side in &field.sides {
        let by = By::Grpc(side.fleet.client.clone(), fleet::HOST);
        contest.add(GRPC, &side.label, way(by, count));
    }
    if let Some(argv) = field.over_ssh(&["true"]) {
        // A session for each; sshd allows ten on a connection unless it is told otherwise.
        contest.add(SSH, "", way(By::Here(argv), count.div_ceil(4)));
    }
    let meters: Vec<_> = field.sides.iter().map(|side| side.fleet.meter()).collect();
    let relay = Meter::start(&field.relay.server, &field.relay.agent);
    let plan = Plan {
        rounds: ROUNDS,
        each: 1,
        warm_up: 0,
        pause: Duration::ZERO,
    };
    contest.run(plan).await?;
    tokio::time::sleep(SETTLED).await;

    let calls = count * ROUNDS;
    let costs: Vec<_> = meters.into_iter().map(|it| it.stop().each(calls)).collect();
    let relay = relay.stop().each(calls);
    heading(&format!("true with {at_once} in flight, {calls} times"));
    contest.print();
    let client = |what, side: &str| {
        let used = contest
            .way(what, side)
            .map_or(Duration::ZERO, |it| it.client);
        used.as_micros() / calls.max(1) as u128
    };
    println!("CPU us each:");
    println!("  relay: {relay}, client {}", client(RELAY, ""));
    for (side, each) in field.sides.iter().zip(&costs) {
        println!(
            "  {}: {each}, client {}; the processes themselves {:.0}",
            side.name(),
            client(GRPC, &side.label),
            each.programs()
        );
    }
    Ok(Rates {
        contest,
        costs,
        relay,
    })
}
