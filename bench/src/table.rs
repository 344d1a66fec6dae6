//! All that is held against a target, in one run and one table: rows of Markdown, a column for the relay and one for each
//! side.

use std::time::Duration;

use crate::{
    agents, alone,
    commands::{self, CONFINED, GRPC, MCP, True, run_true},
    echo::{self, ATTACHED},
    field::{Field, RELAY, SSH},
    figures::millis,
    first_byte, fleet,
    programs::Programs,
    rate, remains,
    rounds::{Contest, Way},
    verdict, watchers,
};

/// Between commands that stand alone.
const APART: Duration = Duration::from_millis(20);

/// In flight at once.
const IN_FLIGHT: usize = 32;

/// Agents that are attached at once, and how many of them dial at once.
const AGENTS: (usize, usize) = (1_000, 200);

/// Commands whose remains are looked at.
const COMMANDS: usize = 8_000;

/// Watchers of one job, and how many of them never read.
const WATCHERS: (usize, usize) = (300, 100);

/// Until an agent has done what follows a task.
const AT_REST: Duration = Duration::from_secs(5);

/// A cell without a figure.
const NOTHING: &str = "-";

/// Measures all of it. A run that is void is broken off, or said to be so in the end.
pub(crate) async fn run(
    programs: &[(String, Programs)],
    ssh: Option<&str>,
    even_if_void: bool,
) -> anyhow::Result<()> {
    let field = Field::start(programs, ssh).await?;
    let mut table = Table::new(&field);
    let memory = memory_of_agents(&field).await?;
    let latency = commands::latency(&field, 500, Duration::ZERO).await?;
    let verdict = verdict::judge(&latency);
    if !even_if_void {
        verdict?;
    }
    table.add_road(&field, &latency).await?;
    table.add_costs(&field).await?;
    drop(field);
    table.add_fleet(programs).await?;
    table.add("agent, RSS", NOTHING.to_owned(), memory);
    table.add_remains(programs).await?;
    table.print();
    Ok(verdict?)
}

/// Resident memory of each agent, after a few commands and at rest.
async fn memory_of_agents(field: &Field) -> anyhow::Result<Vec<String>> {
    for side in &field.sides {
        for _ in 0..20 {
            run_true(&side.fleet.client, fleet::HOST).await?;
        }
    }
    tokio::time::sleep(AT_REST).await;
    let mut memory = Vec::new();
    for side in &field.sides {
        let (rss, _) = side.fleet.agent.memory()?;
        memory.push(format!("{:.1} MiB", rss as f64 / 1024.0));
    }
    Ok(memory)
}

/// The table as it grows.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(field: &Field) -> Table {
        let mut table = Table { rows: Vec::new() };
        let names = field.sides.iter().map(|side| side.name().to_owned());
        table.add("", RELAY.to_owned(), names.collect());
        table
    }

    fn add(&mut self, what: &str, relay: String, sides: Vec<String>) {
        let mut row = vec![what.to_owned(), relay];
        row.extend(sides);
        self.rows.push(row);
    }

    /// A row of what one way to do a thing takes, beside all that it is compared with.
    fn compare<W: Way>(&mut self, what: &str, field: &Field, contest: &Contest<W>, way: &str) {
        let unit = contest.unit();
        let [(name, here), (_, relay)] = contest.yardsticks();
        let its_own = format!(
            "{:.2} {unit}, {:.2} x {name}",
            relay.median(),
            relay.ratio(here)
        );
        let beside = |label: &str| {
            let series = contest.series(way, label)?;
            let mut text = format!(
                "{:.2} x {RELAY}, {:.2} x {name}",
                series.ratio(relay),
                series.ratio(here)
            );
            if let Some(ssh) = contest.series(SSH, "") {
                text += &format!(", {:.2} x {SSH}", series.ratio(ssh));
            }
            Some(format!("{text} ({:.2} {unit})", series.median()))
        };
        let sides = field.sides.iter().map(|side| beside(&side.label));
        let sides = sides.map(|text| text.unwrap_or_else(|| NOTHING.to_owned()));
        self.add(what, its_own, sides.collect());
    }

    /// Commands, output and input.
    async fn add_road(&mut self, field: &Field, latency: &Contest<True>) -> anyhow::Result<()> {
        self.compare("a command alone, gRPC", field, latency, GRPC);
        self.compare("the same over MCP HTTP", field, latency, MCP);
        self.compare("by an ai in `edit`", field, latency, CONFINED);
        let rates = rate::rate(field, 4_000, IN_FLIGHT).await?;
        let what = format!("{IN_FLIGHT} in flight");
        self.compare(&what, field, &rates.contest, GRPC);
        let first_byte = first_byte::run(field, 300, Duration::ZERO).await?;
        self.compare("first byte", field, &first_byte, GRPC);
        let echo = echo::run(field, 1_000).await?;
        self.compare("echo", field, &echo, ATTACHED);
        echo::close(echo).await?;
        let costs = rates.costs.iter().map(ToString::to_string).collect();
        let what = format!("CPU us, one of {IN_FLIGHT} in flight");
        self.add(&what, rates.relay.to_string(), costs);
        Ok(())
    }

    /// CPU of commands that stand alone.
    async fn add_costs(&mut self, field: &Field) -> anyhow::Result<()> {
        for (pause, what) in [
            (Duration::ZERO, "CPU us, one after the other"),
            (APART, "CPU us, alone, 20 ms apart"),
        ] {
            let costs = alone::alone(field, 300, pause).await?;
            let sides = costs.sides.iter().map(ToString::to_string).collect();
            self.add(what, costs.relay.to_string(), sides);
        }
        Ok(())
    }

    /// Many agents.
    async fn add_fleet(&mut self, programs: &[(String, Programs)]) -> anyhow::Result<()> {
        let (count, at_once) = AGENTS;
        let (mut idle, mut tasks) = (Vec::new(), Vec::new());
        for (_, programs) in programs {
            let figures = agents::measure(programs, count, at_once).await?;
            idle.push(format!("{:.1} ms/s", millis(figures.idle)));
            tasks.push(format!("{:.0} us", millis(figures.task) * 1e3));
        }
        self.add(&format!("{count} idle agents"), NOTHING.to_owned(), idle);
        let what = format!("no-op on {count} agents, CPU a task");
        self.add(&what, NOTHING.to_owned(), tasks);
        Ok(())
    }

    /// What stays on disk, and in memory.
    async fn add_remains(&mut self, programs: &[(String, Programs)]) -> anyhow::Result<()> {
        let (count, silent) = WATCHERS;
        let (mut left, mut memory) = (Vec::new(), Vec::new());
        for (_, programs) in programs {
            let remains = remains::measure(programs, COMMANDS).await?;
            left.push(format!(
                "{:.0} / {:.0}",
                remains.control_plane.sum(),
                remains.agent.sum()
            ));
            memory.push(
                watchers::measure(programs, count, silent)
                    .await?
                    .to_string(),
            );
        }
        let what = "bytes that a finished `true` leaves: control plane / agent";
        self.add(what, NOTHING.to_owned(), left);
        let what = format!("{count} watchers, {silent} never read: control plane");
        self.add(&what, NOTHING.to_owned(), memory);
        Ok(())
    }

    fn print(&self) {
        println!();
        for (number, row) in self.rows.iter().enumerate() {
            println!("| {} |", row.join(" | "));
            if number == 0 {
                println!("|{}", " --- |".repeat(row.len()));
            }
        }
    }
}
