//! What does the work of actions that are no programs: how it can end, what it outlives, and that it knows nothing of
//! others.

use std::collections::BTreeSet;

use muster_proto::v1::{ByteRange, Confinement, FileRead, Mode, file_read::Part};
use prost::Message as _;

use super::{
    files::{reading, result},
    *,
};

/// A file that is being read, and has no end before somebody cuts it.
pub(super) struct Read {
    pub(super) task_id: String,
    pid: i32,
    file: fs::File,
}

/// No test takes so long that this is read.
const ENDLESS: u64 = 8 << 40;

impl Read {
    /// Reads the beginning of a sparse file, and all of it for its digest.
    pub(super) async fn start(control_plane: &FakeControlPlane, path: &Path) -> Self {
        let file = fs::File::create(path).unwrap();
        file.set_len(ENDLESS).unwrap();
        let wanted = FileRead {
            sha256: true,
            timeout: Some(Duration::from_secs(600).try_into().unwrap()),
            ..reading(path)
        };
        let task_id = control_plane
            .offer_read(wanted, Confinement::default())
            .await;
        let task = control_plane
            .task(&task_id, |task| task.stdout.len() == 1 << 20)
            .await;
        let pid = task.started.unwrap().pid;
        Self { task_id, pid, file }
    }

    /// Cuts the file, so that there is nothing more to read.
    pub(super) fn finish(&self) {
        self.file.set_len(2 << 20).unwrap();
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    fn is_alive(&self) -> bool {
        alive(self.pid)
    }
}

/// A host whose agent is a process with this failpoint; until it is dropped.
struct Failing {
    _directory: tempfile::TempDir,
    _agent: Process,
}

impl Failing {
    fn at(control_plane: &FakeControlPlane, failpoint: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        control_plane.enroll(&directory.path().join("agent"));
        let agent = Process::start_at(directory.path(), Some(failpoint));
        Self {
            _directory: directory,
            _agent: agent,
        }
    }
}

/// How a worker with this mistake ends, of which a supervisor knows nothing.
async fn failed(failpoint: &str) -> Reported {
    let control_plane = FakeControlPlane::start().await;
    let _host = Failing::at(&control_plane, failpoint);
    let task_id = control_plane
        .offer_read(reading("/etc/passwd"), Confinement::default())
        .await;
    let task = control_plane.settled(&task_id).await;
    // The host is none the worse for it.
    let after = control_plane.offer(command(&["true"])).await;
    let after = control_plane.settled(&after).await;
    assert_eq!(after.state(), State::Succeeded);
    task
}

#[track_caller]
fn died(task: &Reported, words: &str) {
    let ended = task.ended.clone().unwrap();
    assert_eq!(task.state(), State::Failed, "{}", ended.message);
    assert_eq!(ended.reason(), Reason::WorkerDied, "{}", ended.message);
    assert!(ended.message.contains(words), "{}", ended.message);
    assert!(ended.exit_code.is_none() && ended.result.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_panics_ends_its_task_with_the_words() {
    let task = failed("worker-panics").await;
    died(&task, "there is a mistake in this agent: wanted by a test");
    assert_eq!(task.ended.unwrap().signal, "");
    assert_eq!((task.stdout.len(), task.stderr.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_says_too_much_has_died() {
    died(&failed("worker-says-too-much").await, "longer than 65536");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_gets_only_so_much_memory() {
    let task = failed("worker-takes-memory").await;
    died(&task, "SIGABRT");
    assert_eq!(task.ended.unwrap().signal, "SIGABRT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_supervisor_is_not_given_a_worker() {
    let task = failed("supervisor-is-old").await;
    assert_eq!(task.state(), State::Rejected);
    assert_eq!(task.started, None);
    assert_eq!(task.ended.unwrap().reason(), Reason::ActionUnsupported);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_ends_its_task() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    for signal in [Signal::SIGKILL, Signal::SIGSEGV] {
        let read = Read::start(&control_plane, &host.path("sparse")).await;
        read.signal(signal);
        let task = control_plane.settled(&read.task_id).await;
        died(&task, signal.as_str());
        assert_eq!(task.ended.unwrap().signal, signal.as_str());
        assert_eq!(task.stdout.len(), 1 << 20, "what was read before is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_can_be_cancelled_and_runs_out_of_time() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let read = Read::start(&control_plane, &host.path("sparse")).await;
    control_plane.cancel(&read.task_id, None).await;
    let task = control_plane.settled(&read.task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    let ended = task.ended.unwrap();
    assert_eq!(ended.reason(), Reason::CancelRequested);
    assert!(ended.message.is_empty() && ended.result.is_empty());
    assert!(!read.is_alive());

    let wanted = FileRead {
        sha256: true,
        timeout: Some(Duration::from_millis(300).try_into().unwrap()),
        ..reading(host.path("sparse"))
    };
    let task_id = control_plane
        .offer_read(wanted, Confinement::default())
        .await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::TimedOut);
    assert_eq!(task.ended.unwrap().reason(), Reason::Timeout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_goes_on_without_its_agent() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    for ends_meanwhile in [false, true] {
        let read = Read::start(&control_plane, &host.path("sparse")).await;
        host.die();
        if ends_meanwhile {
            read.finish();
            let record = format!("agent/supervisors/{}.ended", read.task_id);
            let record = host.path(&record);
            until("the record", || record.exists()).await;
            host.start_agent().await;
        } else {
            host.start_agent().await;
            control_plane.attached(2).await;
            read.finish();
        }
        let task = control_plane.settled(&read.task_id).await;
        assert_eq!(task.state(), State::Succeeded, "{:?}", task.ended);
        assert!(task.stdout == vec![0; 1 << 20]);
        let result = result(&task);
        assert!(result.has_more && result.changed);
        assert_eq!(result.stat.unwrap().sha256.len(), 32);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_does_not_outlive_its_supervisor() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let read = Read::start(&control_plane, &host.path("sparse")).await;
    kill(parent(read.pid));
    let task = control_plane.settled(&read.task_id).await;
    assert_eq!(task.state(), State::Lost);
    assert_eq!(task.ended.unwrap().reason(), Reason::SupervisorDied);
    until("its end", || !read.is_alive()).await;
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = &stat[stat.rfind(')').unwrap() + 1..];
    rest.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_signed_and_told_again_after_a_restore() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let task_id = control_plane
        .offer_read(reading("/etc/passwd"), Confinement::default())
        .await;
    let task = control_plane.settled(&task_id).await;
    let ended = task.ended.unwrap();
    let receipt = muster_proto::v1::Receipt::decode(ended.unsigned_receipt.clone()).unwrap();
    assert!(!ended.result.is_empty());
    let digest = muster_client::audit::sha256(&ended.result);
    assert_eq!(receipt.result_digest, digest);

    host.stop().await.unwrap();
    host.start_agent().await;
    control_plane.attached(2).await;
    control_plane.behave(|behaviour| {
        behaviour.upload = true;
        behaviour.expected = vec![task_id.clone()];
    });
    control_plane.cut();
    let recalled = control_plane
        .until("what the host remembers", |seen| {
            let mut recalled = seen.recalled.iter();
            recalled.find(|task| task.task_id == task_id).cloned()
        })
        .await;
    assert_eq!(recalled.ended.unwrap().result, ended.result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_a_supervisor_that_nobody_else_has() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let (mut of_commands, mut of_workers) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..6 {
        let task_id = control_plane.offer(script("echo $PPID")).await;
        let task = control_plane.settled(&task_id).await;
        of_commands.insert(task.out().trim().parse::<i32>().unwrap());
        let task_id = control_plane
            .offer_read(reading("/proc/self/stat"), Confinement::default())
            .await;
        let stat = control_plane.settled(&task_id).await.out();
        let fields: Vec<&str> = stat.split_whitespace().collect();
        assert_eq!(fields[1], "(muster-worker)");
        assert_eq!(fields[19], "1", "threads");
        let supervisor: i32 = fields[3].parse().unwrap();
        assert!(of_workers.insert(supervisor), "it has had a worker before");
        until("its end", || !alive(supervisor)).await;
    }
    assert!(of_commands.is_disjoint(&of_workers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_confined_as_a_command_is() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let read_only = Confinement {
        mode: Mode::ReadOnly.into(),
        ..Confinement::default()
    };
    let wanted = reading("/proc/self/status");
    let by_worker = control_plane.offer_read(wanted, read_only.clone()).await;
    let by_worker = control_plane.settled(&by_worker).await;
    if by_worker.ended.as_ref().unwrap().reason() == Reason::ModeUnenforceable {
        return;
    }
    let by_command = control_plane
        .offer_with(command(&["cat", "/proc/self/status"]), read_only)
        .await;
    let by_command = control_plane.settled(&by_command).await;
    let rights = |task: &Reported| -> Vec<String> {
        let begins = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
        let status = task.out();
        let lines = status.lines();
        lines
            .filter(|line| begins.iter().any(|begin| line.starts_with(begin)))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(rights(&by_worker), rights(&by_command));
    assert!(rights(&by_worker).contains(&"Seccomp:\t2".to_owned()));
    let confinement = |task: &Reported| task.started.as_ref().unwrap().confinement.clone();
    assert_eq!(confinement(&by_worker), confinement(&by_command));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_its_own_files_only() {
    use std::os::fd::AsRawFd as _;
    // Unlike those of the standard library, inherited unless somebody prevents it.
    let (left_open, _writer) = nix::unistd::pipe().unwrap();
    assert!(left_open.as_raw_fd() < 256);
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    for mode in [Mode::ReadOnly, Mode::Unrestricted] {
        let mut open = Vec::new();
        let mut tasks = Vec::new();
        for number in 0..256 {
            let wanted = FileRead {
                stat_only: true,
                no_follow: true,
                ..reading(format!("/proc/self/fd/{number}"))
            };
            let confinement = Confinement {
                mode: mode.into(),
                ..Confinement::default()
            };
            tasks.push(control_plane.offer_read(wanted, confinement).await);
        }
        for (number, task_id) in tasks.iter().enumerate() {
            let task = control_plane.settled(task_id).await;
            match task.ended.as_ref().unwrap().reason() {
                Reason::FileNotFound => {}
                Reason::ModeUnenforceable => return,
                _ => open.push((number, result(&task).stat.unwrap().link_target)),
            }
        }
        assert_eq!(open.len(), 4, "{open:?}");
        assert_eq!(open[0], (0, "/dev/null".to_owned()));
        for (number, file) in &open[1..] {
            assert!(*number < 4 && file.starts_with("pipe:"), "{open:?}");
        }
    }
}

/// What is searched for: nowhere written as a whole but in what is given to other tasks.
fn pattern() -> String {
    ["bytes-of", "another-caller"].join("-")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_nothing_of_others_in_its_memory() {
    let control_plane = FakeControlPlane::start().await;
    let directory = tempfile::tempdir().unwrap();
    control_plane.enroll(&directory.path().join("agent"));
    let _agent = Process::start(directory.path());
    control_plane.attached(1).await;
    // Others run with it in all that they are given, below all supervisors that there are.
    let mut others = Vec::new();
    for _ in 0..6 {
        let mut wanted = script(&format!("cat; echo {}", pattern()));
        wanted.env.insert("WORD".to_owned(), pattern());
        wanted.stdin = pattern().repeat(1000).into();
        others.push(control_plane.offer(wanted).await);
    }
    for task_id in others {
        assert!(
            control_plane
                .settled(&task_id)
                .await
                .out()
                .contains(&pattern())
        );
    }
    let read = async |wanted: FileRead| {
        let task_id = control_plane
            .offer_read(wanted, Confinement::default())
            .await;
        control_plane.settled(&task_id).await
    };
    let environment = read(reading("/proc/self/environ")).await;
    assert!(environment.stdout.iter().all(|byte| *byte == 0));

    // All of them have the same places, being copies of one.
    let maps = read(reading("/proc/self/maps")).await.out();
    let mut searched = 0;
    for line in maps.lines().filter(|line| !line.ends_with("[vsyscall]")) {
        let (range, rest) = line.split_once(' ').unwrap();
        // What is read from a file and never written is the program's.
        if !rest.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|number| i64::from_str_radix(number, 16).unwrap());
        let wanted = FileRead {
            part: Some(Part::Bytes(ByteRange {
                offset: from,
                length: to - from,
            })),
            max_bytes: 256 << 20,
            ..reading("/proc/self/mem")
        };
        let memory = read(wanted).await.stdout;
        let has = |text: &str| {
            memory
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        assert!(!has(&pattern()), "{line}");
        assert!(!has("PATH=/usr/bin"), "{line}");
        // Its own request is there, so that what is there is found.
        searched += usize::from(has("/proc/self/mem"));
    }
    assert!(searched > 0, "{maps}");
}
