//! Work that is no program: code of ours in a process that is forked for it, and that is changed and confined as any other
//! process of a task.
//!
//! The process has one thread, its standard streams and a pipe for what comes of the work. Its memory is that of a
//! supervisor that nobody was served by before, without the environment; so there is nothing in it of any other caller.
//! What a copy of memory would repeat is not to be used in it: whoever needs randomness asks the kernel. It ends with its
//! supervisor, and only by `_exit` or a signal.

use std::{
    ffi::{CStr, c_char},
    fs,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    panic::{self, PanicHookInfo},
    path::Path,
};

use bytes::Bytes;
use muster_proto::v1::Reason;
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Pid, getppid},
};
use prost::Message as _;

use super::{Sandbox, fork::put};
use crate::failpoint;

/// Where the pipe for the outcome is.
const OUTCOME: RawFd = 3;

/// Memory that the work may take, bytes.
const MEMORY: u64 = 256 << 20;

/// How a worker ends by itself: it has done its work, it could not, or there is a mistake in it. What counts is what it
/// says.
const DONE: i32 = 0;
const REFUSED: i32 = 1;
const PANICKED: i32 = 70;

/// What comes of the work. Over the pipe it goes behind its length, four bytes, little endian.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Outcome {
    /// A serialized `muster.v1.TaskResult`; empty if there is none.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) result: Bytes,
    /// Why it could not be done; `UNSPECIFIED` if it was.
    #[prost(enumeration = "Reason", tag = "2")]
    pub(crate) reason: i32,
    /// The same in words.
    #[prost(string, tag = "3")]
    pub(crate) message: String,
}

impl Outcome {
    /// It was done.
    pub(crate) fn done(result: &muster_proto::v1::TaskResult) -> Self {
        Self {
            result: result.encode_to_vec().into(),
            ..Self::default()
        }
    }

    /// It was not.
    pub(crate) fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
            ..Self::default()
        }
    }
}

/// Where a worker finds itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The user whom it works as, and that user's home.
    pub(crate) user: &'a str,
    pub(crate) home: &'a Path,
    /// How far it is confined; `None` is not at all.
    pub(crate) sandbox: Option<&'a Sandbox>,
}

/// Work, as the child of a fork does it.
pub(super) struct Work<'a> {
    /// The writing end of the pipe.
    pub(super) outcome: BorrowedFd<'a>,
    pub(super) work: &'a dyn Fn() -> Outcome,
    /// Whoever forks it, and how much memory that has.
    supervisor: Pid,
    memory: u64,
}

impl<'a> Work<'a> {
    /// Work of a child of this process.
    pub(super) fn new(outcome: BorrowedFd<'a>, work: &'a dyn Fn() -> Outcome) -> Self {
        Self {
            outcome,
            work,
            supervisor: Pid::this(),
            memory: data_bytes().unwrap_or(0) + MEMORY,
        }
    }

    /// The last that is done between fork and work: bare system calls. Afterwards nothing is open but the standard streams
    /// and the pipe.
    pub(super) fn prepare(&self) -> Result<(), Errno> {
        // Asked for after the last change of rights, which would undo it.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != self.supervisor {
            return Err(Errno::ESRCH);
        }
        setrlimit(Resource::RLIMIT_DATA, self.memory, self.memory)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        put(self.outcome.as_raw_fd(), OUTCOME)?;
        close_from(OUTCOME + 1)
    }

    /// Does the work, and says what comes of it.
    pub(super) fn run(&self) -> ! {
        let _ = prctl::set_name(c"muster-worker");
        forget_environment();
        panic::set_hook(Box::new(|panic| {
            say(&Outcome::refused(Reason::WorkerDied, words(panic)));
            exit(PANICKED)
        }));
        misbehave();
        let outcome = (self.work)();
        say(&outcome);
        exit(match outcome.reason() {
            Reason::Unspecified => DONE,
            _ => REFUSED,
        })
    }
}

/// As a worker does that has a mistake in it, where a test wants that.
fn misbehave() {
    if failpoint::is_at("worker-panics") {
        panic!("wanted by a test");
    }
    if failpoint::is_at("worker-says-too-much") {
        let result = vec![0; 1 << 20].into();
        say(&Outcome {
            result,
            ..Outcome::default()
        });
    }
    let mut taken = Vec::new();
    while failpoint::is_at("worker-takes-memory") {
        taken.push(vec![1u8; 1 << 20]);
    }
}

fn words(panic: &PanicHookInfo<'_>) -> String {
    let cause = panic.payload_as_str().unwrap_or("no words");
    let place = panic.location().map(ToString::to_string);
    format!(
        "there is a mistake in this agent: {cause} ({})",
        place.unwrap_or_default()
    )
}

/// Nobody is left to hear what goes wrong here: the supervisor then says that the worker said nothing.
fn say(outcome: &Outcome) {
    let length = outcome.encoded_len();
    let Ok(prefix) = u32::try_from(length) else {
        return;
    };
    let mut frame = Vec::with_capacity(4 + length);
    frame.extend(prefix.to_le_bytes());
    if outcome.encode(&mut frame).is_err() {
        return;
    }
    let mut rest = &frame[..];
    while !rest.is_empty() {
        match write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

#[allow(unsafe_code)] // The number of the pipe belongs to nobody.
fn write(bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: `prepare` has put the pipe there, and nobody closes it.
    let pipe = unsafe { BorrowedFd::borrow_raw(OUTCOME) };
    nix::unistd::write(pipe, bytes)
}

#[allow(unsafe_code)] // What the supervisor would do at its end is not for a copy of it to do.
fn exit(code: i32) -> ! {
    // SAFETY: it ends the process and runs nothing of ours.
    unsafe { libc::_exit(code) }
}

#[allow(unsafe_code)] // Neither the standard library nor nix has this call.
fn close_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: nobody in this process uses these descriptors any more.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(closed).map(drop)
}

/// What the agent was started with may be a secret, and the work has no use for it.
#[allow(unsafe_code)] // The variables as the kernel put them there, which nobody safe overwrites.
fn forget_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: this process has one thread. Each entry of the list points to a text that ends in a zero and is the
    // process's own, and so does the list itself end; it is empty afterwards.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let length = CStr::from_ptr(*entry).count_bytes();
            (*entry).cast::<u8>().write_bytes(0, length);
            *entry = std::ptr::null_mut();
            entry = entry.add(1);
        }
    }
}

/// Bytes of data that this process has, as `RLIMIT_DATA` counts them.
fn data_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
