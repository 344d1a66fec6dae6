//! What is heard late after a long cut, and what must not be late for it.
//!
//! Three seconds in the suite. Ten minutes, by hand:
//! `MUSTER_CUT_S=600 cargo test -p muster-tests --test scenarios catch_up -- --nocapture`

use std::{
    fs,
    time::{Duration, Instant},
};

use muster_proto::v1::{OutputStream, host::Presence, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    operator::{Operator, Seen},
    tally::Tally,
};

/// Seconds of the cut in the suite.
const CUT_S: u64 = 3;

/// Lines of one piece of output, and how many pieces a cut of any length makes at most.
const LINES: u64 = 20_000;
const PIECES: u64 = 1_000;

/// Output that a cut of the suite leaves behind at least, bytes.
const BACKLOG_MIN: u64 = 8 << 20;

/// How many samples there are at least, should the catch-up be over at once.
const SAMPLES_MIN: usize = 20;

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
                "{when}, {what}: p50 {:?}, p99 {:?}, of {}",
                percentile(times, 50),
                percentile(times, 99),
                times.len()
            );
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_cut_output_is_whole_and_control_does_not_wait_for_it() {
    let cut = std::env::var("MUSTER_CUT_S").ok();
    let cut = Duration::from_secs(cut.map_or(CUT_S, |cut| cut.parse().unwrap()));
    let fleet = Fleet::plan()
        .set("MUSTER_OUTPUT_OF_TASK", 2048)
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let tally = Tally::new(fleet.directory());
    let mut before = Control::default();
    while before.start.len() < SAMPLES_MIN {
        before.sample(&operator).await;
    }

    let (go, pieces) = (
        fleet.directory().join("go"),
        fleet.directory().join("pieces"),
    );
    let pause = cut.as_secs_f64() / PIECES as f64;
    let job = operator
        .run(
            "web-1",
            format!(
                "{}; i=0; until [ -e '{}' ]; do seq $((i*{LINES}+1)) $((i*{LINES}+{LINES})); i=$((i+1)); \
                 sleep {pause}; done; echo $i > '{}'",
                tally.mark(),
                go.display(),
                pieces.display()
            ),
        )
        .await;
    host.wire().carried_up(1 << 20).await;
    host.wire().cut();
    let cut_at = Instant::now();
    operator.presence("web-1", Presence::Suspect).await;
    let limit = cut + PATIENCE;
    eventually(limit, "the cut is long enough", || async {
        (cut_at.elapsed() >= cut).then_some(())
    })
    .await;
    let known = job
        .task()
        .await
        .output_size
        .unwrap_or_default()
        .stdout_bytes;
    host.wire().mend();
    operator.online("web-1").await;

    // Output goes on flowing for a while, so that old and new are on their way at once.
    let mended = Instant::now();
    let mut during = Control::default();
    during.sample(&operator).await;
    fs::write(&go, "").unwrap();
    let mut caught_up = None;
    while caught_up.is_none() || during.start.len() < SAMPLES_MIN {
        during.sample(&operator).await;
        if caught_up.is_none() && job.task().await.output_complete {
            caught_up = Some((mended.elapsed(), during.start.len()));
        }
        assert!(mended.elapsed() < limit + PATIENCE, "it does not catch up");
    }
    job.succeeds().await;

    let pieces: u64 = fs::read_to_string(pieces).unwrap().trim().parse().unwrap();
    let expected: String = (1..=pieces * LINES)
        .map(|line| format!("{line}\n"))
        .collect();
    let backlog = expected.len() as u64 - known as u64;
    let (time, samples) = caught_up.unwrap();
    eprintln!(
        "cut of {cut:?}: {} MiB caught up in {time:?}, {samples} samples meanwhile",
        backlog >> 20
    );
    before.say("before the cut");
    during.say("while it catches up");
    let output = job.output(OutputStream::Stdout).await;
    assert!(
        output == expected.as_bytes(),
        "{} bytes of {}",
        output.len(),
        expected.len()
    );
    assert_eq!(tally.runs(), 1);
    assert!(backlog > BACKLOG_MIN, "{backlog} bytes");
    for times in [&during.start, &during.cancel] {
        assert!(percentile(times, 99) < CONTROL_P99_MAX);
    }
}
