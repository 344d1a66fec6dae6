//! What is put into a process: bytes for its standard input, sizes of its terminal, signals.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    str::FromStr as _,
};

use bytes::{Buf as _, Bytes, BytesMut};
use muster_proto::v1::{InputStatus, TaskInput, Terminal, task_input::Kind};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        termios::{SpecialCharacterIndices, tcgetattr},
    },
    unistd::{Pid, tcgetpgrp, write},
};

use crate::process::{Size, resize};

/// Bytes that wait for the process to read; more is refused.
const PENDING_MAX: usize = 1 << 20;

/// Inputs whose ids are remembered, so that one that comes again is not put in again.
const REMEMBERED: usize = 1024;

/// An end-of-file character where the terminal does not say which.
const END_OF_FILE: u8 = 4;

const ROWS: i32 = 24;
const COLUMNS: i32 = 80;
const SIZE_MAX: i32 = 1000;

/// The way into a process.
pub(super) struct Input {
    /// Standard input, or the terminal; `None` once it is closed. Does not block.
    file: Option<OwnedFd>,
    is_terminal: bool,
    pending: BytesMut,
    /// Closed once nothing is pending.
    closing: bool,
    known: HashMap<String, InputStatus>,
    order: VecDeque<String>,
}

impl Input {
    /// Begins with these bytes, and stays open if more may come.
    pub(super) fn new(file: Option<OwnedFd>, is_terminal: bool, first: &Bytes, open: bool) -> Self {
        let mut input = Self {
            file,
            is_terminal,
            pending: BytesMut::from(&first[..]),
            closing: !open && !is_terminal,
            known: HashMap::new(),
            order: VecDeque::new(),
        };
        input.feed();
        input
    }

    /// Where to wait until more can be written; `None` if nothing waits.
    pub(super) fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        let file = self.file.as_ref()?;
        (!self.pending.is_empty()).then(|| file.as_fd())
    }

    /// Writes what is taken.
    pub(super) fn feed(&mut self) {
        let Some(file) = &self.file else { return };
        while !self.pending.is_empty() {
            match write(file, &self.pending) {
                Ok(written) => self.pending.advance(written),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // A process that does not read all of its input is within its rights.
                Err(_) => return self.close(),
            }
        }
        self.pending = BytesMut::new();
        if self.closing {
            self.close();
        }
    }

    /// Nothing more is put in.
    pub(super) fn close(&mut self) {
        self.file = None;
        self.pending = BytesMut::new();
    }

    /// Puts something in, unless that was done before. `leader` is the process while it runs.
    pub(super) fn put(
        &mut self,
        write_id: &str,
        input: Option<TaskInput>,
        leader: Option<Pid>,
    ) -> InputStatus {
        if let Some(status) = self.known.get(write_id) {
            return *status;
        }
        let status = match (input.and_then(|input| input.kind), leader) {
            (None, _) => InputStatus::Unknown,
            (Some(_), None) => InputStatus::Closed,
            (Some(Kind::Data(data)), _) => self.put_data(&data),
            (Some(Kind::CloseStdin(_)), _) => self.put_end(),
            (Some(Kind::Resize(terminal)), _) => self.resize(&terminal),
            (Some(Kind::Signal(name)), Some(leader)) => self.signal(&name, leader),
        };
        if status == InputStatus::Accepted {
            self.remember(write_id, status);
        }
        status
    }

    fn put_data(&mut self, data: &[u8]) -> InputStatus {
        if self.file.is_none() || self.closing {
            return InputStatus::Closed;
        }
        if self.pending.len() + data.len() > PENDING_MAX {
            return InputStatus::Full;
        }
        self.pending.extend_from_slice(data);
        self.feed();
        InputStatus::Accepted
    }

    fn put_end(&mut self) -> InputStatus {
        let Some(file) = &self.file else {
            return InputStatus::Closed;
        };
        if self.is_terminal {
            let settings = tcgetattr(file);
            let end = settings.map_or(END_OF_FILE, |settings| {
                settings.control_chars[SpecialCharacterIndices::VEOF as usize]
            });
            return self.put_data(&[end]);
        }
        if self.closing {
            return InputStatus::Closed;
        }
        self.closing = true;
        self.feed();
        InputStatus::Accepted
    }

    fn resize(&self, terminal: &Terminal) -> InputStatus {
        match &self.file {
            Some(master) if self.is_terminal && resize(master, size(terminal)).is_ok() => {
                InputStatus::Accepted
            }
            _ => InputStatus::Closed,
        }
    }

    fn signal(&self, name: &str, leader: Pid) -> InputStatus {
        let Ok(signal) = Signal::from_str(name) else {
            return InputStatus::Unknown;
        };
        // Whoever has the terminal now; without one, the group that the process leads.
        let foreground = self.file.as_ref().filter(|_| self.is_terminal);
        let group = foreground.and_then(|master| tcgetpgrp(master).ok());
        match killpg(
            group.filter(|group| group.as_raw() > 1).unwrap_or(leader),
            signal,
        ) {
            Ok(()) => InputStatus::Accepted,
            Err(_) => InputStatus::Closed,
        }
    }

    fn remember(&mut self, write_id: &str, status: InputStatus) {
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(write_id.to_owned());
        self.known.insert(write_id.to_owned(), status);
    }
}

