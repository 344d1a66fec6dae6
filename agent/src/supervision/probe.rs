//! What the kernel lacks to confine a task: found out by confining a process of our own, since nothing else tells.

use std::{
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use super::PROBE;
use crate::process::{self, Host};

/// How long that may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Words are shorter, bytes.
const LONGEST: u64 = 1024;

/// What is missing on this host; `None` if tasks can be confined. Blocks: a process is started, in this directory.
pub(crate) fn missing(host: &Host, program: &Path, directory: &Path) -> Option<String> {
    ask(host, program, directory)
        .unwrap_or_else(|error| Some(format!("it could not be found out: {error}")))
}

fn ask(host: &Host, program: &Path, directory: &Path) -> io::Result<Option<String>> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(LIMIT))?;
    let pid = host.start_helper(program, PROBE, directory, theirs.as_fd())?;
    drop(theirs);
    let mut answer = String::new();
    let read = ours.take(LONGEST).read_to_string(&mut answer);
    process::leave_helper(pid);
    read?;
    match answer.strip_prefix("can") {
        Some("") => Ok(None),
        Some(cause) => Ok(Some(cause.trim_start_matches("not:").trim().to_owned())),
        None => Err(io::Error::other(
            "the program that supervises tasks does not say",
        )),
    }
}

/// The process that is asked; its standard input is the socket.
pub(super) fn run() -> ExitCode {
    let answer = match process::probe() {
        None => "can".to_owned(),
        Some(cause) => format!("cannot: {cause}"),
    };
    let told = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)
        .and_then(|mut socket| socket.write_all(answer.as_bytes()));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
