//! One task below a supervisor: its process, what it writes, its time, its end.

mod end;
mod news;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{InputResult, task_state},
    ids::TaskId,
    v1::{Confinement, InputStatus, Mode, task_input::Kind},
};
use nix::unistd::Pid;

use super::{
    answers::{Answers, SHORT},
    begin,
    input::Input,
    outcome::Pipe,
    output::{Limits, Output},
    peer::Peer,
    source::Source,
};
use crate::{
    process::{Child, Ending, Exit, Group, Host, StartError, Streams, Tree},
    spool::Keep,
    supervision::{
        protocol::{Cause, Ended, NotStarted, Start, Started},
        record::Left,
    },
};

/// How long output is taken after the process ended, while something that it left running holds it open.
const DRAIN: Duration = Duration::from_secs(1);

/// An agent that takes nothing for so long, while more waits than fits memory, is not waited for any longer.
const STALL: Duration = Duration::from_millis(250);

/// A process that starts and ends within this time is told in one go, which spares the agent a turn. Output is never
/// held back.
const TOGETHER: Duration = Duration::from_millis(2);

/// A task that ended is kept for an agent so long; less once files speak for it.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
const RETENTION_RECORDED: Duration = Duration::from_secs(60);

const LEFT_RUNNING: &str = "the process ended, but something that it left running holds its output open; \
                            what that writes is not taken any more";

/// A task, from its start until the agent has written down its end.
pub(super) struct Running {
    pub(super) task_id: TaskId,
    began: Instant,
    started: Option<Started>,
    not_started: Option<NotStarted>,
    /// Until when the start waits to be said with what follows it; `None` once it is said.
    unsaid: Option<Instant>,
    /// The process while it runs.
    leader: Option<Pid>,
    tree: Tree,
    /// Ends with the task.
    group: Option<Group>,
    pub(super) sources: Vec<Source>,
    /// What a worker says of its work.
    pub(super) outcome: Option<Pipe>,
    /// Nothing else is ever done by this process.
    is_work: bool,
    pub(super) input: Input,
    answers: Answers,
    output: Output,
    exit: Option<Exit>,
    run_time: Duration,
    cause: Cause,
    timeout: Option<Duration>,
    grace: Duration,
    ending: Option<Ending>,
    drain: Option<Instant>,
    /// Since when the agent takes nothing of what waits.
    stalled: Option<Instant>,
    /// How much its socket had taken when that was last looked at.
    written: u64,
    note: &'static str,
    ended: Option<(Ended, Instant)>,
    end_said: bool,
    recorded: bool,
    /// What is left of the task would outlive this process.
    safe: bool,
}

impl Running {
    /// Starts the process.
    pub(super) fn start(host: &Host, task_id: TaskId, start: Start) -> Self {
        let began = Instant::now();
        let limits = Limits {
            directory: PathBuf::from("."),
            keep: Keep {
                bytes: start.spool_bytes,
                newest: start.keep_newest,
            },
            free_percent: start.spool_free_percent,
            all: start
                .spools_bytes
                .filter(|_| start.block_at_bytes.is_none()),
            block_at: start.block_at_bytes,
        };
        let mut running = Self {
            task_id,
            began,
            started: None,
            not_started: None,
            unsaid: None,
            leader: None,
            tree: Tree::of_task(task_id),
            group: None,
            sources: Vec::new(),
            outcome: None,
            is_work: false,
            input: Input::new(None, false, &Bytes::new(), false),
            answers: Answers::default(),
            output: Output::new(task_id, limits),
            exit: None,
            run_time: Duration::ZERO,
            cause: Cause::ByItself,
            timeout: start.timeout_ms.map(Duration::from_millis),
            grace: Duration::from_millis(start.grace_ms),
            ending: None,
            drain: None,
            stalled: None,
            written: 0,
            note: "",
            ended: None,
            end_said: false,
            recorded: false,
            safe: false,
        };
        let (stdin, open) = (start.stdin.clone(), start.open_stdin);
        running.is_work = start.worker.is_some();
        match begin::begin(host, task_id, start) {
            Ok(child) => running.take(child, &stdin, open),
            Err(StartError { reason, message }) => {
                running.not_started = Some(NotStarted {
                    reason: reason.into(),
                    message,
                });
            }
        }
        running
    }

    fn take(&mut self, child: Child, stdin: &Bytes, open: bool) {
        self.unsaid = Some(Instant::now() + TOGETHER);
        self.leader = Some(child.pid);
        self.started = Some(Started {
            started: task_state::Started {
                time: Some(SystemTime::now().into()),
                pid: child.pid.as_raw(),
                // Said in so many words: what is not said is what an older agent does not tell.
                confinement: child.confinement.or_else(|| {
                    Some(Confinement {
                        mode: Mode::Unrestricted.into(),
                        ..Confinement::default()
                    })
                }),
            },
            start_time: child.tree.start_time(),
        });
        self.tree = child.tree;
        self.group = child.group;
        self.outcome = child.outcome.map(Pipe::new);
        match child.streams {
            Streams::Pipes {
                stdin: file,
                stdout,
                stderr,
            } => {
                self.input = Input::new(file, false, stdin, open);
                self.sources = vec![Source::new(0, stdout), Source::new(1, stderr)];
            }
            Streams::Ours => {}
            Streams::Terminal { master } => {
                // Without a second descriptor nothing can be put in, and the process runs all the same.
                self.input = Input::new(master.try_clone().ok(), true, stdin, true);
                self.sources = vec![Source::new(2, master)];
            }
        }
    }

    /// Whether the process could not be started.
    pub(super) fn is_refused(&self) -> bool {
        self.not_started.is_some()
    }

