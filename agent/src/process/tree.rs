//! Everything that came of a process: its session, its descendants, and whatever carries its task in
//! the environment.

use std::{
    collections::HashSet,
    fs, io,
    time::{Duration, Instant},
};

use muster_proto::ids::TaskId;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::TASK_MARKER;

/// How often a tree that is being ended is looked at: soon at first, as most end at once.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_LAST: Duration = Duration::from_millis(200);

/// A line of the process table, bytes: some fifty numbers and a name.
const LINE_MAX: usize = 1536;

/// A process and what it started.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    root: Option<(Pid, u64)>,
    marker: Vec<u8>,
    /// All children of this process belong to it.
    ours: bool,
}

/// A line of the process table.
struct Entry {
    pid: Pid,
    parent: Pid,
    group: Pid,
    session: Pid,
    gone: bool,
    stopped: bool,
    start_time: u64,
}

/// When a process began, in clock ticks since boot; with its id it names a process for ever.
/// `None` if there is no such process.
pub(crate) fn start_time(pid: Pid) -> Option<u64> {
    Entry::read(pid).map(|entry| entry.start_time)
}

/// Whether a process that began then runs: one that has ended and waits for its parent does not.
pub(crate) fn lives(pid: Pid, start_time: u64) -> bool {
    Entry::read(pid).is_some_and(|entry| entry.start_time == start_time && !entry.gone)
}

/// Whether a process that began then was stopped by a signal.
pub(crate) fn is_stopped(pid: Pid, start_time: u64) -> bool {
    Entry::read(pid).is_some_and(|entry| entry.start_time == start_time && entry.stopped)
}

/// Sends a signal to a process that began then.
pub(crate) fn signal(pid: Pid, began: u64, signal: Signal) {
    // The id may have passed to another process meanwhile.
    if start_time(pid) != Some(began) {
        return;
    }
    if let Err(errno) = kill(pid, signal)
        && errno != Errno::ESRCH
    {
        tracing::warn!(pid = pid.as_raw(), %errno, "could not signal a process: {errno}");
    }
}

impl Tree {
    /// The tree of a process. Without its start time only the marker finds it.
    pub(crate) fn new(root: Pid, start_time: Option<u64>, task_id: TaskId) -> Self {
        Self {
            root: start_time.map(|time| (root, time)),
            ..Self::of_task(task_id)
        }
    }

    /// The same in a process that has this task only: whatever is its child belongs to it too.
    pub(crate) fn with_our_children(self) -> Self {
        Self { ours: true, ..self }
    }

    /// The tree of a process that nobody is known to have started.
    pub(crate) fn of_task(task_id: TaskId) -> Self {
        Self {
            root: None,
            marker: format!("{TASK_MARKER}={task_id}").into_bytes(),
            ours: false,
        }
    }

    /// When the root began.
    pub(crate) fn start_time(&self) -> Option<u64> {
        self.root.map(|(_, time)| time)
    }

    /// Begins to end every process of the tree: a polite signal, then after `grace` a hard one.
    pub(crate) fn begin_end(&self, grace: Duration) -> Ending {
        let now = Instant::now();
        Ending {
            tree: self.clone(),
            deadline: now + grace,
            next: now,
            pause: LOOK_FIRST,
            told: HashSet::new(),
            found: false,
        }
    }

    /// The same to its end, however long that takes: a process that the kernel cannot end is not gone. Says
    /// whether there were any.
    pub(crate) async fn end(&self, grace: Duration) -> bool {
        let mut ending = self.begin_end(grace);
        loop {
            tokio::time::sleep_until(ending.next().into()).await;
            let looked = tokio::task::spawn_blocking(move || {
                let over = ending.look();
                (ending, over)
            });
            let Ok((looked, over)) = looked.await else {
                return true; // The runtime is stopping.
            };
            ending = looked;
            if over {
                return ending.found;
            }
        }
    }

    /// The processes that are alive now.
    fn members(&self) -> io::Result<Vec<Entry>> {
        let table = table()?;
        // Once another process has the root's id, every use of that number is a stranger's.
        let root = self
            .root
            .filter(|(pid, time)| {
                table
                    .iter()
                    .find(|entry| entry.pid == *pid)
                    .is_none_or(|entry| entry.start_time == *time)
            })
            .map(|(pid, _)| pid);
        let ourselves = Pid::this();
        let mut ours: HashSet<Pid> = HashSet::new();
        for entry in &table {
            let follows = root.is_some_and(|root| {
                entry.pid == root || entry.session == root || entry.group == root
            });
            let adopted = self.ours && entry.parent == ourselves;
            if follows || adopted || self.marks(entry.pid)? {
                ours.insert(entry.pid);
            }
        }
        loop {
            let before = ours.len();
            for entry in &table {
                if ours.contains(&entry.parent) {
                    ours.insert(entry.pid);
                }
            }
            if ours.len() == before {
                break;
            }
        }
        ours.remove(&ourselves);
        Ok(table
            .into_iter()
            .filter(|entry| ours.contains(&entry.pid) && !entry.gone)
            .collect())
    }

