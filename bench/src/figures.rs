//! Samples become medians, percentiles and ratios.

use std::time::Duration;

/// Measured times of one thing.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a measured time.
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that `percent` of the samples do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(at).copied().unwrap_or_default()
    }

    /// The median.
    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// A row of a table: median, 99th percentile, and the median's ratio to that of `reference`.
    pub(crate) fn print(&self, name: &str, reference: &Samples) {
        let (median, limit) = (self.median(), reference.median());
        println!(
            "{name:<34} {:>8.3} ms  p99 {:>8.3} ms  {:>6.2} x",
            millis(median),
            millis(self.percentile(99)),
            millis(median) / millis(limit).max(f64::EPSILON),
        );
    }
}

/// What was measured of one thing in rounds.
#[derive(Debug, Default)]
pub(crate) struct Series {
    all: Vec<f64>,
    /// The median of each round.
    rounds: Vec<f64>,
}

impl Series {
    /// Adds a round.
    pub(crate) fn add_round(&mut self, figures: Vec<f64>) {
        self.all.extend_from_slice(&figures);
        self.rounds.push(median(figures));
    }

    /// The median of all.
    pub(crate) fn median(&self) -> f64 {
        median(self.all.clone())
    }

    /// What 99 of 100 do not exceed.
    pub(crate) fn p99(&self) -> f64 {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() * 99).div_ceil(100).saturating_sub(1);
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The median of what this is of the other, round by round.
    pub(crate) fn ratio(&self, to: &Series) -> f64 {
        let rounds = self.rounds.iter().zip(&to.rounds);
        median(rounds.map(|(this, other)| this / other).collect())
    }

    /// In words: the median, and the 99th percentile where there are enough samples.
    pub(crate) fn shown(&self, unit: &str) -> String {
        match self.all.len() > self.rounds.len() {
            true => format!(
                "{:>8.3} {unit}  p99 {:>8.3} {unit}",
                self.median(),
                self.p99()
            ),
            false => format!("{:>8.0} {unit}", self.median()),
        }
    }
}

/// Nothing is done for so long.
pub(crate) async fn wait(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A row of a table: a rate, and its ratio to that of a reference.
pub(crate) fn print_rate(name: &str, rate: f64, unit: &str, reference: f64) {
    println!("{name:<34} {rate:>8.0} {unit}  {:>6.2} x", rate / reference);
}

/// A heading.
pub(crate) fn heading(text: &str) {
    println!("\n{text}");
}

/// The median of some numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
