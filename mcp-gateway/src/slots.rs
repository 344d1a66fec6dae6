//! How many calls one principal, and all together, may have under way.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Calls under way for one principal.
const PER_PRINCIPAL: usize = 256;
/// Calls under way in all.
const IN_ALL: usize = 2_048;

/// Counts calls under way.
#[derive(Default)]
pub(crate) struct Slots(Arc<Mutex<HashMap<Arc<str>, usize>>>);

/// One call under way; ends when dropped.
pub(crate) struct Slot {
    principal: Arc<str>,
    taken: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

impl Slots {
    /// A slot for a call; `None` if there are too many.
    pub(crate) fn take(&self, principal: &Arc<str>) -> Option<Slot> {
        let mut taken = self.0.lock();
        if taken.values().sum::<usize>() >= IN_ALL {
            return None;
        }
        let count = taken.entry(principal.clone()).or_default();
        if *count >= PER_PRINCIPAL {
            return None;
        }
        *count += 1;
        Some(Slot {
            principal: principal.clone(),
            taken: self.0.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_principal_does_not_take_all() {
        let slots = Slots::default();
        let (one, other): (Arc<str>, Arc<str>) = ("ai/one".into(), "ai/other".into());
        let taken: Vec<Slot> = std::iter::from_fn(|| slots.take(&one)).collect();
        assert_eq!(taken.len(), PER_PRINCIPAL);
        assert!(slots.take(&other).is_some());
        drop(taken);
        assert!(slots.take(&one).is_some());
    }
}
