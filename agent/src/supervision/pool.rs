//! The supervisors that an agent has at hand, so that a task need not wait for one.

use std::{
    io,
    io::IoSlice,
    mem,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixStream as StdStream,
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
    unistd::Pid,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{ARGUMENT, Link};
use crate::process::{self, Host};

/// Supervisors that wait for a task though nothing has happened for long; one of them has never had any.
const SPARE: usize = 2;
const SPARE_NEW: usize = 1;

/// So often a supervisor is asked for before it is said that there is none.
const TRIES: usize = 3;

/// How often the number that is kept is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A second remembers so much of the demand of the one before, percent: so what a burst needed is gone within
/// some ten seconds.
const REMEMBERED: usize = 70;

/// Gives out supervisors, and takes them back.
pub(crate) struct Pool {
    host: Arc<Host>,
    program: PathBuf,
    directory: PathBuf,
    // Plain locks: held to look and to set, and while the nursery is started or asked.
    inner: Mutex<Inner>,
    nursery: Mutex<Option<Nursery>>,
    short: Notify,
}

#[derive(Default)]
struct Inner {
    /// Idle supervisors that had a task before. The one that was used last is used next.
    used: Vec<Link>,
    /// Idle supervisors that never had a task.
    new: Vec<Link>,
    demand: Demand,
}

impl Inner {
    fn idle(&self) -> usize {
        self.used.len() + self.new.len()
    }

    /// Whether another one should be made.
    fn lacks(&self) -> bool {
        self.idle() < SPARE || self.new.len() < SPARE_NEW
    }

    /// Takes out those that are more than `wanted`, those that have waited longest first.
    fn surplus(&mut self, wanted: usize) -> Vec<Link> {
        let mut surplus = self.idle().saturating_sub(wanted);
        let new = surplus.min(self.new.len().saturating_sub(SPARE_NEW));
        let mut leaving: Vec<Link> = self.new.drain(..new).collect();
        surplus -= new;
        leaving.extend(self.used.drain(..surplus.min(self.used.len())));
        leaving
    }
}

/// How many supervisors were in use at once. Pure.
#[derive(Debug, Default)]
struct Demand {
    in_use: usize,
    peak: usize,
    remembered: usize,
}

impl Demand {
    fn taken(&mut self) {
        self.in_use += 1;
        self.peak = self.peak.max(self.in_use);
    }

    fn returned(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }

    /// How many should be idle.
    fn idle(&self) -> usize {
        self.remembered.max(self.peak).saturating_sub(self.in_use) + SPARE
    }

    /// A while has passed.
    fn pass(&mut self) {
        self.remembered = self.peak.max(self.remembered * REMEMBERED / 100);
        self.peak = self.in_use;
    }
}

struct Nursery {
    pid: Pid,
    socket: StdStream,
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // It ends when the socket is closed.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        process::leave_helper(self.pid);
    }
}

impl Pool {
    /// Starts a nursery, which is the program at this path; sockets go to this directory.
    pub(crate) fn open(host: Arc<Host>, program: PathBuf, directory: PathBuf) -> io::Result<Self> {
        let pool = Self {
            host,
            program,
            directory,
            inner: Mutex::default(),
            nursery: Mutex::new(None),
            short: Notify::new(),
        };
        *pool.nursery.lock() = Some(pool.start_nursery()?);
        pool.short.notify_one();
        Ok(pool)
    }

    fn start_nursery(&self) -> io::Result<Nursery> {
        let (ours, theirs) = StdStream::pair()?;
        let pid =
            self.host
                .start_helper(&self.program, ARGUMENT, &self.directory, theirs.as_fd())?;
        tracing::debug!(pid = pid.as_raw(), "started a nursery");
        Ok(Nursery { pid, socket: ours })
    }

    /// A supervisor that waits for a task, if there is one.
    pub(crate) fn take(&self) -> Option<Link> {
        self.give_out(|inner| inner.used.pop().or_else(|| inner.new.pop()))
    }

