//! The agent's end of a connection to a supervisor.

use std::{
    io,
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream as StdStream},
    path::Path,
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    SupervisorId,
    protocol::{
        self, Hello, News, OLDEST, Order, Reached, Release, Resume, ToAgent, ToSupervisor, VERSION,
    },
};

/// Read at once, bytes: what most say fits the first; output needs the second.
const READ: usize = 4 << 10;
const READ_LARGE: usize = 64 << 10;

/// Bytes of orders that may wait for the socket before more are put off.
const WAITING_MAX: usize = 256 << 10;

/// How often is looked for room where it cannot be waited for.
const ROOM_PAUSE: Duration = Duration::from_millis(10);

/// How long a supervisor may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Why a supervisor of an earlier agent is not spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// It cannot be reached, or says nothing that makes sense.
    #[error(transparent)]
    Unreachable(#[from] io::Error),
    /// It says less than this agent needs.
    #[error("it speaks version {0}, and this agent none before {OLDEST}")]
    TooOld(u32),
}

/// A connection to a supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    id: SupervisorId,
    /// Waited on for what comes, and nothing else: a socket that is waited on for room too wakes the agent each time
    /// that the supervisor has read something.
    stream: AsyncFd<StdStream>,
    /// The same socket, while orders wait for room.
    room: Option<AsyncFd<StdStream>>,
    inbox: BytesMut,
    outbox: BytesMut,
    /// The last read was a large one.
    is_busy: bool,
    /// It was started by an earlier agent: it leaves once its task is done.
    adopted: bool,
    /// It has been given a task, and that was a worker's.
    served: bool,
    works: bool,
    /// The kinds of action that it has workers for.
    workers: Vec<String>,
}

impl Link {
    /// To a supervisor that is about to begin.
    pub(super) async fn begin(stream: StdStream) -> io::Result<Self> {
        let (link, _) = Self::hear_hello(stream, false).await?;
        Ok(link)
    }

    /// To a supervisor of an earlier agent. Says which task it holds, if any.
    pub(crate) async fn adopt(
        directory: &Path,
        id: SupervisorId,
    ) -> Result<(Self, String), AdoptError> {
        // The path of the directory may be longer than a socket's may be.
        let directory = std::fs::File::open(directory)?;
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(id.file_name());
        let stream = StdStream::connect(path)?;
        let (link, hello) = Self::hear_hello(stream, true).await?;
        if hello.version < OLDEST {
            return Err(AdoptError::TooOld(hello.version));
        }
        Ok((link, hello.task_id))
    }

    async fn hear_hello(stream: StdStream, adopted: bool) -> io::Result<(Self, Hello)> {
        stream.set_nonblocking(true)?;
        let mut link = Self {
            id: SupervisorId {
                pid: 0,
                start_time: 0,
            },
            stream: watched(stream, Interest::READABLE)?,
            room: None,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            is_busy: false,
            adopted,
            served: false,
            works: false,
            workers: Vec::new(),
        };
        match tokio::time::timeout(HELLO_LIMIT, link.next()).await?? {
            News::Hello(hello) => {
                link.workers.clone_from(&hello.workers);
                link.id = SupervisorId {
                    pid: hello.pid,
                    start_time: hello.start_time,
                };
                Ok((link, hello))
            }
            _ => Err(io::Error::other("a supervisor did not say who it is")),
        }
    }

    /// Who is at the other end.
    pub(crate) fn id(&self) -> SupervisorId {
        self.id
    }

    /// Whether it can be used for another task.
    pub(crate) fn is_reusable(&self) -> bool {
        !self.adopted && !self.works
    }

    /// Sends an order as far as the socket takes it; the rest goes with [`next`](Self::next). An error is a
    /// supervisor that is gone.
    pub(crate) fn send(&mut self, order: Order) -> io::Result<()> {
        protocol::put(&mut self.outbox, &ToSupervisor { order: Some(order) });
        self.flush()
    }

    /// Whether it has never had a task.
    pub(crate) fn is_new(&self) -> bool {
        !self.served && !self.adopted
    }

    /// Whether it has a worker for this kind of action, and may fork it.
    pub(crate) fn can_work(&self, kind: &str) -> bool {
        self.is_new() && self.workers.iter().any(|known| known == kind)
    }

    /// Gives it a task: a start, as a frame. `is_work`: that of a worker.
    pub(crate) fn start(&mut self, frame: &[u8], is_work: bool) -> io::Result<()> {
        self.served = true;
        self.works = is_work;
        self.outbox.extend_from_slice(frame);
        self.flush()
    }

    /// Goes on with a task of an earlier agent, of whose output there is this much.
    pub(crate) fn resume(&mut self, reached: [i64; 3]) -> io::Result<()> {
        self.send(Order::Resume(Resume {
            version: VERSION,
            reached: Reached::new(reached),
        }))
    }

