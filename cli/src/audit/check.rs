//! `muster audit verify`: reads a log that was written down, and says what is wrong with it.

use std::{
    fs,
    io::BufReader,
    path::{Path, PathBuf},
};

use chrono::{DateTime, SecondsFormat};
use muster_client::{
    audit::{Finding, Head, Report, verify},
    identity::load_authorities,
};
use muster_proto::v1::Reason;
use serde_json::{Value, json};

use crate::{failure::Failure, file, operator::Operator, screen};

#[derive(clap::Args, Debug)]
pub(crate) struct Verify {
    /// The log, as `muster audit export` writes it; - reads standard input
    file: PathBuf,
    /// File with heads, one a line, that the log must agree with; may be repeated
    #[arg(long = "head", value_name = "FILE")]
    heads: Vec<PathBuf>,
}

impl Verify {
    pub(super) async fn run(self, operator: &Operator) -> Result<u8, Failure> {
        let json = operator.json;
        // Named or not: without the authority a log can be whole and yet be anybody's.
        let authority = operator.authority();
        let authorities = match (authority.exists(), operator.names_authority()) {
            (false, false) => Vec::new(),
            _ => load_authorities(&authority).map_err(|error| Failure::usage(error.to_string()))?,
        };
        let read = tokio::task::spawn_blocking(move || {
            let mut heads = Vec::new();
            for path in &self.heads {
                heads.extend(read_heads(path)?);
            }
            let input = BufReader::with_capacity(1 << 20, file::open(&self.file)?);
            verify(input, &heads, &authorities).map_err(|error| Failure::file(&self.file, &error))
        });
        let report = read
            .await
            .map_err(|error| Failure::internal(error.to_string()))??;
        match json {
            true => screen::print_json(&document(&report))?,
            false => screen::print(&words(&report))?,
        }
        Ok(report.findings.first().map_or(0, code))
    }
}

fn read_heads(path: &Path) -> Result<Vec<Head>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            Head::from_line(line)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
        })
        .collect()
}

/// The exit code of the worst finding. Scripts rely on these.
fn code(finding: &Finding) -> u8 {
    match finding {
        Finding::Broken { .. } => 10,
        Finding::Cut { .. } => 11,
        Finding::Rewritten { .. } => 12,
        Finding::Forged { .. } => 13,
        Finding::LostByRestore { .. } => 14,
    }
}

fn at(time: Option<i64>) -> String {
    time.and_then(DateTime::from_timestamp_millis)
        .map_or_else(String::new, |time| {
            time.to_rfc3339_opts(SecondsFormat::Millis, true)
        })
}

fn say(finding: &Finding) -> String {
    match finding {
        Finding::Broken { number, time, what } => {
            let time = match at(*time) {
                time if time.is_empty() => time,
                time => format!(" of {time}"),
            };
            format!("broken at entry {number}{time}: {what}")
        }
        Finding::Rewritten {
            count,
            agreed,
            time,
        } => format!(
            "rewritten between entry {} and entry {count}: the head of {} says otherwise",
            agreed + 1,
            at(Some(*time))
        ),
        Finding::Cut {
            entries,
            count: Some(count),
        } => format!(
            "cut: {entries} entries are there, and a head was signed for {count}; the last {} are missing",
            count.saturating_sub(*entries)
        ),
        Finding::Cut {
            entries,
            count: None,
        } => format!(
            "cut: behind entry {entries} there is no head, so nothing says that the log ends there"
        ),
        Finding::Forged { count, cause } => {
            format!("the head of {count} entries does not count: {cause}")
        }
        Finding::LostByRestore { number, count } => format!(
            "lost by a restore: a head was signed for {count} entries of the generation that ended with the restore \
             in entry {number}"
        ),
    }
}

fn words(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&format!(
            "{} [{}]\n",
            screen::clean(&say(finding)),
            Reason::AuditBroken.name()
        ));
    }
    let entries = report.position.count.saturating_sub(report.first - 1);
    let verdict = match report.findings.is_empty() {
        true => "whole",
        false => "holds together so far",
    };
    text.push_str(&format!(
        "{verdict}: {entries} entries, {} to {}, {}; {} heads agree",
        report.first,
        report.position.count,
        at(report.time),
        report.agreed
    ));
    if report.before > 0 {
        text.push_str(&format!(", {} are of entries before these", report.before));
    }
    if !report.signatures {
        text.push_str("; signatures were not checked: name the authority with --ca FILE");
    }
    text.push('\n');
    text
}

fn document(report: &Report) -> Value {
    let finding = |finding: &Finding| {
        let (kind, number) = match finding {
            Finding::Broken { number, .. } => ("broken", *number),
            Finding::Rewritten { count, .. } => ("rewritten", *count),
            Finding::Cut { entries, .. } => ("cut", entries + 1),
            Finding::Forged { count, .. } => ("forged", *count),
            Finding::LostByRestore { number, .. } => ("lost_by_restore", *number),
        };
        json!({"kind": kind, "number": number, "message": say(finding), "code": code(finding)})
    };
    json!({
        "whole": report.findings.is_empty(),
        "control_plane": report.control_plane,
        "first": report.first,
        "last": report.position.count,
        "hash": report.position.hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "time": at(report.time),
        "heads_agreed": report.agreed,
        "heads_before": report.before,
        "signatures_checked": report.signatures,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}
