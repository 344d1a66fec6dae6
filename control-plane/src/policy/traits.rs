//! What policy sees of a host. Hosts with the same labels and limit share one, so that they are judged once.

use crate::model::Mode;
use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::Arc,
};

/// What policy sees of a host.
#[derive(Debug)]
pub(crate) struct Traits {
    /// Set by operators.
    pub(crate) labels: BTreeMap<String, String>,
    /// What an operator lowered it to.
    pub(crate) limit: Option<Mode>,
    /// A hash of the above; compared before them.
    hash: u64,
}

impl Traits {
    fn fits(&self, labels: &BTreeMap<String, String>, limit: Option<Mode>) -> bool {
        self.limit == limit && self.labels == *labels
    }
}

impl PartialEq for Traits {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.hash == other.hash && self.fits(&other.labels, other.limit))
    }
}

impl Eq for Traits {}

impl Hash for Traits {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Traits that are in use, each once.
#[derive(Debug, Default)]
pub(crate) struct TraitsKept {
    all: HashSet<Arc<Traits>>,
    seeds: RandomState,
    /// How many there may be before those out of use are let go.
    sweep_at: usize,
}

impl TraitsKept {
    /// The traits of these labels and this limit.
    pub(crate) fn of(
        &mut self,
        labels: &BTreeMap<String, String>,
        limit: Option<Mode>,
    ) -> Arc<Traits> {
        let traits = Traits {
            hash: self.seeds.hash_one((labels, limit)),
            labels: labels.clone(),
            limit,
        };
        if let Some(known) = self.all.get(&traits) {
            return Arc::clone(known);
        }
        if self.all.len() >= self.sweep_at {
            self.all.retain(|traits| Arc::strong_count(traits) > 1);
            self.sweep_at = (self.all.len() * 2).max(1024);
        }
        let traits = Arc::new(traits);
        self.all.insert(Arc::clone(&traits));
        traits
    }

    /// The traits that a host has, or `old` if they are still right.
    pub(crate) fn renew(
        &mut self,
        old: &Arc<Traits>,
        labels: &BTreeMap<String, String>,
        limit: Option<Mode>,
    ) -> Arc<Traits> {
        if old.fits(labels, limit) {
            Arc::clone(old)
        } else {
            self.of(labels, limit)
        }
    }
}

/// The traits of a host of which nothing is known any more.
pub(crate) fn unknown() -> Arc<Traits> {
    Arc::new(Traits {
        labels: BTreeMap::new(),
        limit: None,
        hash: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_hosts_share_their_traits() {
        let mut kept = TraitsKept::default();
        let labels = |value: &str| BTreeMap::from([("env".to_owned(), value.to_owned())]);
        let prod = kept.of(&labels("prod"), None);
        assert!(Arc::ptr_eq(&prod, &kept.of(&labels("prod"), None)));
        assert_ne!(prod, kept.of(&labels("dev"), None));
        let lowered = kept.renew(&prod, &labels("prod"), Some(Mode::Edit));
        assert_ne!(prod, lowered);
        assert!(Arc::ptr_eq(
            &prod,
            &kept.renew(&prod, &labels("prod"), None)
        ));
    }

    #[test]
    fn traits_out_of_use_are_let_go() {
        let mut kept = TraitsKept::default();
        for number in 0..10_000 {
            kept.of(
                &BTreeMap::from([("n".to_owned(), number.to_string())]),
                None,
            );
        }
        assert!(kept.all.len() <= 1024, "{}", kept.all.len());
    }
}