    /// The end of the task is in the journal.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        self.send(Order::Release(Release {}))
    }

    /// Whether more orders should wait.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len() > WAITING_MAX
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            match self.stream.get_ref().write(&self.outbox) {
                Ok(written) => self.outbox.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outbox = BytesMut::new();
        Ok(())
    }

    /// The next thing that the supervisor says. An error is a supervisor that is gone. Safe to drop and call
    /// again.
    pub(crate) async fn next(&mut self) -> io::Result<News> {
        loop {
            match protocol::take::<ToAgent>(&mut self.inbox)? {
                Some(ToAgent { news: Some(news) }) => return Ok(news),
                // A later supervisor may say what this agent does not know.
                Some(ToAgent { news: None }) => continue,
                None => {}
            }
            if self.inbox.is_empty() {
                // Memory is taken only once there is something to read.
                self.inbox = BytesMut::new();
            }
            let waits = !self.outbox.is_empty();
            if !waits {
                self.room = None;
            } else if self.room.is_none() {
                let socket = self.stream.get_ref().try_clone();
                let room = socket.and_then(|socket| watched(socket, Interest::WRITABLE));
                self.room = room.ok();
            }
            tokio::select! {
                ready = self.stream.readable() => {
                    let wanted = if self.is_busy { READ_LARGE } else { READ };
                    let wanted = wanted.max(protocol::missing(&self.inbox));
                    let read = read(self.stream.get_ref(), &mut self.inbox, wanted);
                    // Less than was asked for is all that there was.
                    if read.as_ref().map_or(true, |read| *read < wanted) {
                        ready?.clear_ready();
                    }
                    match read {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(read) => self.is_busy = read >= READ,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                ready = has_room(self.room.as_ref()), if waits => {
                    ready?;
                    // The last words of a supervisor that went are heard first.
                    if self.flush().is_err() {
                        self.outbox = BytesMut::new();
                    }
                }
            }
        }
    }
}

#[allow(unsafe_code)] // There is no other way to wait for one direction only.
fn watched(socket: StdStream, interest: Interest) -> io::Result<AsyncFd<StdStream>> {
    // SAFETY: the socket owns its descriptor, names the same one at each call, and closes it only when it is dropped,
    // which what is made here does after it has stopped waiting.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    watched.map_err(|error| error.into_parts().1)
}

/// Reads at most so much.
fn read(mut socket: &StdStream, inbox: &mut BytesMut, most: usize) -> io::Result<usize> {
    let before = inbox.len();
    inbox.resize(before + most, 0);
    let read = loop {
        match socket.read(&mut inbox[before..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    inbox.truncate(before + read.as_ref().unwrap_or(&0));
    read
}

/// Returns once the socket may have room.
async fn has_room(room: Option<&AsyncFd<StdStream>>) -> io::Result<()> {
    match room {
        Some(room) => room.writable().await?.clear_ready(),
        // That this process has no descriptor left says nothing about the supervisor.
        None => tokio::time::sleep(ROOM_PAUSE).await,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::{super::protocol::Cancel, *};

    /// Set where the test is the only one of its process.
    const ALONE: &str = "MUSTER_TEST_ALONE";

    #[test]
    fn orders_wait_for_room_without_a_descriptor_too() {
        if std::env::var_os(ALONE).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            return runtime.unwrap().block_on(orders_wait_for_room());
        }
        // The limit of a process is for all of its threads.
        #[allow(clippy::disallowed_methods)] // the test needs a process of its own
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "supervision::link::tests::orders_wait_for_room_without_a_descriptor_too";
        let alone = alone.args(["--exact", name]).env(ALONE, "1").output();
        let alone = alone.unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(
            alone.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    async fn orders_wait_for_room() {
        let (ours, mut theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut link = Link {
            id: SupervisorId {
                pid: 0,
                start_time: 0,
            },
            stream: watched(ours, Interest::READABLE).unwrap(),
            room: None,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            is_busy: false,
            adopted: false,
            served: false,
            works: false,
            workers: Vec::new(),
        };
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
        assert!(theirs.try_clone().is_err(), "no descriptor is left");
        let mut said = 0;
        while !link.is_full() {
            link.send(Order::Cancel(Cancel { grace_ms: 1 })).unwrap();
            said += 1;
        }
        // It hears all of them, and then says something.
        let hearing = std::thread::spawn(move || {
            let (mut inbox, mut heard) = (BytesMut::new(), 0);
            while heard < said {
                assert!(read(&theirs, &mut inbox, READ_LARGE).unwrap() > 0);
                while let Some(ToSupervisor { order: Some(_) }) =
                    protocol::take(&mut inbox).unwrap()
                {
                    heard += 1;
                }
            }
            let mut news = BytesMut::new();
            let hello = News::Hello(Hello::default());
            protocol::put(&mut news, &ToAgent { news: Some(hello) });
            theirs.write_all(&news).unwrap();
            theirs
        });
        let news = tokio::time::timeout(Duration::from_secs(10), link.next()).await;
        assert!(matches!(news, Ok(Ok(News::Hello(_)))), "{news:?}");
        hearing.join().unwrap();
    }
}
