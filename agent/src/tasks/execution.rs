//! One process, from its start to its end, and the spool that its output goes to.
//!
//! Everything that touches a task's process or writes its spool goes through here, so that a
//! process of its own can take this over and outlive the agent.

use std::{
    future::{Future, pending},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use muster_proto::{
    ids::TaskId,
    v1::{Command, OutputStream, Reason},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};
use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::spool::Spool;
use crate::process::{Child, Exit, Host, Program, StartError, Tree};

/// How long a tree may take to end politely where nobody says otherwise.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// How long output is taken after the process ended, while something that it left running holds it open.
const DRAIN: Duration = Duration::from_secs(1);

/// Where a script names no shell.
const SHELL: &str = "/bin/sh";

/// Read at once, bytes: what a pipe holds as the kernel makes it, and once it has proved too small. A
/// chunk may have no more than the latter.
const READ: usize = 64 << 10;
const READ_LARGE: usize = 256 << 10;

/// After so much output, writing to the spool leaves the threads that others wait for: a busy disk
/// may then hold up this task only.
const BULK: u64 = 1 << 20;

/// A process that runs.
pub(crate) struct Execution {
    child: Child,
    spool: Arc<Spool>,
    began: Instant,
    timeout: Option<Duration>,
    grace: Duration,
}

/// Why a process is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    ByItself,
    TimedOut,
    Cancelled,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) cause: Cause,
    /// `None` if the kernel would not say.
    pub(crate) exit: Option<Exit>,
    pub(crate) run_time: Duration,
    /// What a reader should know about the output; usually nothing.
    pub(crate) note: &'static str,
}

/// A command as the contract has it, as a program to start.
pub(crate) fn program(task_id: TaskId, command: Command) -> Result<Program, StartError> {
    let argv = match command.script {
        Some(script) if command.argv.is_empty() => {
            let shell = if script.shell.is_empty() {
                SHELL.to_owned()
            } else {
                script.shell
            };
            vec![shell, "-c".to_owned(), script.text]
        }
        None if !command.argv.is_empty() => command.argv,
        _ => {
            return Err(StartError {
                reason: Reason::ArgumentInvalid,
                message: "a command has either argv or a script".to_owned(),
            });
        }
    };
    Ok(Program {
        task_id,
        argv,
        cwd: (!command.cwd.is_empty()).then(|| PathBuf::from(command.cwd)),
        env: command.env,
        user: (!command.user.is_empty()).then_some(command.user),
        stdin: command.stdin,
    })
}

