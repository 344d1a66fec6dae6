//! What one command after the other costs, all that is put off included: CPU of each process.

use std::time::Duration;

use crate::{
    commands::run_true,
    field::Field,
    figures::{heading, wait},
    fleet,
    meter::{Each, Meter, SETTLED},
    relay,
};

/// CPU time for a command of each side, and that of the relay.
pub(crate) struct Costs {
    pub(crate) sides: Vec<Each>,
    pub(crate) relay: Each,
}

/// Runs `true` so many times over gRPC, first through the relay, then through each side. `pause` goes ahead of each.
pub(crate) async fn alone(field: &Field, samples: usize, pause: Duration) -> anyhow::Result<Costs> {
    let meter = Meter::start(&field.relay.server, &field.relay.agent);
    for _ in 0..samples {
        wait(pause).await;
        run_true(&field.relay.client, relay::HOST).await?;
    }
    tokio::time::sleep(SETTLED).await;
    let relay = meter.stop().each(samples);
    let mut sides = Vec::new();
    for side in &field.sides {
        let meter = side.fleet.meter();
        for _ in 0..samples {
            wait(pause).await;
            run_true(&side.fleet.client, fleet::HOST).await?;
        }
        tokio::time::sleep(SETTLED).await;
        sides.push(meter.stop().each(samples));
    }
    heading(&format!(
        "CPU us of true over gRPC, {samples} times, {} ms apart",
        pause.as_millis()
    ));
    println!("  relay: {relay}");
    for (side, each) in field.sides.iter().zip(&sides) {
        println!("  {}: {each}", side.name());
    }
    Ok(Costs { sides, relay })
}
