//! One attempt to get out of a sandbox, by bare system calls: `escape NAME`. Ends with 0 if the attempt came through
//! as far as it can tell itself, with 1 if it was held back. The test looks from outside too.
//!
//! Where things are is in the environment: `OUT` (a directory that must not change), `ROOT` (where edit may write),
//! `DATA` (the agent's), `VICTIM` (another process of the same user), `TCP`, `UDP` (ports of 127.0.0.1), `SHARED` (the number of
//! shared memory), `NAME` (of sockets, queues and shared memory).
#![allow(unsafe_code)] // what is tried here nobody offers in a safe way
#![allow(clippy::unwrap_used)]

mod files;
mod kernel;
mod mounts;
mod privileges;
mod processes;
mod sockets;

use std::{env, ffi::CString, os::fd::RawFd, process::ExitCode};

use nix::libc::{self, c_int};

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_default();
    let came_through = files::attempt(&name)
        .or_else(|| mounts::attempt(&name))
        .or_else(|| processes::attempt(&name))
        .or_else(|| sockets::attempt(&name))
        .or_else(|| kernel::attempt(&name))
        .or_else(|| privileges::attempt(&name));
    match came_through {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("no such attempt: {name}");
            ExitCode::from(64)
        }
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn number(name: &str) -> i32 {
    var(name).parse().unwrap_or(-1)
}

fn text(path: String) -> CString {
    CString::new(path).unwrap()
}

/// Below the directory that must not change.
fn out(name: &str) -> CString {
    text(format!("{}/{name}", var("OUT")))
}

fn root(name: &str) -> CString {
    text(format!("{}/{name}", var("ROOT")))
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn ok(result: impl Into<i64>) -> bool {
    result.into() >= 0
}

/// Whether the call was let past its check of rights, after which it fails with this error: it was given nonsense.
fn past(result: impl Into<i64>, nonsense: &[i32]) -> bool {
    ok(result) || nonsense.contains(&errno())
}

fn open(path: &CString, flags: c_int) -> RawFd {
    unsafe { libc::open(path.as_ptr(), flags, 0o666) }
}

/// Whether a file can be opened for writing.
fn writable(path: &str) -> bool {
    ok(open(&text(path.to_owned()), libc::O_WRONLY))
}

fn write_to(file: RawFd) -> bool {
    file >= 0 && unsafe { libc::write(file, c"escaped".as_ptr().cast(), 7) } == 7
}

fn run(program: &CString, name: &str) -> bool {
    let path = program.to_str().unwrap();
    #[allow(clippy::disallowed_methods)] // the attempt is to start it
    let status = std::process::Command::new(path).arg(name).status();
    status.is_ok_and(|status| status.success())
}
