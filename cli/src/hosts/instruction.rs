//! `muster host instruction …`: the text that tells an AI what a host is for.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use muster_client::Client;
use muster_proto::v1::{
    GetHostRequest, Instruction, ListInstructionsRequest, SetInstructionRequest,
};
use serde_json::json;

use crate::{
    failure::Failure,
    file, json,
    screen::{self, Rows, clean, clean_lines, say},
    time,
};

/// Longer texts are refused by the control plane; reading stops soon after.
const TEXT_MAX: u64 = 16 << 10;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum InstructionCommand {
    /// Print the current instruction
    Get {
        /// Name or id of the host
        host: String,
    },
    /// Replace the whole instruction
    #[command(after_help = "Examples:
  muster host instruction set db-1 --text 'Primary database. Never restart it by day.'
  muster host instruction set db-1 --file db.md
  muster host instruction get db-1 | sed s/day/night/ | muster host instruction set db-1 --file -")]
    Set {
        /// Name or id of the host
        host: String,
        /// The text; empty removes the instruction
        #[arg(long, required_unless_present = "file", conflicts_with = "file")]
        text: Option<String>,
        /// A file with the text; "-" is standard input
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Replace only what has this etag
        #[arg(long, default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// List the versions, newest first
    History {
        /// Name or id of the host
        host: String,
        /// At most this many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=100))]
        limit: i32,
    },
}

pub(super) async fn run(
    command: InstructionCommand,
    client: &Client,
    json: bool,
) -> Result<(), Failure> {
    match command {
        InstructionCommand::Get { host } => {
            let answer = client.hosts().get_host(GetHostRequest { host }).await?;
            let found = answer.into_inner().host.and_then(|host| host.instruction);
            show(found, json)
        }
        InstructionCommand::Set {
            host,
            text,
            file,
            etag,
        } => {
            let text = match (text, file) {
                (Some(text), _) => text,
                (None, Some(path)) => read(&path)?,
                (None, None) => String::new(),
            };
            let request = SetInstructionRequest { host, text, etag };
            let answer = client.hosts().set_instruction(request).await?;
            let instruction = answer.into_inner().instruction.unwrap_or_default();
            if json {
                screen::print_json(&json!({"instruction": json::document(&instruction)}))?;
            } else {
                say(&format!(
                    "version {}, etag {}",
                    instruction.version,
                    clean(&instruction.etag)
                ));
            }
            Ok(())
        }
        InstructionCommand::History { host, limit } => {
            let request = ListInstructionsRequest {
                host,
                page_size: limit,
                page_token: String::new(),
            };
            let answer = client
                .hosts()
                .list_instructions(request)
                .await?
                .into_inner();
            history(&answer.instructions, json)
        }
    }
}

fn show(instruction: Option<Instruction>, json: bool) -> Result<(), Failure> {
    if json {
        let value = instruction.as_ref().map(json::document);
        screen::print_json(&json!({"instruction": value}))?;
        return Ok(());
    }
    let Some(instruction) = instruction.filter(|instruction| !instruction.text.is_empty()) else {
        say("no instruction");
        return Ok(());
    };
    say(&format!(
        "version {} by {}, {}; etag {}",
        instruction.version,
        clean(&instruction.author),
        time::ago(instruction.create_time.as_ref()),
        clean(&instruction.etag),
    ));
    let mut text = clean_lines(&instruction.text);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(screen::print(&text)?)
}

fn history(instructions: &[Instruction], json: bool) -> Result<(), Failure> {
    if json {
        let instructions: Vec<_> = instructions.iter().map(json::document).collect();
        screen::print_json(&json!({"instructions": instructions}))?;
        return Ok(());
    }
    let mut rows = Rows::new(&["VERSION", "WRITTEN", "AUTHOR", "TEXT"]);
    for instruction in instructions {
        let first = instruction.text.lines().next().unwrap_or_default();
        let more = instruction.text.lines().count() > 1;
        rows.add([
            instruction.version.to_string(),
            time::local(instruction.create_time.as_ref()),
            instruction.author.clone(),
            format!("{first}{}", if more { " …" } else { "" }),
        ]);
    }
    if rows.is_empty() {
        say("no instruction was ever written");
        return Ok(());
    }
    Ok(screen::print(&rows.render())?)
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = file::open(path)?
        .take(TEXT_MAX + 1)
        .read_to_string(&mut text);
    read.map_err(|error| Failure::file(path, &error))?;
    Ok(text)
}
