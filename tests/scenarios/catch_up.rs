//! What is heard late after a long cut, and what must not be late for it.
//!
//! Three seconds in the suite. Ten minutes and 1.7 GB, by hand:
//! `MUSTER_CUT_S=600 cargo test --release -p muster-tests --test scenarios catch_up -- --nocapture`

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use muster_proto::v1::{OutputStream, host::Presence, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    flow::{Flow, Lines},
    operator::{Operator, Seen},
    tally::Tally,
};
use tokio::task::JoinSet;

/// Seconds of the cut in the suite.
const CUT_S: u64 = 3;

/// Pieces that the cut of the suite makes at most, and those of a second of a longer one: some 3 MB/s.
const PIECES: u64 = 1_000;
const PIECES_PER_S: u64 = 15;

/// Output that a cut leaves behind at least, bytes.
const BACKLOG_MIN: u64 = 8 << 20;

/// What host and control plane keep of a task: more than is ever written here, MiB.
const KEPT_MIB: u64 = 4096;

/// Callers at once, each of whom waits for one answer before it asks again.
const CALLERS: usize = 3;

/// How many starts, and how many cancels, are timed at least before the cut, and while the host catches up. Output
/// goes on flowing until there are as many, so that old and new are on their way at once.
const BEFORE_MIN: usize = 20;
const DURING_MIN: usize = 100;

/// What control may take at most while a host catches up, on a machine that does much else.
const CONTROL_P99_MAX: Duration = Duration::from_secs(1);

/// How long the commands took that somebody gave meanwhile.
#[derive(Default)]
struct Control {
    start: Vec<Duration>,
    cancel: Vec<Duration>,
}

impl Control {
    /// Runs something short, and something long that is cancelled.
    async fn sample(&mut self, operator: &Operator) {
        let asked = Instant::now();
        let short = operator.run("web-1", "true").await;
        short.watch().await;
        self.start.push(asked.elapsed());
        assert_eq!(short.task().await.state(), State::Succeeded);

        let long = operator.run("web-1", "exec sleep 600").await;
        long.reaches(State::Running).await;
        let mut seen = Seen::default();
        let asked = Instant::now();
        long.cancel(Duration::from_secs(10)).await;
        long.watch_into(&mut seen).await;
        self.cancel.push(asked.elapsed());
        assert_eq!(long.task().await.state(), State::Cancelled);
    }

    fn say(&mut self, when: &str) {
        self.start.sort();
        self.cancel.sort();
        for (what, times) in [("start", &self.start), ("cancel", &self.cancel)] {
            eprintln!(
                "{when}, {what}: p50 {:?}, p99 {:?}, longest {:?}, of {}",
                percentile(times, 50),
                percentile(times, 99),
                percentile(times, 100),
                times.len()
            );
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

/// Callers who start and cancel until they are told to stop.
struct Callers {
    calling: JoinSet<Control>,
    sampled: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Callers {
    fn begin(operator: &Operator, callers: usize) -> Self {
        let (sampled, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let mut calling = JoinSet::new();
        for _ in 0..callers {
            let operator = operator.clone();
            let (sampled, stop) = (Arc::clone(&sampled), Arc::clone(&stop));
            calling.spawn(async move {
                let mut control = Control::default();
                while !stop.load(Ordering::Relaxed) {
                    control.sample(&operator).await;
                    sampled.fetch_add(1, Ordering::Relaxed);
                }
                control
            });
        }
        Self {
            calling,
            sampled,
            stop,
        }
    }

    async fn have_sampled(&self, samples: usize, limit: Duration) {
        eventually(limit, "control is timed often enough", || async {
            (self.sampled.load(Ordering::Relaxed) >= samples).then_some(())
        })
        .await;
    }

    async fn end(self) -> Control {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Control::default();
        for control in self.calling.join_all().await {
            all.start.extend(control.start);
            all.cancel.extend(control.cancel);
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_cut_output_is_whole_and_control_does_not_wait_for_it() {
    let cut_s = std::env::var("MUSTER_CUT_S").ok();
    let cut_s = cut_s.map_or(CUT_S, |cut| cut.parse().unwrap());
    let cut = Duration::from_secs(cut_s);
    let fleet = Fleet::plan()
        .set("MUSTER_OUTPUT_OF_TASK", KEPT_MIB)
        .set_agents("MUSTER_TASK_SPOOL", KEPT_MIB)
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let tally = Tally::new(fleet.directory());
    let callers = Callers::begin(&operator, CALLERS);
    callers.have_sampled(BEFORE_MIN, PATIENCE * 2).await;
    let mut before = callers.end().await;

    let flow = Flow::new(fleet.directory());
    let pause = cut.as_secs_f64() / PIECES.max(cut_s * PIECES_PER_S) as f64;
    let text = format!("{}; {}", tally.mark(), flow.script(pause));
    let job = operator.run("web-1", text).await;
    host.wire().carried_up(1 << 20).await;
    host.wire().cut();
    let cut_at = Instant::now();
    operator.presence("web-1", Presence::Suspect).await;
    let limit = cut + PATIENCE;
    eventually(limit, "the cut is long enough", || async {
        (cut_at.elapsed() >= cut).then_some(())
    })
    .await;
    let size = job.task().await.output_size;
    let known = size.unwrap_or_default().stdout_bytes;
    host.wire().mend();
    operator.online("web-1").await;

    let mended = Instant::now();
    let callers = Callers::begin(&operator, CALLERS);
    callers.have_sampled(DURING_MIN, PATIENCE * 3).await;
    flow.stop();
    eventually(limit + PATIENCE, "it catches up", || async {
        job.task().await.output_complete.then_some(())
    })
    .await;
    let caught_up = mended.elapsed();
    let mut during = callers.end().await;
    job.succeeds().await;

    let mut expected = Lines::default();
    job.output_into(OutputStream::Stdout, |bytes| expected.follow(bytes))
        .await;
    expected.ended_with(flow.lines());
    let backlog = expected.bytes - known as u64;
    eprintln!(
        "cut of {cut:?}: {} MiB caught up in {caught_up:?}",
        backlog >> 20
    );
    before.say("before the cut");
    during.say("while it catches up");
    assert_eq!(tally.runs(), 1);
    assert!(backlog > BACKLOG_MIN, "{backlog} bytes");
    assert!(during.start.len() >= DURING_MIN && during.cancel.len() >= DURING_MIN);
    for times in [&during.start, &during.cancel] {
        assert!(percentile(times, 99) < CONTROL_P99_MAX);
    }
}