impl Execution {
    /// Starts the process.
    pub(crate) async fn start(
        host: Arc<Host>,
        task_id: TaskId,
        command: Command,
        spool: Arc<Spool>,
    ) -> Result<Self, StartError> {
        let timeout = command.timeout.and_then(|timeout| timeout.try_into().ok());
        let grace = grace(&command);
        let program = program(task_id, command)?;
        let began = Instant::now();
        // Loading a program from a disk that hangs may take for ever, and nobody else shall wait for it.
        let child = tokio::task::spawn_blocking(move || host.start(program))
            .await
            .map_err(|_| StartError {
                reason: Reason::StartFailed,
                message: "the agent is stopping".to_owned(),
            })??;
        Ok(Self {
            child,
            spool,
            began,
            timeout,
            grace,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.main.pid()
    }

    /// When the process began, in clock ticks since boot.
    pub(crate) fn start_time(&self) -> Option<u64> {
        self.child.tree.start_time()
    }

    /// Takes the output to the spool until all is over. Once `cancel` holds something, the whole tree is
    /// ended, politely for so long.
    pub(crate) async fn finish(self, mut cancel: watch::Receiver<Option<Duration>>) -> End {
        let Self {
            child,
            spool,
            began,
            timeout,
            grace,
        } = self;
        let Child {
            tree,
            output,
            stdin,
            main,
        } = child;
        let cut = CancellationToken::new();
        let output = take_output(output, spool, &cut);
        let feed = feed(stdin);
        let deadline = async {
            match timeout {
                Some(timeout) => tokio::time::sleep_until(began + timeout).await,
                None => pending().await,
            }
        };
        tokio::pin!(output, feed, deadline);
        cancel.mark_changed();

        let (mut exit, mut run_time) = (None, Duration::ZERO);
        let (mut fed, mut output_ended) = (false, false);
        let (mut cause, mut ending): (Cause, Option<Ending>) = (Cause::ByItself, None);
        let (mut drain, mut note) = (None, "");
        while exit.is_none() || !output_ended || ending.is_some() {
            tokio::select! {
                ended = main.exited(), if exit.is_none() => {
                    exit = Some(ended.ok());
                    run_time = began.elapsed();
                    drain = Some(Box::pin(tokio::time::sleep(DRAIN)));
                }
                held_open = &mut output, if !output_ended => {
                    output_ended = true;
                    if held_open {
                        note = "the process ended, but something that it left running holds its output open; \
                                what that writes is not taken any more";
                    }
                }
                () = &mut feed, if !fed => fed = true,
                () = &mut deadline, if cause == Cause::ByItself && exit.is_none() => {
                    cause = Cause::TimedOut;
                    ending = Some(end(&tree, grace));
                }
                // A second wish with a shorter grace counts too.
                grace = wish(&mut cancel) => {
                    if cause == Cause::ByItself && exit.is_none() {
                        cause = Cause::Cancelled;
                    }
                    ending = Some(end(&tree, grace));
                }
                () = maybe(&mut ending), if ending.is_some() => ending = None,
                () = maybe(&mut drain), if drain.is_some() && ending.is_none() => {
                    drain = None;
                    cut.cancel();
                }
            }
        }
        End {
            cause,
            exit: exit.flatten(),
            run_time,
            note,
        }
    }
}

/// How long the command's tree may take to end politely.
pub(crate) fn grace(command: &Command) -> Duration {
    command
        .grace
        .and_then(|grace| grace.try_into().ok())
        .unwrap_or(GRACE)
}

type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;

fn end(tree: &Tree, grace: Duration) -> Ending {
    let tree = tree.clone();
    Box::pin(async move {
        tree.end(grace).await;
    })
}

/// The next wish to end the tree, and how politely. Never returns if nobody can wish any more.
async fn wish(cancel: &mut watch::Receiver<Option<Duration>>) -> Duration {
    while cancel.changed().await.is_ok() {
        if let Some(grace) = *cancel.borrow_and_update() {
            return grace;
        }
    }
    pending().await
}

async fn maybe<F: Future<Output = ()> + Unpin>(future: &mut Option<F>) {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Gives the process what did not fit into its pipe, and closes it.
async fn feed(stdin: Option<(pipe::Sender, bytes::Bytes)>) {
    if let Some((mut pipe, bytes)) = stdin {
        // A process that does not read all of its input is within its rights.
        let _ = pipe.write_all(&bytes).await;
    }
}

/// Takes what the process writes, until it is closed or cut. A cut still takes what is in the pipes: the
/// process wrote that while it ran, however long the spool took. Says whether something holds them open.
async fn take_output(
    [stdout, stderr]: [pipe::Receiver; 2],
    spool: Arc<Spool>,
    cut: &CancellationToken,
) -> bool {
    let mut streams = [
        Source::new(OutputStream::Stdout, stdout),
        Source::new(OutputStream::Stderr, stderr),
    ];
    let mut total = 0;
    while streams.iter().any(|source| source.open) {
        let [stdout, stderr] = &mut streams;
        // No patterns here: a branch that does not match would leave only the cut to wait for.
        let (stream, data) = tokio::select! {
            data = stdout.read(), if stdout.open => (stdout.stream, data),
            data = stderr.read(), if stderr.open => (stderr.stream, data),
            () = cut.cancelled() => break,
        };
        let Some(data) = data else { continue };
        total += data.len() as u64;
        if !append(&spool, stream, data, total).await {
            return false;
        }
    }
    for source in streams.iter_mut().filter(|source| source.open) {
        // No more than the pipe can hold: what is left running may write for ever.
        let mut left = source.capacity();
        while left > 0
            && let Some(data) = source.read_now(left)
        {
            left -= data.len();
            if !append(&spool, source.stream, data, BULK).await {
                return false;
            }
        }
    }
    streams.iter().any(|source| source.open)
}

/// Gives output to the spool; `false` if the runtime is stopping.
async fn append(spool: &Arc<Spool>, stream: OutputStream, data: bytes::Bytes, total: u64) -> bool {
    if total < BULK {
        spool.append(stream, data);
        return true;
    }
    let spool = Arc::clone(spool);
    let appended = tokio::task::spawn_blocking(move || spool.append(stream, data));
    appended.await.is_ok()
}

/// One of the pipes that a process writes to.
struct Source {
    stream: OutputStream,
    pipe: pipe::Receiver,
    buffer: BytesMut,
    size: usize,
    open: bool,
}

impl Source {
    fn new(stream: OutputStream, pipe: pipe::Receiver) -> Self {
        Self {
            stream,
            pipe,
            buffer: BytesMut::new(),
            size: READ,
            open: true,
        }
    }

    /// The next bytes, as soon as there are any; `None` at the end. Safe to drop and call again.
    async fn read(&mut self) -> Option<bytes::Bytes> {
        while self.open {
            if self.pipe.readable().await.is_err() {
                self.open = false;
                break;
            }
            // Memory is taken only once there is something to read.
            if self.buffer.capacity() < self.size / 4 {
                self.buffer.reserve(self.size);
            }
            let mut room = (&mut self.buffer).limit(READ_LARGE);
            match self.pipe.try_read_buf(&mut room) {
                Ok(0) => self.open = false,
                Ok(read) => {
                    if read >= READ && self.size == READ {
                        // The process writes faster than we read: a larger pipe saves turns.
                        self.size = READ_LARGE;
                        let _ = fcntl(&self.pipe, FcntlArg::F_SETPIPE_SZ(READ_LARGE as i32));
                    }
                    return Some(self.buffer.split().freeze());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => self.open = false,
            }
        }
        self.buffer = BytesMut::new();
        None
    }

    /// How many bytes the pipe can hold.
    fn capacity(&self) -> usize {
        let size = fcntl(&self.pipe, FcntlArg::F_GETPIPE_SZ);
        size.ok()
            .and_then(|size| size.try_into().ok())
            .unwrap_or(READ)
    }

    /// What is in the pipe now, up to so many bytes; `None` if nothing is.
    fn read_now(&mut self, most: usize) -> Option<bytes::Bytes> {
        if !self.open {
            return None;
        }
        let mut buffer = vec![0; most.min(READ_LARGE)];
        match nix::unistd::read(&self.pipe, &mut buffer) {
            Ok(read) if read > 0 => {
                buffer.truncate(read);
                Some(buffer.into())
            }
            Err(Errno::EAGAIN) => None,
            _ => {
                self.open = false;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::tasks::spool::Room;

    #[tokio::test]
    async fn what_a_process_wrote_is_taken_though_others_hold_its_output_open() {
        let directory = tempfile::tempdir().unwrap();
        let room = Arc::new(Room::new(directory.path().to_owned(), 1 << 30, 0));
        let spool = Arc::new(Spool::new(TaskId::from_bytes(&[7; 32]), room, 1 << 20));
        let pipe = || {
            let (theirs, ours) = std::io::pipe().unwrap();
            (pipe::Receiver::from_owned_fd(theirs.into()).unwrap(), ours)
        };
        let ((stdout, mut writer), (stderr, closed)) = (pipe(), pipe());
        writer.write_all(&[b'x'; 60_000]).unwrap();
        drop(closed);
        // As after a disk that kept the spool busy for longer than output is waited for.
        let cut = CancellationToken::new();
        cut.cancel();
        assert!(take_output([stdout, stderr], Arc::clone(&spool), &cut).await);
        assert_eq!(spool.produced().stdout, 60_000);
    }
}
