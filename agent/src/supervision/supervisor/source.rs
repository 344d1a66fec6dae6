//! One of the pipes, or the terminal, that a process writes to.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use bytes::{Bytes, BytesMut};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::read,
};

/// Read at once, bytes: what a pipe holds as the kernel makes it, and once it has proved too small. A chunk may
/// have no more than the latter.
const READ: usize = 64 << 10;
const READ_LARGE: usize = 256 << 10;

/// Where output comes from.
pub(super) struct Source {
    pub(super) stream: usize,
    /// `None` once it is closed.
    file: Option<OwnedFd>,
    buffer: BytesMut,
    size: usize,
}

impl Source {
    pub(super) fn new(stream: usize, file: OwnedFd) -> Self {
        Self {
            stream,
            file: Some(file),
            buffer: BytesMut::new(),
            size: READ,
        }
    }

    /// The file; `None` once it is closed.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }

    pub(super) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn close(&mut self) {
        self.file = None;
        self.buffer = BytesMut::new();
    }

    /// Reads once, after a poll has said that there is something: then it does not block. `None` at the end.
    pub(super) fn read(&mut self) -> Option<Bytes> {
        self.read_most(self.size)
    }

    fn read_most(&mut self, most: usize) -> Option<Bytes> {
        let file = self.file.as_ref()?;
        // Memory is taken only once there is something to read, and what was not filled serves again.
        if self.buffer.len() < self.size / 4 {
            self.buffer = BytesMut::zeroed(self.size);
        }
        let most = most.min(self.buffer.len());
        loop {
            match read(file, &mut self.buffer[..most]) {
                // A terminal says EIO once no process has it open any more.
                Ok(0) | Err(Errno::EIO) => break,
                Ok(length) => {
                    let full = length >= READ || length == most;
                    if full && self.size == READ && length >= READ / 4 {
                        self.grow();
                    }
                    return Some(self.buffer.split_to(length).freeze());
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Err(_) => break,
            }
        }
        self.close();
        None
    }

    /// The process writes faster than we read: a larger pipe saves turns.
    fn grow(&mut self) {
        self.size = READ_LARGE;
        if let Some(file) = &self.file {
            let _ = fcntl(file, FcntlArg::F_SETPIPE_SZ(READ_LARGE as i32));
        }
    }

    /// What is in the pipe now, in pieces, and no more than the pipe can hold: what is left running may write for
    /// ever.
    pub(super) fn drain(&mut self, mut take: impl FnMut(usize, Bytes)) {
        let mut left = self.capacity();
        while left > 0
            && self.is_ready().unwrap_or(false)
            && let Some(data) = self.read_most(left)
        {
            left -= data.len();
            take(self.stream, data);
        }
    }

    /// How many bytes the pipe can hold.
    fn capacity(&self) -> usize {
        let Some(file) = &self.file else { return 0 };
        let size = fcntl(file, FcntlArg::F_GETPIPE_SZ);
        size.ok()
            .and_then(|size| size.try_into().ok())
            .unwrap_or(READ)
    }

    fn is_ready(&self) -> io::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, PollTimeout::ZERO)?;
        let seen = files[0].revents().unwrap_or(PollFlags::empty());
        Ok(seen.contains(PollFlags::POLLIN))
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.file.as_ref().map(|file| file.as_raw_fd());
        write!(out, "stream {} of {file:?}", self.stream)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_a_process_wrote_is_taken_though_others_hold_its_output_open() {
        let (theirs, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[b'x'; 60_000]).unwrap();
        let mut source = Source::new(0, theirs.into());
        let mut taken = 0;
        source.drain(|_, data| taken += data.len());
        assert_eq!(taken, 60_000);
        assert!(source.is_open());
        drop(writer);
        assert!(source.read().is_none() && !source.is_open());
    }
}
