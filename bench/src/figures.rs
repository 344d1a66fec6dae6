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
