//! Kills, freezes and cuts at random under a mixed load. Whatever happens, no job that was acknowledged is
//! lost, no task runs twice, and what a process wrote is what its readers get.
//!
//! A short run belongs to the suite. A long one, by hand:
//! `MUSTER_CYCLES=1000 cargo test -p muster-tests --test scenarios torture -- --nocapture`

use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::v1::{CreateJobRequest, OutputStream, Reason, Task, task::State};
use muster_tests::{
    dice::Dice,
    eventually,
    fleet::{Agent, Fleet},
    operator::{Operator, Watched, request, script},
    process,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{task::JoinHandle, time::timeout};

/// Cycles of the run in the suite.
const CYCLES: u64 = 12;

/// After so many cycles everything is let come to rest and checked.
const CYCLES_EACH: u64 = 25;

/// How long a fleet may take to come to rest, on a machine that does much else.
const REST: Duration = Duration::from_secs(60);

/// How long anything stays frozen or cut at most, milliseconds.
const FROZEN_MAX: u64 = 400;

/// How often it is looked for a supervisor with a task, and how long apart.
const LOOKS: u32 = 30;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// From so many cycles on, some task must have lost its supervisor.
const CYCLES_TO_LOSE: u64 = 100;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// What a job must come to.
#[derive(Debug)]
struct Wanted {
    request: CreateJobRequest,
    lines: u64,
    exit_code: i32,
}

struct Torture {
    fleet: Fleet,
    hosts: Vec<Arc<Agent>>,
    dice: Dice,
    /// Each start of a task appends its id here: the file system sees a second one.
    starts: PathBuf,
    /// Jobs that are asked for until somebody acknowledges them.
    asking: Vec<JoinHandle<(Wanted, Watched)>>,
    supervisors_killed: u64,
    checked: u64,
    lost: u64,
    /// Those of them whose supervisor died.
    orphaned: u64,
}

impl Torture {
    async fn begin() -> Self {
        let fleet = Fleet::plan()
            .set("MUSTER_HEARTBEAT_INTERVAL", "1s")
            .start()
            .await;
        let mut hosts = Vec::new();
        for name in HOSTS {
            hosts.push(fleet.host(name).await);
        }
        Self {
            starts: fleet.directory().join("starts"),
            fleet,
            hosts,
            dice: Dice::thrown(),
            asking: Vec::new(),
            supervisors_killed: 0,
            checked: 0,
            lost: 0,
            orphaned: 0,
        }
    }

    /// Asks for a job, again and again with the same id until it is acknowledged.
    fn ask(&mut self) {
        let lines = *self.dice.one_of(&[0, 1, 100, 20_000, 200_000]);
        let exit_code = self.dice.below(3) as i32;
        let rest = self.dice.below(400);
        let text = format!(
            "echo $MUSTER_TASK_ID >> '{}'; seq 1 {lines}; sleep 0.{rest:03}; exit {exit_code}",
            self.starts.display()
        );
        let selector = *self.dice.one_of(&["web-1", "web-2", "all"]);
        let wanted = Wanted {
            request: request(selector, script(text)),
            lines,
            exit_code,
        };
        let operator = self.fleet.operator();
        self.asking.push(tokio::spawn(async move {
            let job = acknowledged(&operator, &wanted.request).await;
            (wanted, job)
        }));
    }

    /// Does something terrible, and makes it good again.
    async fn strike(&mut self) {
        let host = Arc::clone(&self.hosts[self.dice.below(2) as usize]);
        let frozen = Duration::from_millis(self.dice.below(FROZEN_MAX));
        match self.dice.below(10) {
            0 | 1 => {
                self.fleet.kill_control_plane();
                self.fleet.start_control_plane().await;
            }
            2 | 3 => {
                host.kill();
                host.start(&self.fleet);
            }
            4 => {
                host.kill();
                self.fleet.kill_control_plane();
                pause(frozen).await;
                host.start(&self.fleet);
                self.fleet.start_control_plane().await;
            }
            5 => freeze(self.fleet.control_plane_pid(), frozen).await,
            6 => freeze(host.pid(), frozen).await,
            7 => {
                host.wire().cut();
                pause(frozen).await;
                host.wire().mend();
            }
            8 => {
                if let Some(supervisor) = self.a_supervisor(&host).await {
                    freeze(supervisor, frozen).await;
                }
            }
            _ => {
                if let Some(supervisor) = self.a_supervisor(&host).await
                    && kill(supervisor, Signal::SIGKILL).is_ok()
                {
                    self.supervisors_killed += 1;
                }
            }
        }
    }

    /// One that has a task, if any comes to have one soon: an idle one is replaced, and its death teaches little.
    async fn a_supervisor(&mut self, host: &Agent) -> Option<Pid> {
        for _ in 0..LOOKS {
            let busy = process::parents();
            let mut supervisors = host.supervisors();
            supervisors.retain(|pid| busy.contains(pid));
            if !supervisors.is_empty() {
                return Some(*self.dice.one_of(&supervisors));
            }
            pause(BETWEEN_LOOKS).await;
        }
        let idle = host.supervisors();
        (!idle.is_empty()).then(|| *self.dice.one_of(&idle))
    }

    /// Lets everything come to rest, and looks at what became of it.
    async fn check(&mut self) {
        let limit = Instant::now() + REST;
        for asked in std::mem::take(&mut self.asking) {
            let left = limit.saturating_duration_since(Instant::now());
            let answer = timeout(left, asked)
                .await
                .expect("every job is acknowledged");
            let (wanted, job) = answer.unwrap();
            let tasks = at_rest(&job).await;
            let starts = self.starts();
            for task in tasks {
                self.judge(&wanted, &job, &task, &starts).await;
                self.checked += 1;
            }
        }
    }

    /// How often each task was started.
    fn starts(&self) -> BTreeMap<String, u32> {
        let mut starts = BTreeMap::new();
        for line in fs::read_to_string(&self.starts).unwrap_or_default().lines() {
            *starts.entry(line.to_owned()).or_default() += 1;
        }
        starts
    }

    async fn judge(
        &mut self,
        wanted: &Wanted,
        job: &Watched,
        task: &Task,
        starts: &BTreeMap<String, u32>,
    ) {
        let seen = format!("{task:?}, of {wanted:?}");
        let started = starts.get(&task.task_id).copied().unwrap_or(0);
        assert!(started <= 1, "started {started} times: {seen}");
        let whole: String = (1..=wanted.lines).map(|line| format!("{line}\n")).collect();
        let output = job.output_of(&task.task_id, OutputStream::Stdout).await;
        match task.state() {
            State::Succeeded | State::Failed => {
                assert_eq!(task.exit_code, Some(wanted.exit_code), "{seen}");
                assert_eq!(started, 1, "{seen}");
                assert_eq!(task.output_size.unwrap().dropped_bytes, 0, "{seen}");
                assert!(output == whole.as_bytes(), "{} bytes: {seen}", output.len());
            }
            State::Lost => {
                let reasons = [Reason::SupervisorDied, Reason::AmbiguousStart];
                assert!(reasons.contains(&task.reason()), "{seen}");
                assert!(whole.as_bytes().starts_with(&output), "{seen}");
                self.lost += 1;
                self.orphaned += u64::from(task.reason() == Reason::SupervisorDied);
            }
            _ => panic!("{seen}"),
        }
    }
}

async fn acknowledged(operator: &Operator, request: &CreateJobRequest) -> Watched {
    eventually(REST, "the job is acknowledged", || async {
        operator.create(request.clone()).await.ok()
    })
    .await
}

/// The tasks of a job once all of them are final and their output is complete, as far as it comes.
async fn at_rest(job: &Watched) -> Vec<Task> {
    let open = [State::Pending, State::Running];
    let what = format!("{} is at rest", job.job_id);
    eventually(REST, &what, || async {
        let tasks = job.tasks().await;
        let rests = |task: &Task| {
            let known = task.output_complete || task.state() == State::Lost;
            !open.contains(&task.state()) && known
        };
        tasks.iter().all(rests).then_some(tasks)
    })
    .await
}

async fn pause(time: Duration) {
    let _ = timeout(time, pending::<()>()).await;
}

async fn freeze(pid: Pid, time: Duration) {
    if kill(pid, Signal::SIGSTOP).is_ok() {
        pause(time).await;
        let _ = kill(pid, Signal::SIGCONT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_runs_twice_whatever_happens() {
    let cycles = std::env::var("MUSTER_CYCLES")
        .ok()
        .and_then(|cycles| cycles.parse().ok())
        .unwrap_or(CYCLES);
    let mut torture = Torture::begin().await;
    for cycle in 1..=cycles {
        for _ in 0..=torture.dice.below(3) {
            torture.ask();
        }
        torture.strike().await;
        if cycle % CYCLES_EACH == 0 || cycle == cycles {
            torture.check().await;
            eprintln!(
                "{cycle} cycles: {} tasks checked, {} of them lost, {} with one of {} killed supervisors",
                torture.checked, torture.lost, torture.orphaned, torture.supervisors_killed
            );
        }
    }
    assert!(torture.checked > 0);
    // A supervisor takes its own task along, and no other.
    assert!(
        torture.orphaned <= torture.supervisors_killed,
        "{} lost with {} supervisors",
        torture.orphaned,
        torture.supervisors_killed
    );
    assert!(cycles < CYCLES_TO_LOSE || torture.orphaned > 0);
    // Ambiguous is only what was struck between the journal and the supervisor.
    assert!(
        torture.lost - torture.orphaned <= cycles / 4,
        "{} lost, {} with their supervisors",
        torture.lost,
        torture.orphaned
    );
}