    /// Another agent goes on, and has this much of the output.
    pub(super) fn resume(&mut self, reached: [i64; 3]) {
        self.output.resume(reached);
        self.end_said = false;
    }

    /// The agent has this much of the output.
    pub(super) fn taken(&mut self, reached: [i64; 3]) {
        self.output.taken(reached);
        self.stalled = None;
    }

    /// Ends the tree, politely for so long. A second wish with a shorter grace counts too.
    pub(super) fn cancel(&mut self, grace: Duration) {
        if self.ended.is_some() || self.started.is_none() {
            return;
        }
        if self.cause == Cause::ByItself && self.exit.is_none() {
            self.cause = Cause::Cancelled;
        }
        self.ending = Some(self.tree.begin_end(grace));
    }

    /// Puts something into the process. What became of it is said in a moment.
    pub(super) fn put(&mut self, input: muster_proto::agent::v1::Input) {
        let is_short = matches!(
            input.input.as_ref().and_then(|input| input.kind.as_ref()),
            Some(Kind::Data(data)) if data.len() <= SHORT
        );
        let status = self.input.put(&input.write_id, input.input, self.leader);
        let answer = InputResult {
            write_id: input.write_id,
            status: status.into(),
        };
        let may_wait = is_short && status == InputStatus::Accepted;
        self.answers.push(answer, may_wait, Instant::now());
    }

    /// A child of this supervisor has ended.
    pub(super) fn child_ended(&mut self, pid: Pid, exit: Exit) {
        if self.leader == Some(pid) {
            self.leader = None;
            self.exit = Some(exit);
            self.run_time = self.began.elapsed();
            self.drain = Some(Instant::now() + DRAIN);
        }
    }

    /// Whether output may be read now: not while the last is on its way to an agent, so that what comes meanwhile
    /// is read in one piece.
    pub(super) fn may_read(&self, peer: Option<&Peer>) -> bool {
        let goes_on = self.output.is_spilled() || peer.is_none_or(|peer| !peer.is_sending());
        goes_on && self.output.has_room()
    }

    /// Reads one of the sources, which has something.
    pub(super) fn read(&mut self, index: usize) {
        let source = &mut self.sources[index];
        if let Some(data) = source.read() {
            self.output.append(source.stream, data);
        }
    }

    /// When [`progress`](Self::progress) is due though nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let timeout = self
            .timeout
            .filter(|_| self.exit.is_none() && self.cause == Cause::ByItself);
        [
            timeout.and_then(|timeout| self.began.checked_add(timeout)),
            self.ending.as_ref().map(Ending::next),
            self.drain.filter(|_| self.ending.is_none()),
            self.stalled.map(|since| since + STALL),
            self.unsaid,
            self.answers.due(),
            self.over_since().map(|since| since + self.retention()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due, and says what can be said. `false` once nobody has asked for the task in all its time.
    pub(super) fn progress(&mut self, peer: Option<&mut Peer>) -> bool {
        let now = Instant::now();
        self.keep_time(now);
        if self.ended.is_none() && self.is_over() {
            self.input.close();
            self.clear_group();
            self.drain = None;
            self.ended = Some((self.end(), now));
        }
        match peer {
            Some(peer) => {
                self.say(peer, now);
                self.watch(peer, now);
                true
            }
            None => {
                // The next agent hears it first.
                self.unsaid = None;
                self.answers.forget();
                self.stalled = None;
                self.wait_for_an_agent(now)
            }
        }
    }

    /// An agent that does not move while something waits for it is not waited for any longer.
    fn watch(&mut self, peer: &Peer, now: Instant) {
        let moved = std::mem::replace(&mut self.written, peer.written()) != peer.written();
        if moved || self.may_read(Some(peer)) {
            self.stalled = None;
        }
        if self.may_read(Some(peer)) || self.output.may_block() {
            return;
        }
        if *self.stalled.get_or_insert(now) + STALL <= now {
            self.output.spill();
            self.stalled = None;
        }
    }

    fn keep_time(&mut self, now: Instant) {
        if let Some(timeout) = self.timeout
            && self.exit.is_none()
            && self.cause == Cause::ByItself
            && self.started.is_some()
            && now.duration_since(self.began) >= timeout
        {
            self.cause = Cause::TimedOut;
            self.ending = Some(self.tree.begin_end(self.grace));
        }
        if let Some(ending) = &mut self.ending
            && ending.next() <= now
            && ending.look()
        {
            self.ending = None;
        }
        if self.ending.is_none() && self.drain.is_some_and(|drain| drain <= now) {
            self.drain = None;
            for source in &mut self.sources {
                let output = &mut self.output;
                source.drain(|stream, data| output.append(stream, data));
                if source.is_open() {
                    self.note = LEFT_RUNNING;
                    source.close();
                }
            }
            if let Some(outcome) = &mut self.outcome {
                outcome.finish();
            }
        }
    }

    /// What hides from a search of the process table is in the group, if there is one.
    fn clear_group(&self) {
        if self.cause != Cause::ByItself
            && let Some(group) = &self.group
        {
            group.kill();
        }
    }

    fn retention(&self) -> Duration {
        if self.safe {
            RETENTION_RECORDED
        } else {
            RETENTION
        }
    }

    fn over_since(&self) -> Option<Instant> {
        let refused = self.not_started.as_ref().map(|_| self.began);
        self.ended.as_ref().map(|(_, at)| *at).or(refused)
    }

    /// The agent has all of it. Says whether the supervisor has to leave, because something goes on below it.
    pub(super) fn forget(mut self) -> bool {
        self.output.forget();
        if self.recorded {
            Left::new(Path::new("."), self.task_id).forget();
        }
        self.is_work || self.ended.is_some_and(|(ended, _)| ended.leaves)
    }
}
