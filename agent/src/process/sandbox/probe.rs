//! Whether this kernel lets this process confine another.

use std::{ffi::CString, fs::File, os::fd::AsFd as _, path::Path};

use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
};

use super::{Layers, Prepared, Sandbox, missing};
use crate::process::{
    fork::{Plan, Purpose, Streams, start},
    spawn,
};

/// The argument with which our program does nothing but succeed.
pub(crate) const PROBED: &str = "supervise-probed";

/// What is missing; `None` if a process could be confined. It covers the directory that this process works in.
pub(crate) fn probe() -> Option<String> {
    if let Some(missing) = missing() {
        return Some(missing);
    }
    confine().err()
}

fn confine() -> Result<(), String> {
    let words = |error: std::io::Error| error.to_string();
    let directory = std::env::current_dir()
        .and_then(std::fs::canonicalize)
        .map_err(words)?;
    let sandbox = Sandbox {
        covered: directory.to_string_lossy().into_owned(),
        hidden: vec!["/etc/passwd".to_owned(), "/var".to_owned()],
        scratch_bytes: 1 << 20,
        ..Sandbox::default()
    };
    let ids = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    let prepared = Prepared::new(&sandbox, ids, None, &Layers::default())
        .map_err(|errno| errno.desc().to_owned())?;
    // Read now: within, another process would be meant.
    let program = std::fs::read_link("/proc/self/exe").map_err(words)?;
    if !Path::new(&program).exists() {
        return Err("the agent's program was replaced while it ran; start it again".to_owned());
    }
    let program = c_string(program.to_string_lossy().as_bytes())?;
    let argv = [c_string(b"muster-agent")?, c_string(PROBED.as_bytes())?];
    let argv = spawn::pointers(&argv);
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(words)?;
    let plan = Plan {
        purpose: Purpose::Program {
            program: &program,
            argv: &argv,
            environment: &spawn::pointers::<CString>(&[]),
        },
        cwd: c"/",
        streams: Streams::Pipes {
            stdin: None,
            stdout: null.as_fd(),
            stderr: null.as_fd(),
        },
        nice: 0,
        user: None,
        sandbox: Some(&prepared),
    };
    let pid = start(&plan).map_err(|failure| failure.words())?;
    loop {
        return match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Err(Errno::EINTR) => continue,
            Ok(status) => Err(format!("a confined process came to {status:?}")),
            Err(errno) => Err(errno.desc().to_owned()),
        };
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| "its path holds a NUL byte".to_owned())
}
