//! The latest state of the control plane that this agent has seen.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use bytes::Bytes;
use data_encoding::HEXLOWER;

/// The latest state of the control plane that this agent has seen, so that a restore from a backup shows.
pub(super) struct Seen {
    path: PathBuf,
    pub(super) generation: String,
    pub(super) ledger_position: i64,
    /// Proves that position.
    pub(super) seal: Bytes,
}

impl Seen {
    pub(super) fn load(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let mut word = || words.next().unwrap_or_default();
        Self {
            generation: word().to_owned(),
            ledger_position: word().parse().unwrap_or(0),
            // An older agent has written none.
            seal: HEXLOWER
                .decode(word().as_bytes())
                .unwrap_or_default()
                .into(),
            path,
        }
    }

    pub(super) fn note(&mut self, generation: &str, ledger_position: i64, seal: &Bytes) {
        if self.generation != generation {
            if !self.generation.is_empty() {
                tracing::warn!("the control plane was restored from a backup, or is another one");
            }
            generation.clone_into(&mut self.generation);
            self.ledger_position = 0;
        }
        // The same position is told again with a seal to one that had none.
        if self.seal.is_empty() && ledger_position == self.ledger_position {
            self.seal = seal.clone();
        }
        self.advance(ledger_position, seal);
        self.store();
    }

    pub(super) fn advance(&mut self, ledger_position: i64, seal: &Bytes) {
        if ledger_position > self.ledger_position {
            self.ledger_position = ledger_position;
            self.seal = seal.clone();
            self.store();
        }
    }

    /// A stale file after a power cut only makes a rollback show later, so it is not synced.
    fn store(&self) {
        let new = self.path.with_extension("new");
        let seal = HEXLOWER.encode(&self.seal);
        let text = format!("{} {} {seal}\n", self.generation, self.ledger_position);
        let stored = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = stored {
            tracing::warn!(%error, "{} cannot be written: {error}", self.path.display());
        }
    }
}
