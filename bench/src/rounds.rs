//! Several ways to do one thing, measured in turn in small rounds, so that what disturbs one disturbs all. Ratios are
//! taken within each round.

use std::time::Duration;

use crate::{
    field::{RELAY, SSH},
    figures::{Series, wait},
};

/// No way begins while the one before may still be tidying up.
const BETWEEN: Duration = Duration::from_millis(20);

/// Something that can be done, and measured, again and again.
pub(crate) trait Way: Send {
    /// Does it once, checks what came of it, and says how it went: milliseconds, or how many a second.
    fn once(&mut self) -> impl Future<Output = anyhow::Result<f64>> + Send;
}

/// How often each way is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Samples of each way in each round.
    pub(crate) each: usize,
    /// Samples ahead of each round that do not count.
    pub(crate) warm_up: usize,
    /// Without work, ahead of each.
    pub(crate) pause: Duration,
}

impl Plan {
    /// At least so many samples of each way, in rounds of `each`.
    pub(crate) fn of(samples: usize, each: usize) -> Plan {
        Plan {
            rounds: samples.div_ceil(each).max(1),
            each,
            warm_up: 2,
            pause: Duration::ZERO,
        }
    }

    /// The same with time without work ahead of each sample.
    pub(crate) fn paused(self, pause: Duration) -> Plan {
        Plan { pause, ..self }
    }
}

/// Ways side by side. The first two are what the others are compared with.
pub(crate) struct Contest<W> {
    /// Unit of the figures.
    unit: &'static str,
    lanes: Vec<Lane<W>>,
}

struct Lane<W> {
    what: &'static str,
    /// The label of the side whose programs do it; empty for a reference.
    side: String,
    way: W,
    /// How often it may be done.
    left: usize,
    done: usize,
    series: Series,
}

impl<W: Way> Contest<W> {
    /// Begins with what is done here, and the same through the relay.
    pub(crate) fn new(unit: &'static str, (what, here): (&'static str, W), relay: W) -> Self {
        let mut contest = Self {
            unit,
            lanes: Vec::new(),
        };
        contest.add(what, "", here);
        contest.add(RELAY, "", relay);
        contest
    }

    /// Unit of the figures, as "ms".
    pub(crate) fn unit(&self) -> &'static str {
        self.unit
    }

    /// The two references, the one done here and the relay, with their names.
    pub(crate) fn yardsticks(&self) -> [(&'static str, &Series); 2] {
        [0, 1].map(|index| (self.lanes[index].what, &self.lanes[index].series))
    }

    /// One more, of the programs of a side or of nobody in particular.
    pub(crate) fn add(&mut self, what: &'static str, side: &str, way: W) {
        self.add_limited(what, side, way, usize::MAX);
    }

    /// One that may not be done more than so many times.
    pub(crate) fn add_limited(&mut self, what: &'static str, side: &str, way: W, most: usize) {
        self.lanes.push(Lane {
            what,
            side: side.to_owned(),
            way,
            left: most,
            done: 0,
            series: Series::default(),
        });
    }

    /// Measures. The order changes from round to round, so that nobody always comes after the same.
    pub(crate) async fn run(&mut self, plan: Plan) -> anyhow::Result<()> {
        let count = self.lanes.len();
        for round in 0..plan.rounds {
            for turn in 0..count {
                let turn = if round % 2 == 0 {
                    turn
                } else {
                    count - 1 - turn
                };
                wait(BETWEEN).await;
                self.lanes[(turn + round / 2) % count].round(plan).await?;
            }
        }
        Ok(())
    }

    /// The figures of one way.
    pub(crate) fn series(&self, what: &str, side: &str) -> Option<&Series> {
        self.find(what, side).map(|lane| &lane.series)
    }

    /// How often one way was done, warm-up included.
    pub(crate) fn done(&self, what: &str, side: &str) -> usize {
        self.find(what, side).map_or(0, |lane| lane.done)
    }

    /// One of the ways.
    pub(crate) fn way(&self, what: &str, side: &str) -> Option<&W> {
        self.find(what, side).map(|lane| &lane.way)
    }

    fn find(&self, what: &str, side: &str) -> Option<&Lane<W>> {
        let mut lanes = self.lanes.iter();
        lanes.find(|lane| lane.what == what && lane.side == side)
    }

    /// Prints a row for each: how it went, and its ratio to the first two, and to OpenSSH where that is measured.
    pub(crate) fn print(&self) {
        let [here, relay] = self.yardsticks();
        let ssh = self.series(SSH, "").map(|series| (SSH, series));
        for lane in &self.lanes {
            let ratios: String = [Some(here), Some(relay), ssh]
                .into_iter()
                .flatten()
                .map(|(name, series)| format!("  {:>6.2} x {name}", lane.series.ratio(series)))
                .collect();
            let name = match lane.side.as_str() {
                "" => lane.what.to_owned(),
                side => format!("{}, {side}", lane.what),
            };
            println!("{name:<38} {}{ratios}", lane.series.shown(self.unit));
        }
    }

    /// The ways, to be put away.
    pub(crate) fn into_ways(self) -> impl Iterator<Item = W> {
        self.lanes.into_iter().map(|lane| lane.way)
    }
}

impl<W: Way> Lane<W> {
    async fn round(&mut self, plan: Plan) -> anyhow::Result<()> {
        let calls = plan.warm_up + plan.each;
        if self.left < calls {
            return Ok(());
        }
        self.left -= calls;
        self.done += calls;
        let mut figures = Vec::with_capacity(plan.each);
        for call in 0..calls {
            wait(plan.pause).await;
            let figure = self.way.once().await?;
            if call >= plan.warm_up {
                figures.push(figure);
            }
        }
        self.series.add_round(figures);
        Ok(())
    }
}
