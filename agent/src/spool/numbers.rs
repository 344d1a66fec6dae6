//! Whether the numbers of a spool's pieces are those that the control plane knows.
//!
//! An agent that is killed takes along what it had in memory only, as when its disk is full, and the numbers that it had
//! given that. The next agent gives them again, to other pieces. So before it relies on a number it looks whether the
//! control plane has more than its files tell; if so, both go by offsets from then on, which they count alike.

use super::{Spool, held::Inner};

/// What is known about the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// The control plane's are the same.
    Same,
    /// An earlier agent's files end with this one; whether it has sent more is not known yet.
    Unproven(i64),
    /// The control plane may know others.
    Differ,
}

impl Numbers {
    /// What the control plane's last durable sequence says about them.
    fn after(self, theirs: i64) -> Self {
        match self {
            Self::Unproven(last) if theirs <= last => Self::Same,
            Self::Unproven(_) => Self::Differ,
            known => known,
        }
    }
}

impl Spool {
    /// The control plane has all up to this sequence and asks for what follows, which comes after the sequence that is
    /// returned.
    pub(crate) fn resume(&self, after: i64) -> i64 {
        let mut inner = self.inner.lock();
        let before = inner.numbers;
        inner.numbers = before.after(after);
        if inner.numbers == Numbers::Same && before != Numbers::Same {
            inner.note(false);
        }
        let own = inner.plan.acked();
        let differ = inner.numbers == Numbers::Differ;
        drop(inner);
        if differ {
            tracing::debug!(task.id = %self.task_id, after, own, "output is told by offsets: its numbers were used before");
            return own;
        }
        self.acknowledge(after);
        after
    }

    /// Whether the control plane has to go by offsets.
    pub(crate) fn counts_otherwise(&self) -> bool {
        self.inner.lock().numbers == Numbers::Differ
    }

    /// An earlier agent may have sent more than its files tell.
    pub(super) fn doubt_numbers(&self) {
        let mut inner = self.inner.lock();
        let marked = inner.files.values().any(|file| file.is_unsure());
        inner.numbers = match marked {
            true => Numbers::Differ,
            false => Numbers::Unproven(inner.plan.next_sequence() - 1),
        };
        inner.note(true);
    }
}

impl Inner {
    /// Whether a new file has to say that its numbers may be known otherwise.
    pub(super) fn is_unsure(&self) -> bool {
        self.numbers != Numbers::Same
    }

    /// Notes for a later agent what is known. Where it cannot be, that one is as wise as an agent before this note was.
    fn note(&self, unsure: bool) {
        for file in self.files.values() {
            if let Err(error) = file.set_unsure(unsure) {
                tracing::warn!(%error, "a spool's file cannot be marked: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_at_the_control_plane_than_in_the_files_is_a_proof() {
        assert_eq!(Numbers::Unproven(5).after(5), Numbers::Same);
        assert_eq!(Numbers::Unproven(5).after(6), Numbers::Differ);
        assert_eq!(Numbers::Unproven(0).after(0), Numbers::Same);
        assert_eq!(Numbers::Same.after(9), Numbers::Same);
        assert_eq!(Numbers::Differ.after(0), Numbers::Differ, "for good");
    }
}
