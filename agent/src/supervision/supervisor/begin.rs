//! What a start asks for becomes a process.

use std::path::PathBuf;

use muster_proto::{ids::TaskId, v1::Reason};

use super::input;
use crate::{
    actions,
    process::{Child, Host, Program, StartError, Wanted, Worker},
    supervision::protocol::{News, NotStarted, Start},
};

/// The kind of a terminal where nobody says.
const TERM: &str = "xterm-256color";

/// Starts the process.
pub(super) fn begin(host: &Host, task_id: TaskId, start: Start) -> Result<Child, StartError> {
    let Some(action) = &start.worker else {
        return host.start(program(task_id, start));
    };
    host.start_worker(Worker {
        task_id,
        user: (!start.user.is_empty()).then(|| start.user.clone()),
        limits: start.limits.unwrap_or_default(),
        sandbox: start.sandbox.clone(),
        work: &|place| actions::work(action, place),
    })
}

fn program(task_id: TaskId, start: Start) -> Program {
    let streams = match start.terminal {
        Some(terminal) => Wanted::Terminal {
            size: input::size(&terminal),
            term: if terminal.term.is_empty() {
                TERM.to_owned()
            } else {
                terminal.term
            },
        },
        None => Wanted::Pipes {
            stdin: start.open_stdin || !start.stdin.is_empty(),
        },
    };
    let env = start.env.into_iter();
    Program {
        task_id,
        argv: start.argv,
        cwd: (!start.cwd.is_empty()).then(|| PathBuf::from(start.cwd)),
        env: env
            .map(|variable| (variable.name, variable.value))
            .collect(),
        user: (!start.user.is_empty()).then_some(start.user),
        streams,
        inherited: start.inherited.unwrap_or_default(),
        limits: start.limits.unwrap_or_default(),
        sandbox: start.sandbox,
    }
}

/// Whether a start names something to do.
pub(super) fn makes_sense(start: &Start) -> bool {
    start.argv.is_empty() == start.worker.is_some()
}

/// A task whose start makes no sense.
pub(super) fn refused() -> News {
    not_started(
        Reason::ArgumentInvalid,
        "a task has an id, and a program or a kind of work that this agent knows",
    )
}

/// A worker below a supervisor whose memory has something of others, or a task after one. The agent asks for neither.
pub(super) fn used() -> News {
    not_started(
        Reason::StartFailed,
        "the process that supervises tasks has had another one before",
    )
}

fn not_started(reason: Reason, message: &str) -> News {
    News::NotStarted(NotStarted {
        reason: reason.into(),
        message: message.to_owned(),
    })
}