    /// One that never had a task, if there is one.
    pub(crate) fn take_new(&self) -> Option<Link> {
        self.give_out(|inner| inner.new.pop())
    }

    fn give_out(&self, choose: impl FnOnce(&mut Inner) -> Option<Link>) -> Option<Link> {
        let mut inner = self.inner.lock();
        let link = choose(&mut inner);
        if link.is_some() {
            inner.demand.taken();
        }
        if inner.lacks() {
            self.short.notify_one();
        }
        link
    }

    /// A supervisor that is made for the task.
    pub(crate) async fn fresh(&self) -> io::Result<Link> {
        let link = self.make().await?;
        self.inner.lock().demand.taken();
        Ok(link)
    }

    async fn make(&self) -> io::Result<Link> {
        let mut tried = 0;
        loop {
            let (ours, theirs) = StdStream::pair()?;
            self.ask(&theirs)?;
            drop(theirs);
            tried += 1;
            match Link::begin(ours).await {
                // The nursery was killed before it came to this, or the supervisor as it began.
                Err(error) if is_gone(&error) && tried < TRIES => {}
                done => return done,
            }
        }
    }

    /// Hands an end of a connection to the nursery, and starts another one if it is gone.
    fn ask(&self, connection: &StdStream) -> io::Result<()> {
        let mut nursery = self.nursery.lock();
        if let Some(nursery) = &*nursery
            && send(&nursery.socket, connection).is_ok()
        {
            return Ok(());
        }
        tracing::warn!("the nursery of supervisors is gone; starting another one");
        *nursery = None;
        let new = self.start_nursery()?;
        send(&new.socket, connection)?;
        *nursery = Some(new);
        Ok(())
    }

    /// A supervisor waits for a task again.
    pub(crate) fn put(&self, link: Link) {
        let mut inner = self.inner.lock();
        inner.demand.returned();
        match link.is_new() {
            true => inner.new.push(link),
            false => inner.used.push(link),
        }
    }

    /// A supervisor of an earlier agent is in use.
    pub(crate) fn adopted(&self) {
        self.inner.lock().demand.taken();
    }

    /// A supervisor that was given out does not come back.
    pub(crate) fn lost(&self) {
        self.inner.lock().demand.returned();
    }

    /// Keeps as many supervisors as were lately needed, until told to stop.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.short.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => self.shrink(),
                () = stop.cancelled() => return,
            }
            while self.inner.lock().lacks() {
                match self.make().await {
                    Ok(link) => self.inner.lock().new.push(link),
                    Err(error) => {
                        tracing::warn!(%error, "no supervisor could be started: {error}");
                        break;
                    }
                }
            }
        }
    }

    fn shrink(&self) {
        let mut inner = self.inner.lock();
        let wanted = inner.demand.idle();
        inner.demand.pass();
        // Each leaves when its connection closes.
        let leaving = inner.surplus(wanted);
        drop(inner);
        drop(leaving);
    }

    /// Lets go of all that wait for a task.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        let leaving = (mem::take(&mut inner.used), mem::take(&mut inner.new));
        drop(inner);
        drop(leaving);
        *self.nursery.lock() = None;
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Sends one byte and a connection.
fn send(nursery: &StdStream, connection: &StdStream) -> io::Result<()> {
    let files = [connection.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&files)];
    let byte = [IoSlice::new(&[0])];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(nursery.as_raw_fd(), &byte, &rights, flags, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_burst_needed_is_kept_for_some_seconds() {
        let mut demand = Demand::default();
        assert_eq!(demand.idle(), SPARE);
        for _ in 0..32 {
            demand.taken();
        }
        assert_eq!(demand.idle(), SPARE);
        for _ in 0..32 {
            demand.returned();
        }
        assert_eq!(demand.idle(), 32 + SPARE);
        demand.pass();
        demand.pass();
        assert!(demand.idle() > 20);
        for _ in 0..12 {
            demand.pass();
        }
        assert_eq!(demand.idle(), SPARE);
    }
}