/// The size that was asked for, within what a terminal can have.
pub(super) fn size(terminal: &Terminal) -> Size {
    let within = |asked: i32, usual: i32| match asked {
        ..=0 => usual,
        _ => asked.min(SIZE_MAX),
    };
    Size {
        rows: within(terminal.rows, ROWS) as u16,
        columns: within(terminal.columns, COLUMNS) as u16,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use muster_proto::v1::CloseStdin;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn data(bytes: &[u8]) -> Option<TaskInput> {
        Some(TaskInput {
            kind: Some(Kind::Data(bytes.to_vec().into())),
        })
    }

    #[test]
    fn what_comes_again_is_not_put_in_again_and_what_is_too_much_is_refused() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let leader = Some(Pid::this());
        let mut input = Input::new(Some(writer), false, &Bytes::from_static(b"first "), true);
        assert_eq!(input.put("1", data(b"one"), None), InputStatus::Closed);
        assert_eq!(input.put("1", data(b"one"), leader), InputStatus::Accepted);
        assert_eq!(input.put("1", data(b"one"), leader), InputStatus::Accepted);
        // The pipe takes 64 KiB, the rest waits.
        let much = vec![b'x'; 64 << 10];
        let mut put = 0;
        while input.put(&format!("m{put}"), data(&much), leader) == InputStatus::Accepted {
            put += 1;
        }
        assert!(put >= 16, "{put}");
        assert_eq!(input.put("late", data(&much), leader), InputStatus::Full);
        let end = TaskInput {
            kind: Some(Kind::CloseStdin(CloseStdin {})),
        };
        assert_eq!(input.put("end", Some(end), leader), InputStatus::Accepted);
        assert_eq!(input.put("after", data(b"x"), leader), InputStatus::Closed);
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        while input.waits_for().is_some() {
            input.feed();
        }
        let all = reading.join().unwrap();
        assert!(all.starts_with(b"first one"));
        assert_eq!(all.len(), 9 + put * much.len());
    }

    #[test]
    fn a_terminal_has_a_size() {
        let terminal = |rows, columns| Terminal {
            rows,
            columns,
            term: String::new(),
        };
        let usual = Size {
            rows: 24,
            columns: 80,
        };
        assert_eq!(size(&terminal(0, -1)), usual);
        assert_eq!(size(&terminal(5000, 7)).rows, 1000);
        assert_eq!(size(&terminal(5000, 7)).columns, 7);
    }
}
