//! What the audit log costs: an entry on the way of a call, a row in the ledger, and to verify a log that was written
//! down.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_client::audit::{Head, Position, header, last_line, line};
use muster_control_plane::AuditCost;
use muster_proto::v1::{AuditHead, ExportAuditRequest, GetHostRequest, UnlockHostRequest};

use crate::{
    commands::run_true,
    figures::{Samples, heading, millis},
    fleet::{Fleet, HOST},
    process::Program,
    programs::Programs,
};

/// Commands whose entries the long log is made of.
const COMMANDS: usize = 200;

/// How often the program that verifies is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Measures calls that are recorded beside such that are not, and verifies a log of so many entries.
pub(crate) async fn run(
    fleet: &Fleet,
    programs: &Programs,
    entries: u64,
    samples: usize,
) -> anyhow::Result<()> {
    calls(fleet, samples).await?;
    ledger(fleet, samples).await?;
    for _ in 0..COMMANDS {
        run_true(&fleet.client, HOST).await?;
    }
    let real = export(fleet).await?;
    let path = fleet.directory().join("audit.jsonl");
    let (members, bytes) = lengthen(&real, entries, &path)?;
    heading(&format!("a log of {entries} entries, written down"));
    println!(
        "an entry {:.0} bytes, its line {:.0}, the file {:.0} MiB",
        members as f64 / entries as f64,
        bytes as f64 / entries as f64,
        bytes as f64 / f64::from(1 << 20),
    );
    verify(fleet, programs, entries, &path).await
}

/// A look that finds nothing, and a change that finds nothing, in turn: the second one is recorded.
async fn calls(fleet: &Fleet, samples: usize) -> anyhow::Result<()> {
    let mut hosts = fleet.client.hosts();
    let host = "nobody-1".to_owned();
    let (mut look, mut change) = (Samples::default(), Samples::default());
    for _ in 0..samples {
        let started = Instant::now();
        let found = hosts
            .get_host(GetHostRequest { host: host.clone() })
            .await
            .is_ok();
        look.add(started.elapsed());
        let started = Instant::now();
        let unlocked = hosts
            .unlock_host(UnlockHostRequest { host: host.clone() })
            .await
            .is_ok();
        change.add(started.elapsed());
        ensure!(!found && !unlocked, "there is a host {host}");
    }
    heading("a call that changes nothing");
    look.print("a look, which is not recorded", &look);
    change.print("a change, which is", &look);
    Ok(())
}

/// What a row costs in a ledger that has nothing else to do.
async fn ledger(fleet: &Fleet, samples: usize) -> anyhow::Result<()> {
    let directory = fleet.directory().join("ledger-of-its-own");
    let cost = AuditCost::measure(&directory, samples)
        .await
        .map_err(anyhow::Error::msg)?;
    heading("an entry");
    let micros = |time: Duration| millis(time) * 1e3;
    println!(
        "made and written as text                   {:>8.2} us",
        micros(cost.made)
    );
    println!(
        "numbered and chained                       {:>8.2} us",
        micros(cost.chained)
    );
    println!(
        "a transaction by itself, without an entry  {:>8.1} us",
        micros(cost.alone)
    );
    println!(
        "the same with one                          {:>8.1} us",
        micros(cost.with_entry)
    );
    println!(
        "an entry among a hundred, in all           {:>8.1} us",
        micros(cost.among_many)
    );
    println!(
        "bytes: text {:.0}, in the ledger {:.0}",
        cost.text_bytes, cost.ledger_bytes
    );
    Ok(())
}

/// The log as it is written down.
async fn export(fleet: &Fleet) -> anyhow::Result<String> {
    let request = ExportAuditRequest { after: 0 };
    let mut messages = fleet
        .client
        .audit()
        .export_audit(request)
        .await?
        .into_inner();
    let mut text = Vec::new();
    while let Some(message) = messages.message().await? {
        text.extend_from_slice(&message.lines);
    }
    Ok(String::from_utf8(text)?)
}

/// Writes a log of so many entries, each chained to the one before, which say what those of `real` say, over and over.
/// Returns the bytes of all entries, and of the file.
fn lengthen(real: &str, entries: u64, path: &Path) -> anyhow::Result<(u64, u64)> {
    // From behind the number up to the hash: `{"number":7,…,"hash":"…"}`.
    let said: Vec<&str> = real
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.strip_prefix("{\"number\":")?.split_once(',')?;
            rest.rsplit_once(",\"hash\":").map(|(said, _)| said)
        })
        .collect();
    ensure!(said.len() >= 2 * COMMANDS, "the log has too few entries");
    let mut file = BufWriter::new(File::create(path)?);
    let mut position = Position::EMPTY;
    let mut bytes = 0;
    writeln!(file, "{}", header("bench", position))?;
    for said in said.iter().cycle().take(usize::try_from(entries)?) {
        let entry = format!("{{\"number\":{},{said}}}", position.count + 1);
        position = position.with(&entry);
        bytes += entry.len() as u64;
        writeln!(file, "{}", line(&entry, &position.hash))?;
    }
    // Signed by nobody: to check one signature takes no time, and here no authority is named.
    let head = Head::read(AuditHead {
        statement: Head::statement("bench", "bench", position, 0),
        ..AuditHead::default()
    })?;
    writeln!(file, "{}", last_line(&head))?;
    file.flush()?;
    Ok((bytes, fs::metadata(path)?.len()))
}

/// Verifies the log as anybody does, by `muster audit verify`.
async fn verify(
    fleet: &Fleet,
    programs: &Programs,
    entries: u64,
    path: &Path,
) -> anyhow::Result<()> {
    let nowhere = fleet.directory().join("nowhere");
    let log = fleet.directory().join("verify.log");
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let started = Instant::now();
    let mut program = Program::start(
        &programs.muster,
        &["audit", "verify", &path.to_string_lossy()],
        &[("MUSTER_DATA_DIR", &text(&nowhere))],
        &log,
    )?;
    let (mut peak, mut cpu) = (0, Duration::ZERO);
    while !program.is_over() {
        peak = peak.max(program.peak().unwrap_or_default());
        cpu = cpu.max(program.cpu());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let took = started.elapsed();
    let said = fs::read_to_string(&log)?;
    program
        .finish()
        .with_context(|| format!("the log is not whole:\n{said}"))?;
    println!("{}", said.trim());
    println!(
        "verified in {:.2} s, {:.0} entries/s, CPU {:.2} s, at most {:.1} MiB of memory",
        took.as_secs_f64(),
        entries as f64 / took.as_secs_f64(),
        cpu.as_secs_f64(),
        peak as f64 / 1024.0,
    );
    Ok(())
}
