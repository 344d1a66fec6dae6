//! A control group of its own for each supervisor and all that its task starts (cgroup v2, also beside v1): should the
//! supervisor be killed, nothing that it leaves behind can hide.
//!
//! Cells stand below the group that the agent is in, so that what counts for the agent counts for tasks. They hand on no
//! controllers. A supervisor is born in its cell, since moving a process into a group stops the host for milliseconds;
//! an empty group in the cell tells whose it is.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::{
    group::{make, own_group},
    tree::{lives, start_time},
};

/// The group that holds all cells.
const CELLS: &str = "muster-supervisors";

/// Since Linux 5.14; without it there is no use for a cell.
const KILL: &str = "cgroup.kill";

/// Each time that a cell is made, so many others are looked at and removed if they are empty.
const LOOKED_AT: usize = 4;

/// How long killed processes may take to be gone; one that the kernel cannot end is not waited for.
const GONE_LIMIT: Duration = Duration::from_secs(5);
const GONE_PAUSE: Duration = Duration::from_millis(2);

/// Makes cells.
pub(crate) struct Cells {
    directory: PathBuf,
    /// Begins the names of ours: who makes them.
    maker: String,
    made: u64,
    ours: VecDeque<Cell>,
}

/// The group of one supervisor.
#[derive(Debug)]
pub(crate) struct Cell {
    path: PathBuf,
}

impl Cells {
    /// `None` where this process may make no groups, or they could not be killed.
    pub(crate) fn open() -> Option<Self> {
        let directory = directory()?;
        make(&directory).ok()?;
        if !directory.join(KILL).exists() {
            return None;
        }
        let own = Pid::this();
        let cells = Self {
            directory,
            maker: format!("{own}-{}", start_time(own)?),
            made: 0,
            ours: VecDeque::new(),
        };
        cells.sweep();
        Some(cells)
    }

    /// An empty cell, opened for a process to be born in.
    pub(crate) fn make(&mut self) -> Option<File> {
        for _ in 0..LOOKED_AT.min(self.ours.len()) {
            self.ours.rotate_left(1);
            self.ours.pop_back_if(|cell| cell.remove());
        }
        let path = self.directory.join(format!("{}-{}", self.maker, self.made));
        self.made += 1;
        fs::create_dir(&path).ok()?;
        let file = File::open(&path).ok();
        self.ours.push_back(Cell { path });
        file
    }

    /// Removes what is left of earlier makers.
    fn sweep(&self) {
        for cell in all(&self.directory) {
            if !cell.maker_lives() {
                cell.remove();
            }
        }
    }
}

impl Cell {
    /// The cell that this process is in.
    pub(crate) fn ours() -> Option<Self> {
        let path = own_group().ok()?;
        (path.parent()?.file_name()? == CELLS).then_some(Self { path })
    }

    /// Says whose it is.
    pub(crate) fn label(&self, name: &Path) -> io::Result<()> {
        fs::create_dir(self.path.join(name))
    }

    /// The cell with this label.
    pub(crate) fn labelled(name: &Path) -> Option<Self> {
        all(&directory()?).find(|cell| cell.path.join(name).is_dir())
    }

    /// Kills all that is in it, and waits for that. Says whether there was anything. Blocks.
    pub(crate) fn end(&self) -> bool {
        let found = self.is_populated();
        let deadline = Instant::now() + GONE_LIMIT;
        while self.is_populated() && Instant::now() < deadline {
            let _ = fs::write(self.path.join(KILL), "1");
            #[allow(clippy::disallowed_methods)] // where blocking is allowed
            std::thread::sleep(GONE_PAUSE);
        }
        self.remove();
        found
    }

    fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events"));
        events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Says whether it is gone. One with a process stays.
    fn remove(&self) -> bool {
        if self.is_populated() {
            return false;
        }
        let labels = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for label in labels.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let _ = fs::remove_dir(label.path());
        }
        let removed = fs::remove_dir(&self.path);
        removed.is_ok() || !self.path.exists()
    }

    fn maker_lives(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let mut numbers = name.split('-');
        let mut next = || numbers.next()?.parse::<u64>().ok();
        let (Some(pid), Some(start_time)) = (next(), next()) else {
            return false;
        };
        i32::try_from(pid).is_ok_and(|pid| lives(Pid::from_raw(pid), start_time))
    }
}

/// Where the cells of an agent in the same group as this process are.
fn directory() -> Option<PathBuf> {
    own_group().ok().map(|own| own.join(CELLS))
}

fn all(directory: &Path) -> impl Iterator<Item = Cell> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| Cell { path: entry.path() })
}
