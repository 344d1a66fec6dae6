//! Limits of a whole process tree: a control group of its own (cgroup v2, see the kernel's `cgroup-v2.rst`).
//!
//! The groups stand beside those of the service manager, not below the agent's own: a service whose group hands
//! on controllers cannot be started again while something is left in it. So it takes root, and a host whose
//! controllers are cgroup v2's; elsewhere a task that asks for such a limit is refused.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_proto::{
    ids::TaskId,
    v1::{Limits, Reason},
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::StartError;

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The group that holds those of tasks.
const TASKS: &str = "muster-tasks";

/// In which a share of processor time is counted, microseconds: the kernel's default, and the most that it takes, for
/// shares that are too small for the other.
const CPU_PERIOD_US: u64 = 100_000;
const CPU_PERIOD_MAX_US: u64 = 1_000_000;

/// The kernel gives no less in a period, microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

const MEMORY_MAX: &str = "memory.max";
const SWAP_MAX: &str = "memory.swap.max";
const PROCESSES_MAX: &str = "pids.max";

/// The control group of a task. Removed when it is dropped, unless something is left in it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    /// How many processes may be in it; 0 means no limit.
    processes: i32,
}

/// Whether any of the limits needs a group.
fn is_needed(limits: &Limits) -> bool {
    limits.memory_bytes > 0 || limits.processes > 0 || limits.cpu_millis > 0
}

impl Group {
    /// The group of a task, if any of its limits needs one.
    pub(super) fn wanted(task_id: TaskId, limits: &Limits) -> Result<Option<Self>, StartError> {
        match is_needed(limits) {
            true => Self::create(task_id, limits).map(Some),
            false => Ok(None),
        }
    }

    /// Makes the group of a task, with its limits.
    fn create(task_id: TaskId, limits: &Limits) -> Result<Self, StartError> {
        let mount = Path::new(MOUNT);
        let is_v2 = statfs(mount).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if !is_v2 {
            return Err(refused("its control groups are not cgroup v2", ON_V2));
        }
        Self::create_below(mount, task_id, limits).map_err(|error| {
            let next = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ON_V2,
                _ => "see whether its kernel has the controllers that this takes",
            };
            refused(&format!("it cannot make a control group: {error}"), next)
        })
    }

    fn create_below(mount: &Path, task_id: TaskId, limits: &Limits) -> io::Result<Self> {
        let settings = settings(limits);
        let tasks = mount.join(TASKS);
        make(&tasks)?;
        for group in [mount, &tasks] {
            hand_on(group, &settings)?;
        }
        let path = tasks.join(task_id.to_string());
        make(&path)?;
        let group = Self {
            path,
            processes: limits.processes,
        };
        for (file, value) in settings {
            let path = group.path.join(file);
            // Without swap, or where the kernel does not count it, there is no such file.
            if file != SWAP_MAX || path.exists() {
                fs::write(path, value)?;
            }
        }
        Ok(group)
    }

    /// Starts something in the group: this process, which has one thread, is in it meanwhile.
    pub(super) fn within<T>(&self, start: impl FnOnce() -> T) -> Result<T, StartError> {
        let entered = own_group().and_then(|own| {
            fs::write(self.path.join("cgroup.procs"), "0")?;
            Ok(own)
        });
        let own = entered
            .map_err(|error| refused(&format!("the group cannot be entered: {error}"), ON_V2))?;
        let started = start();
        // Where the agent stays, the limits count for it too, which is not nice and no harm.
        if fs::write(own.join("cgroup.procs"), "0").is_ok() {
            self.is_left();
        }
        Ok(started)
    }

    /// This process is not in the group any more, so its place is nobody's.
    fn is_left(&self) {
        if self.processes > 0 {
            // Else there may be one more, which is no harm either.
            let _ = fs::write(self.path.join(PROCESSES_MAX), self.processes.to_string());
        }
    }

    /// Kills all that is in the group.
    pub(crate) fn kill(&self) {
        // Since Linux 5.14; before, the tree is ended in the other ways.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What a task leaves running keeps its limits.
        let _ = fs::remove_dir(&self.path);
    }
}

/// The group that holds those of all tasks of this host, if there is one.
pub(crate) fn groups_of_tasks() -> Vec<PathBuf> {
    let path = Path::new(MOUNT).join(TASKS);
    path.is_dir().then_some(path).into_iter().collect()
}

/// Ends what is left in the group of a task whose supervisor is gone; it goes once it is empty.
pub(crate) fn end_left_over(task_id: TaskId) {
    let path = Path::new(MOUNT).join(TASKS).join(task_id.to_string());
    if path.is_dir() {
        Group { path, processes: 0 }.kill();
    }
}

/// Removes the groups of tasks that are over, but for those in which something goes on.
pub(crate) fn sweep(is_over: impl Fn(&TaskId) -> bool) {
    sweep_below(&Path::new(MOUNT).join(TASKS), is_over);
}

fn sweep_below(tasks: &Path, is_over: impl Fn(&TaskId) -> bool) {
    for entry in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let task_id = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if task_id.is_some_and(|task_id| is_over(&task_id)) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// What to do where groups cannot be made.
const ON_V2: &str = "run the agent as root on a host with cgroup v2";

fn refused(why: &str, next: &str) -> StartError {
    let message = format!(
        "this host cannot limit the memory, processes or processor time of a task: {why}; \
         {next}, or ask for no such limit"
    );
    StartError::new(Reason::LimitUnsupported, message)
}

/// The files that hold the limits, and what to write there before the process starts.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if limits.memory_bytes > 0 {
        settings.push((MEMORY_MAX, limits.memory_bytes.to_string()));
        settings.push((SWAP_MAX, "0".to_owned()));
    }
    if limits.processes > 0 {
        // Whoever starts it is in the group meanwhile, and counts.
        let with_us = limits.processes.saturating_add(1);
        settings.push((PROCESSES_MAX, with_us.to_string()));
    }
    if limits.cpu_millis > 0 {
        settings.push(("cpu.max", share(limits.cpu_millis.unsigned_abs().into())));
    }
    settings
}

