//! How a task has ended.

use std::time::SystemTime;

use muster_proto::v1::Reason;
use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, waitid},
};

use super::Running;
use crate::{
    process::Exit,
    supervision::{
        protocol::{Cause, Ended, Reached},
        supervisor::{outcome::Pipe, source::Source},
    },
};

impl Running {
    pub(super) fn is_over(&self) -> bool {
        let silent = !self.sources.iter().any(Source::is_open)
            && !self.outcome.as_ref().is_some_and(Pipe::is_open);
        self.started.is_some() && self.exit.is_some() && silent && self.ending.is_none()
    }

    pub(super) fn end(&self) -> Ended {
        let ended = self.end_of_process();
        let Some(outcome) = &self.outcome else {
            return ended;
        };
        // One that was ended in the middle of its work has nothing to say.
        if self.cause != Cause::ByItself && !outcome.is_whole() {
            return ended;
        }
        let verdict = outcome.verdict(self.exit);
        let (exit_code, signal) = match verdict.reason {
            Reason::Unspecified => (Some(0), String::new()),
            Reason::WorkerDied => (None, ended.signal),
            _ => (None, String::new()),
        };
        Ended {
            exit_code,
            signal,
            reason: verdict.reason.into(),
            message: verdict.message,
            result: verdict.result,
            // Nothing is left running by a worker.
            note: String::new(),
            ..ended
        }
    }

    fn end_of_process(&self) -> Ended {
        Ended {
            exit_code: match self.exit {
                Some(Exit::Code(code)) => Some(code),
                _ => None,
            },
            signal: self.exit.and_then(Exit::signal).unwrap_or_default(),
            cause: self.cause.into(),
            run_time_us: u64::try_from(self.run_time.as_micros()).unwrap_or(u64::MAX),
            note: self.note.to_owned(),
            time: Some(SystemTime::now().into()),
            leaves: self.is_work || has_children(),
            written: Some(Reached::new(self.output.ends())),
            ..Ended::default()
        }
    }
}

/// Whether this process has any child. What is left of one task would be mistaken for a part of the next.
fn has_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}
