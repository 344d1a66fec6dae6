//! Processes that tasks leave behind: this process adopts them, so that they stay findable, and
//! clears them away once they end.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::LazyLock,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};
use parking_lot::Mutex;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::TASK_MARKER;

/// Looking costs a few reads of /proc; children that end in bursts are cleared away together.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An ended child that nobody has asked about for so long is nobody's. Other parts of the same
/// process, as a test that starts programs, wait for theirs sooner.
const NOBODYS_AFTER: Duration = Duration::from_secs(60);

/// The children whose ends somebody waits for. A plain lock: it is held for a few instructions.
static EXPECTED: LazyLock<Mutex<HashSet<Pid>>> = LazyLock::new(Mutex::default);

/// Somebody waits for this child.
pub(super) fn expect(pid: Pid) {
    EXPECTED.lock().insert(pid);
}

/// Nobody waits for this child any more.
pub(super) fn forget(pid: Pid) {
    EXPECTED.lock().remove(&pid);
}

/// From now on, descendants whose parent ends become children of this process.
pub(crate) fn adopt_orphans() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Clears away adopted processes that have ended, until told to stop.
pub(crate) async fn reap_orphans(stop: CancellationToken) {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        return;
    };
    let mut orphans = Orphans::default();
    loop {
        tokio::select! {
            _ = ended.recv() => {}
            () = tokio::time::sleep(NOBODYS_AFTER), if !orphans.ended.is_empty() => {}
            () = stop.cancelled() => return,
        }
        orphans = match tokio::task::spawn_blocking(move || orphans.look()).await {
            Ok(orphans) => orphans,
            Err(_) => return,
        };
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[derive(Default)]
struct Orphans {
    /// Alive when last seen, and a task's.
    adopted: HashSet<Pid>,
    /// Ended, and not known to be a task's.
    ended: HashMap<Pid, Instant>,
}

impl Orphans {
    fn look(mut self) -> Self {
        let children = children();
        self.adopted.retain(|pid| children.contains(pid));
        self.ended.retain(|pid, _| children.contains(pid));
        let expected = EXPECTED.lock().clone();
        for pid in children.into_iter().filter(|pid| !expected.contains(pid)) {
            let Some(gone) = has_ended(pid) else { continue };
            if !gone {
                if is_a_tasks(pid) {
                    self.adopted.insert(pid);
                }
                continue;
            }
            let since = *self.ended.entry(pid).or_insert_with(Instant::now);
            if self.adopted.contains(&pid) || since.elapsed() >= NOBODYS_AFTER {
                let _: Result<_, Errno> = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                self.adopted.remove(&pid);
                self.ended.remove(&pid);
            }
        }
        self
    }
}

/// The children of all our threads.
fn children() -> HashSet<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return HashSet::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| {
            line.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn has_ended(pid: Pid) -> Option<bool> {
    // Names are cut to 15 bytes, also within a character.
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let rest = &line[line.rfind(')')? + 1..];
    Some(rest.trim_start().starts_with(['Z', 'X']))
}

fn is_a_tasks(pid: Pid) -> bool {
    let marker = format!("{TASK_MARKER}=");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable.starts_with(marker.as_bytes()))
    })
}
