//! How much principals have done lately, held against their limits. Counts are in memory, and begin anew with the
//! process; what follows from going over a limit is durable.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;

use super::Limit;

/// Principals that are counted; beyond, those that have been idle longest begin anew.
const COUNTED_MAX: usize = 100_000;

/// Parts of a window: it moves on by one of them at a time.
const PARTS: usize = 60;

/// How much was done within a window that moves.
#[derive(Debug, Clone)]
struct Window {
    /// Milliseconds of a part.
    part: i64,
    counts: [u64; PARTS],
    /// The number of the newest part since 1970.
    newest: i64,
}

impl Window {
    fn of(window: i64) -> Self {
        Self {
            part: window / PARTS as i64,
            counts: [0; PARTS],
            newest: 0,
        }
    }

    /// Counts more, and returns how much it is in the window.
    fn add(&mut self, more: u64, time: i64) -> u64 {
        let now = time.div_euclid(self.part).max(self.newest);
        let passed = now - self.newest;
        if passed >= PARTS as i64 {
            self.counts = [0; PARTS];
        } else {
            for part in self.newest + 1..=now {
                self.counts[slot(part)] = 0;
            }
        }
        self.newest = now;
        self.counts[slot(now)] = self.counts[slot(now)].saturating_add(more);
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }
}

fn slot(part: i64) -> usize {
    part.rem_euclid(PARTS as i64) as usize
}

struct Counted {
    jobs: Window,
    output: Window,
    last: i64,
}

/// A limit that was gone over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// What there is too much of, with its window.
    what: &'static str,
    limit: u64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} {}", self.limit, self.what)
    }
}

/// Counts what principals do.
#[derive(Default)]
pub(crate) struct Usage(Mutex<HashMap<Arc<str>, Counted>>);

impl Usage {
    /// Counts a job on so many hosts. `open` says how many tasks of the principal are not final.
    pub(crate) fn job(
        &self,
        principal: &Arc<str>,
        limit: &Limit,
        hosts: usize,
        open: impl FnOnce() -> usize,
        time: i64,
    ) -> Result<(), Exceeded> {
        let over = |count: u64, limit: Option<u64>, what| match limit {
            Some(limit) if count > limit => Err(Exceeded { what, limit }),
            _ => Ok(()),
        };
        let hosts = hosts as u64;
        over(
            hosts,
            limit.hosts_per_job.map(u64::from),
            "hosts in one job",
        )?;
        if limit.jobs_per_minute.is_some() {
            let jobs = self.count(principal, time, |counted| counted.jobs.add(1, time));
            over(
                jobs,
                limit.jobs_per_minute.map(u64::from),
                "jobs within a minute",
            )?;
        }
        if limit.concurrent_tasks.is_some() {
            let tasks = open() as u64 + hosts;
            over(
                tasks,
                limit.concurrent_tasks.map(u64::from),
                "tasks at once",
            )?;
        }
        Ok(())
    }

    /// Counts output of a principal's tasks.
    pub(crate) fn output(
        &self,
        principal: &Arc<str>,
        limit: &Limit,
        bytes: u64,
        time: i64,
    ) -> Result<(), Exceeded> {
        let Some(limit) = limit.output_bytes_per_hour else {
            return Ok(());
        };
        let sum = self.count(principal, time, |counted| counted.output.add(bytes, time));
        if sum > limit {
            let what = "bytes of output within an hour";
            return Err(Exceeded { what, limit });
        }
        Ok(())
    }

    fn count<T>(
        &self,
        principal: &Arc<str>,
        time: i64,
        count: impl FnOnce(&mut Counted) -> T,
    ) -> T {
        let mut all = self.0.lock();
        if all.len() >= COUNTED_MAX && !all.contains_key(principal) {
            let mut times: Vec<i64> = all.values().map(|counted| counted.last).collect();
            let middle = times.len() / 2;
            let (_, middle, _) = times.select_nth_unstable(middle);
            let middle = *middle;
            all.retain(|_, counted| counted.last > middle);
        }
        let counted = all.entry(Arc::clone(principal)).or_insert_with(|| Counted {
            jobs: Window::of(60_000),
            output: Window::of(3_600_000),
            last: time,
        });
        counted.last = time;
        count(counted)
    }

    /// Forgets what a principal did: it begins anew.
    pub(crate) fn forget(&self, principal: &str) {
        self.0.lock().remove(principal);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn few() -> Limit {
        Limit {
            jobs_per_minute: Some(3),
            hosts_per_job: Some(10),
            concurrent_tasks: Some(20),
            output_bytes_per_hour: Some(1000),
            ..Limit::default()
        }
    }

    #[test]
    fn each_limit_is_kept() {
        let usage = Usage::default();
        let ai: Arc<str> = "ai/claude".into();
        let job = |hosts, open, time| usage.job(&ai, &few(), hosts, || open, time);
        assert!(job(11, 0, 0).unwrap_err().to_string().contains("10 hosts"));
        assert!(job(10, 11, 0).unwrap_err().to_string().contains("20 tasks"));
        job(10, 10, 0).unwrap();
        job(1, 0, 30_000).unwrap();
        assert!(
            job(1, 0, 59_000)
                .unwrap_err()
                .to_string()
                .contains("3 jobs")
        );
        job(1, 0, 120_000).unwrap();
        let output = |bytes, time| usage.output(&ai, &few(), bytes, time);
        output(1000, 0).unwrap();
        output(1, 3_500_000).unwrap_err();
        output(999, 3_700_000).unwrap();
        usage.forget("ai/claude");
        output(1000, 3_700_000).unwrap();
    }

    #[test]
    fn one_does_not_count_for_another_and_no_limit_counts_nothing() {
        let usage = Usage::default();
        let none = Limit::default();
        for _ in 0..100 {
            usage
                .job(&"operator/ada".into(), &none, 100_000, || 1_000_000, 0)
                .unwrap();
            usage
                .output(&"operator/ada".into(), &none, u64::MAX, 0)
                .unwrap();
        }
        assert!(usage.0.lock().is_empty());
        for name in ["ai/a", "ai/b"] {
            (0..3).for_each(|_| usage.job(&name.into(), &few(), 1, || 0, 0).unwrap());
        }
    }

    proptest! {
        /// Never less than what came within the window, and never more than what came within one part more.
        #[test]
        fn a_window_counts_what_is_in_it(steps in prop::collection::vec((0_i64..20_000, 0_u64..5), 1..200)) {
            let mut window = Window::of(60_000);
            let mut time = 1_000_000;
            let mut all: Vec<(i64, u64)> = Vec::new();
            for (passed, more) in steps {
                time += passed;
                all.push((time, more));
                let counted = window.add(more, time);
                let within = |span: i64| -> u64 {
                    all.iter().filter(|(at, _)| *at > time - span).map(|(_, more)| more).sum()
                };
                prop_assert!(counted >= within(59_000), "{counted} of {}", within(59_000));
                prop_assert!(counted <= within(60_001), "{counted} of {}", within(60_001));
            }
        }
    }
}
