//! A file read by a worker below a supervisor of its own, as a task reads it.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process,
    sync::Arc,
};

use muster_proto::{
    ids::TaskId,
    v1::{FileRead, FileReadResult, Reason, TaskResult, task_result},
};
use prost::Message as _;

use super::AttemptError;
use crate::{
    actions::{Kind, Work},
    config::Config,
    process::{Host, Sandbox},
    supervision::{
        Pool,
        protocol::{self, Ended, News, NotStarted, Order, Output, Reached, Start},
    },
};

/// A directory for the sockets of supervisors, which goes with it.
struct Directory(PathBuf);

impl Directory {
    fn make() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("muster-try-{}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Whatever a supervisor that is on its way out still holds is of no use.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Reads the file to standard output, and says on standard error what it is.
pub(super) fn read(
    host: Host,
    read: FileRead,
    sandbox: Option<Sandbox>,
) -> Result<u8, AttemptError> {
    let (user, timeout) = (read.user.clone(), read.timeout());
    let Work::Worker(action) = Box::new(read).work()? else {
        let message = "a file is read by no program".to_owned();
        return Err(AttemptError::refused(Reason::ActionUnsupported, message));
    };
    let start = Start {
        task_id: TaskId::from_bytes(&[0; 32]).to_string(),
        user,
        timeout_ms: timeout.and_then(|timeout| timeout.as_millis().try_into().ok()),
        sandbox,
        worker: Some(*action),
        ..Start::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(supervised(host, start))?;
    match ended.reason() {
        Reason::Unspecified if ended.exit_code == Some(0) => {}
        reason => return Err(AttemptError::refused(reason, words(ended))),
    }
    if let Some(task_result::Kind::FileRead(result)) = TaskResult::decode(ended.result)
        .map_err(io::Error::other)?
        .kind
    {
        writeln!(io::stderr(), "{}", describe(&result))?;
    }
    Ok(0)
}

/// Runs a task below a supervisor that leaves afterwards.
async fn supervised(host: Host, start: Start) -> Result<Ended, AttemptError> {
    let directory = Directory::make()?;
    let program = Config::new(PathBuf::new()).supervisor;
    let supervisors = Pool::open(Arc::new(host), program, directory.0.clone())?;
    let mut link = supervisors.fresh().await?;
    link.start(&protocol::frame(Order::Start(start)), true)?;
    let mut reached = [0; 3];
    let ended = loop {
        match link.next().await? {
            News::Output(output) => {
                show(&output)?;
                reached[output.stream.min(2) as usize] += output.data.len() as i64;
                link.send(Order::Taken(Reached::new(reached)))?;
            }
            News::Ended(ended) => break ended,
            News::NotStarted(refusal) => return Err(not_started(refusal)),
            _ => {}
        }
    };
    link.release()?;
    supervisors.close();
    Ok(ended)
}

fn show(output: &Output) -> io::Result<()> {
    match output.stream {
        0 => io::stdout().write_all(&output.data),
        _ => io::stderr().write_all(&output.data),
    }
}

fn not_started(refusal: NotStarted) -> AttemptError {
    AttemptError::refused(refusal.reason(), refusal.message)
}

fn words(ended: Ended) -> String {
    match (ended.message.is_empty(), ended.signal.is_empty()) {
        (false, _) => ended.message,
        (true, false) => format!("it was ended by {}", ended.signal),
        (true, true) => "it took too long".to_owned(),
    }
}

fn describe(result: &FileReadResult) -> String {
    let stat = result.stat.clone().unwrap_or_default();
    let more = match result.has_more {
        true => " and more",
        false => "",
    };
    format!(
        "{}: {} bytes{more}, {}, mode {:o}, owner {}",
        stat.path, result.length, stat.mime_type, stat.mode, stat.owner
    )
}
