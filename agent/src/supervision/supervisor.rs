//! The process that holds a task. One thread that waits for whatever comes first: the agent, the process, the
//! process's output, or a moment.
//!
//! It is the parent of the task's process and of everything that this leaves behind. It ends once it has neither a
//! task nor an agent.

mod answers;
mod begin;
mod input;
mod outcome;
mod output;
mod peer;
mod running;
mod source;

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
        time::TimeSpec,
    },
    unistd::geteuid,
};

use self::{outcome::Pipe, peer::Peer, running::Running};
use super::{
    SupervisorId,
    protocol::{Hello, News, Order, Start, VERSION},
};
use crate::{
    actions, failpoint,
    process::{Cell, Exit, Host},
};

/// Serves the agent at the other end, and others after it, until there is nothing to serve.
pub(super) fn run(host: Host, connection: OwnedFd) -> ExitCode {
    let _ = prctl::set_name(c"muster-task");
    let mut supervisor = match Supervisor::new(host, connection) {
        Ok(supervisor) => supervisor,
        // The connection closes, and so the agent knows.
        Err(_) => return ExitCode::FAILURE,
    };
    let served = supervisor.serve();
    let _ = fs::remove_file(&supervisor.socket);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Supervisor {
    host: Host,
    id: SupervisorId,
    socket: PathBuf,
    listener: UnixListener,
    children: SignalFd,
    agent: Option<Peer>,
    task: Option<Running>,
    /// It has had a task.
    served: bool,
}

/// What a poll can find.
#[derive(Clone, Copy)]
enum What {
    Agent,
    Another,
    Children,
    Input,
    Source(usize),
    Outcome,
}

/// All that a supervisor ever waits for.
const FILES: usize = 7;

impl Supervisor {
    fn new(host: Host, connection: OwnedFd) -> io::Result<Self> {
        // What a task leaves behind stays findable, and is cleared away here.
        prctl::set_child_subreaper(true)?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&signals, flags)?;

        let id = SupervisorId::ours();
        if let Some(cell) = Cell::ours() {
            // Without its label it is of no use, and no harm.
            let _ = cell.label(&id.file_name());
        }
        let socket = id.file_name();
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = listen(&socket);
        umask(before);
        let listener = listener?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;

        let mut agent = Peer::new(connection.into(), true)?;
        agent.say(hello(id, None));
        agent.flush()?;
        Ok(Self {
            host,
            id,
            socket,
            listener,
            children,
            agent: Some(agent),
            task: None,
            served: false,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        while self.agent.is_some() || self.task.is_some() {
            let found = self.wait()?;
            for (what, seen) in found {
                self.handle(what, seen);
            }
            if let Some(task) = &mut self.task
                && !task.progress(self.agent.as_mut())
            {
                return Ok(());
            }
            self.flush();
        }
        Ok(())
    }

    /// Waits until something can be done.
    fn wait(&self) -> io::Result<Vec<(What, PollFlags)>> {
        let (mut whats, mut files) = (Vec::with_capacity(FILES), Vec::with_capacity(FILES));
        let mut add = |what, file, flags| {
            whats.push(what);
            files.push(PollFd::new(file, flags));
        };
        add(What::Another, self.listener.as_fd(), PollFlags::POLLIN);
        add(What::Children, self.children.as_fd(), PollFlags::POLLIN);
        if let Some(task) = &self.task {
            if let Some(file) = task.input.waits_for() {
                add(What::Input, file, PollFlags::POLLOUT);
            }
            if let Some(file) = task.outcome.as_ref().and_then(Pipe::file) {
                add(What::Outcome, file, PollFlags::POLLIN);
            }
            if task.may_read(self.agent.as_ref()) {
                for (index, source) in task.sources.iter().enumerate() {
                    if let Some(file) = source.file() {
                        add(What::Source(index), file, PollFlags::POLLIN);
                    }
                }
            }
        }
        // Last: what it says may change what the others mean.
        if let Some(agent) = &self.agent {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, agent.is_sending());
            add(What::Agent, agent.file(), flags);
        }
        let timeout = self.task.as_ref().and_then(Running::due).map(until);
        match ppoll(&mut files, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let seen = files
            .iter()
            .map(|file| file.revents().unwrap_or(PollFlags::empty()));
        let found = whats.into_iter().zip(seen);
        Ok(found.filter(|(_, seen)| !seen.is_empty()).collect())
    }

    fn handle(&mut self, what: What, seen: PollFlags) {
        match what {
            What::Agent => self.hear(),
            What::Another => self.accept(),
            What::Children => self.reap(),
            What::Input => {
                if let Some(task) = &mut self.task {
                    task.input.feed();
                }
            }
            What::Outcome => {
                if let Some(outcome) = self.task.as_mut().and_then(|task| task.outcome.as_mut()) {
                    outcome.read();
                }
            }
            What::Source(index) => {
                if let Some(task) = &mut self.task
                    && index < task.sources.len()
                {
                    match seen.contains(PollFlags::POLLIN) {
                        true => task.read(index),
                        false => task.sources[index].close(),
                    }
                }
            }
        }
    }

    /// Does what the agent says.
    fn hear(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let open = agent.read();
        loop {
            let Some(agent) = &mut self.agent else { return };
            match agent.next() {
                Ok(Some(order)) => self.obey(order),
                Ok(None) => break,
                Err(_) => {
                    self.agent = None;
                    return;
                }
            }
        }
        if !open {
            self.agent = None;
        }
    }

    fn obey(&mut self, order: Order) {
        let Some(agent) = &mut self.agent else { return };
        match (order, &mut self.task) {
            (Order::Start(start), None) => self.start(start),
            (Order::Resume(resume), task) => {
                agent.resumed = true;
                if let Some(task) = task {
                    task.resume(resume.reached.streams());
                }
            }
            (Order::Taken(reached), Some(task)) => task.taken(reached.streams()),
            (Order::Cancel(cancel), Some(task)) => {
                task.cancel(Duration::from_millis(cancel.grace_ms));
            }
            (Order::Input(input), Some(task)) => {
                task.put(input);
            }
            (Order::Release(_), Some(_)) => {
                if let Some(task) = self.task.take()
                    && task.forget()
                {
                    self.agent = None;
                }
            }
            // Said of a task that is gone, or a second start, which only an agent out of its mind asks for.
            _ => {}
        }
    }

    fn start(&mut self, start: Start) {
        let Some(agent) = &mut self.agent else { return };
        let task_id = start.task_id.parse().ok();
        let Some(task_id) = task_id.filter(|_| begin::makes_sense(&start)) else {
            agent.say(begin::refused());
            return;
        };
        if std::mem::replace(&mut self.served, true) && start.worker.is_some() {
            agent.say(begin::used());
            return;
        }
        let mut task = Running::start(&self.host, task_id, start);
        if task.is_refused() {
            task.introduce(agent);
        }
        self.task = Some(task);
    }

    /// Takes another agent: the newest counts. What the last one had said is done before.
    fn accept(&mut self) {
        let Ok((socket, _)) = self.listener.accept() else {
            return;
        };
        let user = getsockopt(&socket, PeerCredentials).map(|peer| peer.uid());
        if !user.is_ok_and(|user| user == geteuid().as_raw() || user == 0) {
            return;
        }
        self.hear();
        let Ok(mut agent) = Peer::new(socket, false) else {
            return;
        };
        agent.say(hello(self.id, self.task.as_ref()));
        if let Some(task) = &mut self.task {
            task.introduce(&mut agent);
        }
        self.agent = Some(agent);
    }

    /// Clears away children that have ended.
    fn reap(&mut self) {
        // One stands for all that have ended so far.
        let _ = self.children.read_signal();
        while let Some((pid, exit)) = Exit::next() {
            if let Some(task) = &mut self.task {
                task.child_ended(pid, exit);
            }
        }
    }

    fn flush(&mut self) {
        // Once something was sent, there may be room for more.
        while let Some(agent) = &mut self.agent {
            if agent.flush().is_err() {
                self.agent = None;
                if let Some(task) = &mut self.task {
                    task.progress(None);
                }
                return;
            }
            let Some(task) = &mut self.task else { return };
            if agent.is_sending() {
                return;
            }
            task.progress(Some(agent));
            if !agent.is_sending() {
                return;
            }
        }
    }
}

fn listen(path: &PathBuf) -> io::Result<UnixListener> {
    // One of an earlier boot may have had the same name.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    // The directory is 0700 already, so there is no moment at which another could connect.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn hello(id: SupervisorId, task: Option<&Running>) -> News {
    News::Hello(Hello {
        version: VERSION,
        pid: id.pid,
        start_time: id.start_time,
        task_id: task.map_or_else(String::new, |task| task.task_id.to_string()),
        workers: match failpoint::is_at("supervisor-is-old") {
            true => Vec::new(),
            false => actions::workers().map(str::to_owned).collect(),
        },
    })
}

/// How long to wait.
fn until(moment: Instant) -> TimeSpec {
    moment.saturating_duration_since(Instant::now()).into()
}