/// A share of processor time in thousandths, as the kernel reads it: how much in which period.
fn share(millis: u64) -> String {
    let quota = |period| millis * period / 1000;
    let periods = [CPU_PERIOD_US, CPU_PERIOD_MAX_US];
    let enough = |period: &u64| quota(*period) >= CPU_QUOTA_MIN_US;
    let period = periods
        .into_iter()
        .find(enough)
        .unwrap_or(CPU_PERIOD_MAX_US);
    format!("{} {period}", quota(period))
}

/// Lets the groups below `group` have the controllers of these settings.
fn hand_on(group: &Path, settings: &[(&str, String)]) -> io::Result<()> {
    let handed_on = group.join("cgroup.subtree_control");
    let known = fs::read_to_string(&handed_on)?;
    for (file, _) in settings {
        let controller = file.split('.').next().unwrap_or_default();
        if !known.split_whitespace().any(|name| name == controller) {
            fs::write(&handed_on, format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Where control groups of the second version are: everywhere, or beside those of the first.
fn hierarchy() -> Option<PathBuf> {
    let is_v2 = |path: &Path| {
        statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
    };
    let places = [PathBuf::from(MOUNT), Path::new(MOUNT).join("unified")];
    places.into_iter().find(|place| is_v2(place))
}

/// Makes a group, unless it is there.
pub(super) fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The group that this process is in.
pub(super) fn own_group() -> io::Result<PathBuf> {
    let none = || io::Error::other("this process is in no group");
    let hierarchy = hierarchy().ok_or_else(none)?;
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    own.map(|own| hierarchy.join(own)).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory_bytes: i64, processes: i32, cpu_millis: i32) -> Limits {
        Limits {
            nice: 0,
            memory_bytes,
            processes,
            cpu_millis,
        }
    }

    #[test]
    fn limits_become_what_the_kernel_reads() {
        assert!(!is_needed(&limits(0, 0, 0)));
        assert!(is_needed(&limits(0, 5, 0)));
        let all = settings(&limits(1 << 20, 64, 1500));
        assert!(all.contains(&("memory.max", "1048576".to_owned())));
        assert!(all.contains(&("pids.max", "65".to_owned())), "with us");
        assert!(all.contains(&("cpu.max", "150000 100000".to_owned())));
        assert_eq!(settings(&limits(0, 64, 0)).len(), 1);
        assert_eq!(settings(&limits(0, i32::MAX, 0)).len(), 1);
    }

    #[test]
    fn a_small_share_is_counted_in_a_long_period() {
        assert_eq!(share(10), "1000 100000");
        assert_eq!(share(9), "9000 1000000");
        assert_eq!(share(1), "1000 1000000");
    }

    #[test]
    fn a_group_is_made_below_those_of_tasks_with_its_controllers_handed_on() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir(mount.path().join(TASKS)).unwrap();
        for group in [mount.path().to_owned(), mount.path().join(TASKS)] {
            fs::write(group.join("cgroup.subtree_control"), "memory\n").unwrap();
        }
        let task_id = TaskId::from_bytes(&[3; 32]);
        let group = Group::create_below(mount.path(), task_id, &limits(0, 7, 0)).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(group.path.join("pids.max")), "8");
        group.is_left();
        assert_eq!(read(group.path.join("pids.max")), "7");
        let handed_on = mount.path().join("cgroup.subtree_control");
        assert_eq!(read(handed_on), "+pids");
    }

    #[test]
    fn swap_is_limited_where_the_kernel_counts_it() {
        let mount = tempfile::tempdir().unwrap();
        for counts in [false, true] {
            let task_id = TaskId::from_bytes(&[counts.into(); 32]);
            let path = mount.path().join(TASKS).join(task_id.to_string());
            fs::create_dir_all(&path).unwrap();
            for group in [mount.path().to_owned(), mount.path().join(TASKS)] {
                fs::write(group.join("cgroup.subtree_control"), "memory\n").unwrap();
            }
            if counts {
                fs::write(path.join(SWAP_MAX), "max").unwrap();
            }
            let _group = Group::create_below(mount.path(), task_id, &limits(5, 0, 0)).unwrap();
            assert_eq!(fs::read_to_string(path.join(MEMORY_MAX)).unwrap(), "5");
            let swap = fs::read_to_string(path.join(SWAP_MAX)).ok();
            assert_eq!(swap.as_deref(), counts.then_some("0"));
        }
    }

    #[test]
    fn groups_of_tasks_that_are_over_go_once_they_are_empty() {
        let tasks = tempfile::tempdir().unwrap();
        let [over, populated, runs] = [1, 2, 3].map(|n| TaskId::from_bytes(&[n; 32]));
        let path = |task_id: &TaskId| tasks.path().join(task_id.to_string());
        for task_id in [over, populated, runs] {
            fs::create_dir(path(&task_id)).unwrap();
        }
        fs::create_dir(tasks.path().join("else")).unwrap();
        // As good as a process: it cannot be removed.
        fs::create_dir(path(&populated).join("process")).unwrap();
        sweep_below(tasks.path(), |task_id| *task_id != runs);
        assert!(!path(&over).exists());
        assert!(path(&populated).exists() && path(&runs).exists());
        assert!(tasks.path().join("else").exists());
    }
}
