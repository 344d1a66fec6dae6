//! `run`: a command on one host or many, in one round trip to the control plane.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::v1::{Action, Command, CreateJobRequest, Mode, Script, Terminal, action};
use rmcp::model::CallToolResult;

use super::{
    Arguments, Call, MAX_BYTES, MAX_BYTES_LIMITS, WAIT, WAIT_MAX, create, random_hex, seconds,
    sheet, text,
};
use crate::{error::Refusal, render::job};

/// How long `run` waits for a terminal, where a program mostly waits for somebody to type, seconds.
const WAIT_PTY: i64 = 5;
/// A terminal for models: wide, and of a kind that programs write plain text to.
const TERMINAL: (i32, i32, &str) = (50, 160, "dumb");
/// The longest timeout of a command: a week.
const TIMEOUT_MAX: i64 = 7 * 86_400;

/// `isError` says that no host did what was asked: refused, expired, lost, timed out, not startable, or
/// still waiting for a host that is offline or locked. A command that ran and failed is no error of
/// the tool: its exit code is the answer.
pub(super) async fn call(
    call: &mut Call,
    mut arguments: Arguments,
) -> Result<CallToolResult, Refusal> {
    let selector = arguments.required("target", "web-1")?;
    let wait = arguments.number("wait_s", 0..=WAIT_MAX)?;
    let max_bytes = arguments
        .number("max_bytes", MAX_BYTES_LIMITS)?
        .unwrap_or(MAX_BYTES);
    let key = arguments.word("key")?;
    let mode = mode(&mut arguments)?;
    let reason = arguments.word("reason")?.unwrap_or_default();
    let command = command(&mut arguments)?;
    let usual = command.terminal.as_ref().map_or(WAIT, |_| WAIT_PTY);
    let wait = wait.unwrap_or(usual);
    let create = CreateJobRequest {
        request_id: key.unwrap_or_else(|| format!("mcp-{}", random_hex::<16>())),
        selector,
        action: Some(Action {
            kind: Some(action::Kind::Command(command)),
        }),
        mode: mode.into(),
        reason,
        ..CreateJobRequest::default()
    };
    let wait_for = Duration::from_secs(wait.max(0) as u64);
    let keep = max_bytes.max(0) as usize;
    let Some(seen) = create::job(call, create, wait_for, keep).await? else {
        return Ok(text(String::new(), false));
    };
    // Who does not wait cannot be told that a host kept them waiting.
    let is_error = wait > 0 && job::nothing_done(&seen.tasks);
    Ok(text(
        job::answer(&seen.job, &seen.tasks, &sheet(max_bytes)),
        is_error,
    ))
}

/// The mode that is asked for.
pub(super) fn mode(arguments: &mut Arguments) -> Result<Mode, Refusal> {
    let Some(word) = arguments.word("mode")? else {
        return Ok(Mode::Unspecified);
    };
    // Models write what they see in JSON, where names have underscores.
    match Mode::from_text(&word.replace('_', "-")) {
        Some(mode) if mode != Mode::Disabled => Ok(mode),
        _ => Err(Refusal::new(
            format!("mode is {:?}", word.chars().take(40).collect::<String>()),
            "mode is read-only, edit or unrestricted; leave it out for the most you may",
        )),
    }
}

fn command(arguments: &mut Arguments) -> Result<Command, Refusal> {
    let argv = arguments.list("argv")?;
    let script = arguments
        .text("command")?
        .filter(|text| !text.trim().is_empty());
    let script = match (script, argv.is_empty()) {
        (Some(text), true) => Some(Script {
            text,
            shell: String::new(),
        }),
        (None, false) => None,
        (Some(_), false) => {
            return Err(Refusal::new(
                "both command and argv are given",
                "give command for a shell script, or argv for a program without a shell",
            ));
        }
        (None, true) => {
            return Err(Refusal::new(
                "command is missing",
                "give command=\"uname -a\", or argv=[\"uname\",\"-a\"]",
            ));
        }
    };
    let env: BTreeMap<String, String> = arguments
        .map("env")?
        .into_iter()
        .map(|(name, value)| (name, value.unwrap_or_default()))
        .collect();
    let (rows, columns, term) = TERMINAL;
    let terminal = arguments.flag("pty")?.then(|| Terminal {
        rows,
        columns,
        term: env.get("TERM").map_or(term, String::as_str).to_owned(),
    });
    Ok(Command {
        terminal,
        argv,
        script,
        cwd: arguments.word("cwd")?.unwrap_or_default(),
        env,
        timeout: arguments.number("timeout_s", 1..=TIMEOUT_MAX)?.map(seconds),
        stdin: arguments.text("stdin")?.unwrap_or_default().into(),
        ..Command::default()
    })
}
