//! A supervisor's connection to its agent.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::supervision::protocol::{self, News, Order, ToAgent, ToSupervisor};

/// Read at once, bytes.
const READ: usize = 16 << 10;

/// Memory for what is read that stays from task to task, bytes.
const READ_KEPT: usize = 64 << 10;

/// Output is handed over only while fewer parts than this wait for the socket; so what is known about it stays
/// with whoever keeps it.
const QUEUE: usize = 8;

/// A connection.
pub(super) struct Peer {
    socket: UnixStream,
    inbox: BytesMut,
    queue: VecDeque<Bytes>,
    /// The agent has said how much output it has: more can follow.
    pub(super) resumed: bool,
    /// Bytes that the socket has taken so far.
    written: u64,
}

impl Peer {
    pub(super) fn new(socket: UnixStream, resumed: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            inbox: BytesMut::new(),
            queue: VecDeque::new(),
            resumed,
            written: 0,
        })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits for the socket.
    pub(super) fn is_sending(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Grows while the agent reads.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether it takes more output.
    pub(super) fn has_room(&self) -> bool {
        self.resumed && self.queue.len() < QUEUE
    }

    pub(super) fn say(&mut self, news: News) {
        let mut frame = BytesMut::new();
        protocol::put(&mut frame, &ToAgent { news: Some(news) });
        self.queue.push_back(frame.freeze());
    }

    pub(super) fn say_output(&mut self, stream: usize, offset: i64, data: Bytes) {
        self.queue
            .push_back(protocol::head_of_output(stream, offset, data.len()));
        self.queue.push_back(data);
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut parts = [IoSlice::new(&[]); QUEUE];
            for (part, bytes) in parts.iter_mut().zip(&self.queue) {
                *part = IoSlice::new(bytes);
            }
            let used = self.queue.len().min(QUEUE);
            let mut written = match self.socket.write_vectored(&parts[..used]) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.written += written as u64;
            while let Some(first) = self.queue.front_mut() {
                if written < first.len() {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                self.queue.pop_front();
            }
        }
        Ok(())
    }

    /// Reads what has come; `false` once the agent is gone.
    pub(super) fn read(&mut self) -> bool {
        loop {
            let before = self.inbox.len();
            self.inbox.resize(before + READ, 0);
            let read = self.socket.read(&mut self.inbox[before..]);
            let length = *read.as_ref().unwrap_or(&0);
            self.inbox.truncate(before + length);
            match read {
                Ok(0) => return false,
                Ok(length) if length < READ => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// The next order that is whole. An error is an agent that cannot be understood.
    pub(super) fn next(&mut self) -> io::Result<Option<Order>> {
        loop {
            match protocol::take::<ToSupervisor>(&mut self.inbox)? {
                Some(ToSupervisor { order: Some(order) }) => return Ok(Some(order)),
                // A later agent may say what we do not know.
                Some(ToSupervisor { order: None }) => {}
                None => {
                    if self.inbox.is_empty() && self.inbox.capacity() > READ_KEPT {
                        self.inbox = BytesMut::new();
                    }
                    return Ok(None);
                }
            }
        }
    }
}
