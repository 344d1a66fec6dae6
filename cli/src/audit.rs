//! `muster audit …`: who did what, and the proof that nobody changed it since.

mod check;

use std::{
    fs::{self, File},
    io::{self, BufReader, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use muster_client::audit::{Head, line};
use muster_proto::v1::{
    AuditEntry, ExportAuditRequest, ExportAuditResponse, GetAuditHeadRequest, ListAuditRequest,
};
use serde_json::Value;
use tonic::Streaming;

use crate::{
    failure::Failure,
    operator::Operator,
    screen::{self, Rows, say},
    time,
};

/// Entries in one answer.
const PAGE: i32 = 1000;

/// What the last line of an export begins with.
const LAST_LINE: &[u8] = b"{\"head\":";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum AuditCommand {
    /// List entries, newest first
    #[command(after_help = "Examples:
  muster audit list --since 1h
  muster audit list --principal ai/claude --host web-1
  muster audit list --verdict deny --json")]
    List(List),
    /// Write the log down, with a signed head at its end
    #[command(after_help = "Examples:
  muster audit export --output audit.jsonl
  muster audit export --after 120000 --output audit-2.jsonl")]
    Export {
        /// Write to this file instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Only what follows this entry
        #[arg(long, default_value_t = 0, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
        after: i64,
    },
    /// Verify a log that was written down; needs no control plane
    #[command(after_help = "Examples:
  muster audit verify audit.jsonl
  muster audit verify audit.jsonl --head web-1.heads --head web-2.heads --ca ca.pem

A head is where the log stood at some minute. Hosts keep the last 100 that they were given, in audit-heads.jsonl of \
their agent's directory: `muster agent heads` prints them. Whoever rewrites the log cannot rewrite those.

Exit codes: 0 the log is whole; 10 the chain is broken; 11 it was cut at its end; 12 it was rewritten: a head says \
otherwise; 13 a head's signature does not count; 14 entries were lost by a restore, as the log says itself.")]
    Verify(check::Verify),
    /// Print where the log stands now, signed: a line for `verify --head`
    Head,
    /// Print the heads that an agent keeps, oldest first: lines for `verify --head`
    Heads {
        /// The agent's directory
        #[arg(long, value_name = "DIRECTORY")]
        agent_dir: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
pub(crate) struct List {
    /// Keep what this principal did, as operator/ada
    #[arg(long, default_value = "", hide_default_value = true)]
    principal: String,
    /// Keep this method, as muster.v1.JobService/RunJob or task.end
    #[arg(long, default_value = "", hide_default_value = true)]
    method: String,
    /// Keep what is about this host: its name, or the id of one that is gone
    #[arg(long, default_value = "", hide_default_value = true)]
    host: String,
    /// Keep what was decided so
    #[arg(long, value_parser = ["allow", "deny", "needs-approval", "needs-confirmation"])]
    verdict: Option<String>,
    /// Keep entries that are not older than this
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Keep entries that are older than this
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    until: Option<Duration>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

pub(crate) async fn run(command: AuditCommand, operator: &Operator) -> Result<u8, Failure> {
    match command {
        AuditCommand::List(list) => list.run(operator).await?,
        AuditCommand::Export { output, after } => export(operator, output, after).await?,
        AuditCommand::Verify(verify) => return verify.run(operator).await,
        AuditCommand::Head => head(operator).await?,
        AuditCommand::Heads { agent_dir } => print_heads(&agent_dir)?,
    }
    Ok(0)
}

impl List {
    async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let mut client = operator.connect().await?.audit();
        let ago = |age: Option<Duration>| age.map(|age| (SystemTime::now() - age).into());
        let mut request = ListAuditRequest {
            time_from: ago(self.since),
            time_to: ago(self.until),
            principal: self.principal,
            method: self.method,
            host: self.host,
            verdict: self.verdict.unwrap_or_default(),
            ..ListAuditRequest::default()
        };
        let mut left = self.limit as usize;
        let mut rows = Rows::new(&["NUMBER", "TIME", "PRINCIPAL", "METHOD", "VERDICT", "ABOUT"]);
        loop {
            request.page_size = i32::try_from(left).unwrap_or(PAGE).min(PAGE);
            let page = client.list_audit(request.clone()).await?.into_inner();
            for entry in page.entries.iter().take(left) {
                match operator.json {
                    true => screen::print(&format!("{}\n", as_line(entry)))?,
                    false => rows.add(cells(entry)),
                }
            }
            left -= page.entries.len().min(left);
            request.page_token = page.next_page_token;
            if left == 0 || request.page_token.is_empty() {
                break;
            }
        }
        if !operator.json {
            screen::print(&rows.render())?;
        }
        Ok(())
    }
}

fn as_line(entry: &AuditEntry) -> String {
    let hash = entry.hash.as_ref().try_into().unwrap_or([0; 32]);
    line(&entry.entry, &hash)
}

fn cells(entry: &AuditEntry) -> [String; 6] {
    let object: Value = serde_json::from_str(&entry.entry).unwrap_or_default();
    let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let via = text("via");
    let principal = match via.is_empty() {
        true => text("principal"),
        false => format!("{} via {via}", text("principal")),
    };
    let mut verdict = text("verdict");
    for more in [
        text("reason"),
        object["repeated"]
            .as_u64()
            .map_or_else(String::new, |n| format!("× {n}")),
    ] {
        if !more.is_empty() {
            verdict.push(' ');
            verdict.push_str(&more);
        }
    }
    let mut about: Vec<String> = Vec::new();
    if let Some(effect) = object["effect"].as_object() {
        about.extend(effect.iter().map(|(name, value)| {
            let value = value.as_str().unwrap_or_default();
            format!("{name}={value}")
        }));
    }
    if let Some(hosts) = object["hosts"].as_array() {
        about.extend(
            hosts
                .iter()
                .filter_map(|host| Some(host.as_str()?.to_owned())),
        );
    }
    if let Some(hosts) = object["host_count"].as_u64() {
        about.push(format!("{hosts} hosts"));
    }
    [
        entry.number.to_string(),
        time::local(entry.time.as_ref()),
        principal,
        text("method").trim_start_matches("muster.v1.").to_owned(),
        verdict,
        about.join(" "),
    ]
}

async fn export(operator: &Operator, output: Option<PathBuf>, after: i64) -> Result<(), Failure> {
    let mut client = operator.connect().await?.audit();
    let request = ExportAuditRequest { after };
    let messages = client.export_audit(request).await?.into_inner();
    let Some(path) = output else {
        return receive(messages, |lines| io::stdout().lock().write_all(lines)).await;
    };
    let failed = |error: io::Error| Failure::file(&path, &error);
    let mut file = Unfinished::beside(&path).map_err(failed)?;
    receive(messages, |lines| file.file.write_all(lines))
        .await
        .map_err(|failure| failure.next("nothing was written; export again"))?;
    file.finish(&path).map_err(failed)?;
    say(&format!(
        "written to {0}; `muster audit verify {0}` verifies it, anywhere",
        path.display()
    ));
    Ok(())
}

/// Takes the lines of an export. One that was cut short is no export: its last line is the head.
async fn receive(
    mut messages: Streaming<ExportAuditResponse>,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut end = Vec::new();
    while let Some(message) = messages.message().await? {
        write(&message.lines)?;
        let lines = message.lines.strip_suffix(b"\n").unwrap_or(&message.lines);
        let last = lines.rsplit(|byte| *byte == b'\n').next();
        end = last.unwrap_or_default().to_vec();
    }
    match end.starts_with(LAST_LINE) {
        true => Ok(()),
        false => Err(Failure::internal(
            "the export ended before its last line, the signed head",
        )),
    }
}

/// A file that is written beside its place, and takes it once it is whole.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    fn beside(path: &Path) -> io::Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let path = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&path)?;
        Ok(Self { file, path })
    }

    /// Puts it in its place, where nothing may have come meanwhile.
    fn finish(self, place: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match fs::hard_link(&self.path, place) {
            // The file system knows no second name.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                fs::rename(&self.path, place)
            }
            linked => linked,
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn head(operator: &Operator) -> Result<(), Failure> {
    let mut client = operator.connect().await?.audit();
    let answer = client.get_audit_head(GetAuditHeadRequest {}).await?;
    let head = answer.into_inner().head.unwrap_or_default();
    let head = Head::read(head).map_err(|error| Failure::internal(error.to_string()))?;
    screen::print(&format!("{}\n", head.to_line()))?;
    Ok(())
}

/// Prints the heads that the agent of this directory keeps.
pub(crate) fn print_heads(agent_dir: &std::path::Path) -> Result<(), Failure> {
    let path = muster_agent::heads_file(agent_dir);
    let file = File::open(&path).map_err(|error| {
        Failure::file(&path, &error).next(
            "an agent keeps heads once it has attached; its directory is `agent` in the data directory",
        )
    })?;
    io::copy(&mut BufReader::new(file), &mut io::stdout().lock())?;
    Ok(())
}