    fn marks(&self, pid: Pid) -> io::Result<bool> {
        if pid == Pid::this() {
            return Ok(false);
        }
        let environment = read(&format!("/proc/{pid}/environ"))?;
        Ok(environment.is_some_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == self.marker)
        }))
    }
}

/// A tree that is being ended: looked at again and again until nothing of it is left.
#[derive(Debug)]
pub(crate) struct Ending {
    tree: Tree,
    deadline: Instant,
    next: Instant,
    pause: Duration,
    told: HashSet<(i32, u64)>,
    found: bool,
}

impl Ending {
    /// When to look again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Signals what is left; says whether nothing is. Blocks for a few reads of each process.
    pub(crate) fn look(&mut self) -> bool {
        let hard = Instant::now() >= self.deadline;
        match self.tree.members() {
            Ok(members) => {
                for member in &members {
                    // Once politely; hard as often as it takes, since members may still be starting others.
                    if hard {
                        signal(member.pid, member.start_time, Signal::SIGKILL);
                    } else if !self.told.contains(&member.name()) {
                        signal(member.pid, member.start_time, Signal::SIGTERM);
                    }
                }
                self.told = members.iter().map(Entry::name).collect();
                if members.is_empty() {
                    return true;
                }
                self.found = true;
            }
            // What cannot be seen is not gone.
            Err(error) => {
                tracing::warn!(%error, "the processes of a task cannot be looked at: {error}");
            }
        }
        let now = Instant::now();
        let wait = if hard {
            self.pause
        } else {
            let left = self.deadline.saturating_duration_since(now);
            self.pause.min(left).max(Duration::from_millis(1))
        };
        self.next = now + wait;
        self.pause = (self.pause * 2).min(LOOK_LAST);
        false
    }
}

impl Entry {
    /// Names a process for ever.
    fn name(&self) -> (i32, u64) {
        (self.pid.as_raw(), self.start_time)
    }

    fn read(pid: Pid) -> Option<Self> {
        // Longer than the line can be, so that one read has it.
        let mut line = [0; LINE_MAX];
        let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
        let length = io::Read::read(&mut file, &mut line).ok()?;
        // Names are cut to 15 bytes, also within a character.
        Self::parse(pid, &String::from_utf8_lossy(&line[..length]))
    }

    /// Reads a line as "PID (NAME) STATE PARENT GROUP SESSION … START_TIME …"; the name may hold
    /// spaces and parentheses.
    fn parse(pid: Pid, line: &str) -> Option<Self> {
        let rest = &line[line.rfind(')')? + 1..];
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let id = |at: usize| fields.get(at)?.parse().ok().map(Pid::from_raw);
        Some(Self {
            pid,
            gone: matches!(*fields.first()?, "Z" | "X"),
            stopped: *fields.first()? == "T",
            parent: id(1)?,
            group: id(2)?,
            session: id(3)?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }
}

fn table() -> io::Result<Vec<Entry>> {
    let mut table = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        if let Some(line) = read(&format!("/proc/{pid}/stat"))? {
            table.extend(Entry::parse(
                Pid::from_raw(pid),
                &String::from_utf8_lossy(&line),
            ));
        }
    }
    Ok(table)
}

/// Reads a file of a process; `None` if the process is gone or not ours to look at. An error says nothing
/// about the process: this one has too many files open, or too little memory.
fn read(path: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_about_us(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_about_us(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_table() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        let entry = Entry::parse(Pid::from_raw(7), line).unwrap();
        assert_eq!(entry.parent, Pid::from_raw(1));
        assert_eq!(entry.start_time, 4711);
        assert!(!entry.gone && !entry.stopped);
    }

    #[test]
    fn what_cannot_be_read_is_not_gone() {
        assert!(read("/proc/self/stat").unwrap().is_some());
        assert!(read("/proc/2147483647/stat").unwrap().is_none());
        assert!(is_about_us(&Errno::EMFILE.into()));
        assert!(!is_about_us(&Errno::ESRCH.into()));
    }

    #[test]
    fn our_own_entry_is_found() {
        assert!(start_time(Pid::this()).is_some());
        assert!(start_time(Pid::from_raw(i32::MAX)).is_none());
    }
}
