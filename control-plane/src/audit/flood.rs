//! How many entries that changed nothing are written. Pure.
//!
//! Whoever may call, even without a credential, could otherwise fill the disk with refusals. Each principal, and all
//! strangers together, may cause a burst of entries and then few a second; what comes beyond is counted by method and
//! reason, and the count is written.

use crate::model::Entry;
use std::collections::HashMap;

/// Entries that one source may cause at once.
const BURST: f64 = 200.0;

/// Entries a second that it may cause for ever: at half a kilobyte each, 43 MB a day.
const PER_SECOND: f64 = 1.0;

/// How long what is too much is counted before the count is written.
const WINDOW_MS: i64 = 10_000;

/// Sources that are told apart; all beyond share one.
const SOURCES_MAX: usize = 4096;

/// Counts of one source that are told apart by method and reason; all beyond share one.
const COUNTS_MAX: usize = 16;

/// What each source has left.
#[derive(Default)]
pub(super) struct Flood(HashMap<String, Source>);

struct Source {
    left: f64,
    time: i64,
    since: i64,
    /// One entry of each kind, with how many more there were.
    counts: Vec<Entry>,
}

impl Source {
    fn new(now: i64) -> Self {
        Self {
            left: BURST,
            time: now,
            since: now,
            counts: Vec::new(),
        }
    }

    fn refill(&mut self, now: i64) {
        #[allow(clippy::cast_precision_loss)]
        let seconds = (now - self.time).max(0) as f64 / 1000.0;
        self.left = (self.left + seconds * PER_SECOND).min(BURST);
        self.time = now;
    }

    fn count(&mut self, mut entry: Entry, now: i64) {
        if self.counts.is_empty() {
            self.since = now;
        }
        let full = self.counts.len() >= COUNTS_MAX;
        let same =
            |other: &&mut Entry| other.method == entry.method && other.reason == entry.reason;
        if let Some(other) = self.counts.iter_mut().find(same) {
            other.repeated += entry.repeated.max(1);
            return;
        }
        entry.repeated = entry.repeated.max(1);
        match self.counts.last_mut().filter(|_| full) {
            // One line for all that are too many to be told apart.
            Some(last) => {
                last.repeated += entry.repeated;
                last.method = "several".into();
                last.reason = "".into();
                last.request_digest = None;
                last.hosts.clear();
            }
            None => self.counts.push(entry),
        }
    }
}

impl Flood {
    /// The entry, if it is to be written as it is; otherwise it is counted.
    pub(super) fn admit(&mut self, entry: Entry, now: i64) -> Option<Entry> {
        let known = self.0.contains_key(&*entry.principal);
        if !known && self.0.len() >= SOURCES_MAX {
            self.forget(now);
        }
        let key = if known || self.0.len() < SOURCES_MAX {
            entry.principal.to_string()
        } else {
            "*".to_owned()
        };
        let source = self.0.entry(key).or_insert_with(|| Source::new(now));
        source.refill(now);
        if source.left >= 1.0 {
            source.left -= 1.0;
            return Some(entry);
        }
        source.count(entry, now);
        None
    }

    /// What was counted long enough.
    pub(super) fn due(&mut self, now: i64) -> Vec<Entry> {
        self.take(now, |source| now - source.since >= WINDOW_MS)
    }

    /// What was counted so far.
    pub(super) fn rest(&mut self, now: i64) -> Vec<Entry> {
        self.take(now, |_| true)
    }

    fn take(&mut self, now: i64, due: impl Fn(&Source) -> bool) -> Vec<Entry> {
        let mut taken = Vec::new();
        for source in self.0.values_mut() {
            if !source.counts.is_empty() && due(source) {
                taken.append(&mut source.counts);
                source.since = now;
            }
        }
        taken
    }

    /// Lets go of sources that have their burst again.
    fn forget(&mut self, now: i64) {
        self.0.retain(|_, source| {
            source.refill(now);
            source.left < BURST || !source.counts.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(principal: &str, method: &'static str) -> Entry {
        Entry::new(method).by(principal)
    }

    #[test]
    fn a_flood_becomes_a_count_and_the_count_is_complete() {
        let mut flood = Flood::default();
        let (mut written, mut counted) = (0, 0);
        // A million refusals in 100 s, with ten reasons.
        for number in 0..1_000_000_i64 {
            let now = number / 10;
            let methods = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
            let entry = refusal("", methods[number as usize % 10]);
            written += u64::from(flood.admit(entry, now).is_some());
            for entry in flood.due(now) {
                written += 1;
                counted += entry.repeated - 1;
            }
        }
        for entry in flood.rest(100_000) {
            written += 1;
            counted += entry.repeated - 1;
        }
        assert!(written < 500, "{written}");
        assert_eq!(written + counted, 1_000_000);
    }

    #[test]
    fn a_flood_of_strangers_hides_nobody_else() {
        let mut flood = Flood::default();
        for _ in 0..10_000 {
            flood.admit(refusal("", "a"), 0);
        }
        assert!(flood.admit(refusal("", "a"), 0).is_none());
        assert!(flood.admit(refusal("operator/ada", "a"), 0).is_some());
        assert!(
            flood.admit(refusal("", "a"), 1500).is_some(),
            "a second later"
        );
    }

    #[test]
    fn sources_and_kinds_have_a_limit() {
        let mut flood = Flood::default();
        for number in 0..3 * SOURCES_MAX {
            flood.admit(refusal(&format!("ai/{number}"), "a"), 0);
        }
        assert!(flood.0.len() <= SOURCES_MAX + 1);
        for number in 0..1000 {
            let mut entry = refusal("ai/1", "a");
            entry.reason = format!("R{number}").into();
            flood.admit(entry, 0);
        }
        let rest = flood.rest(0);
        assert!(rest.len() <= 2 * COUNTS_MAX, "{}", rest.len());
    }

    #[test]
    fn sources_that_are_quiet_are_let_go() {
        let mut flood = Flood::default();
        for number in 0..2 * SOURCES_MAX {
            let now = i64::try_from(number).unwrap() * 10_000;
            assert!(
                flood
                    .admit(refusal(&format!("ai/{number}"), "a"), now)
                    .is_some()
            );
        }
        assert!(flood.0.len() <= SOURCES_MAX);
    }
}
