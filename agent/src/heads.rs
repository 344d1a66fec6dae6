//! Heads of the control plane's audit log: the last ones are kept here, where nobody who rewrites the log can reach
//! them. `muster audit verify --head` takes the file.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use muster_client::audit::Head;
use muster_proto::v1::AuditHead;

/// Heads that are kept.
const KEPT: usize = 100;

/// Lines of the file before it is written anew with those that are kept.
const LINES_MAX: usize = 2 * KEPT;

/// Name of the file in the agent's directory: one head a line, oldest first.
const FILE: &str = "audit-heads.jsonl";

/// The file with the heads that an agent keeps.
pub fn heads_file(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// The heads that an agent keeps.
pub(crate) struct Heads {
    path: PathBuf,
    kept: Vec<Head>,
    lines: usize,
    /// The last contradiction, in words; empty while there was none.
    conflict: String,
}

impl Heads {
    /// Reads the file. A line that is no head, as one that a power cut tore, is left out.
    pub(crate) fn load(directory: &Path) -> Self {
        let path = heads_file(directory);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut kept: Vec<_> = text
            .lines()
            .filter_map(|line| Head::from_line(line).ok())
            .collect();
        kept.drain(..kept.len().saturating_sub(KEPT));
        Self {
            path,
            kept,
            lines: text.lines().count(),
            conflict: String::new(),
        }
    }

    /// Takes a head. Returns words if it contradicts one that is kept, and that is news.
    pub(crate) fn take(&mut self, head: AuditHead) -> Option<String> {
        let head = match Head::read(head) {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(%error, "a head of the audit log was left out: {error}");
                return None;
            }
        };
        if self
            .kept
            .last()
            .is_some_and(|last| last.signed == head.signed)
        {
            return None;
        }
        let conflict = self
            .kept
            .iter()
            .rev()
            .find_map(|old| contradiction(old, &head));
        if let Err(error) = self.keep(head) {
            tracing::warn!(%error, "{} cannot be written: {error}", self.path.display());
        }
        let conflict = conflict?;
        if !self.conflict.is_empty() {
            // It was said, and each further head would say it again.
            return None;
        }
        tracing::warn!("the control plane's audit log was cut or rewritten: {conflict}");
        self.conflict.clone_from(&conflict);
        Some(conflict)
    }

    fn keep(&mut self, head: Head) -> io::Result<()> {
        let line = format!("{}\n", head.to_line());
        self.kept.push(head);
        if self.kept.len() > KEPT {
            // What proves that the log was cut must not be pushed out by what came after.
            let first = usize::from(!self.conflict.is_empty());
            self.kept.remove(first.min(self.kept.len() - 1));
        }
        self.lines += 1;
        let mut open = File::options();
        open.create(true).mode(0o600);
        if self.lines <= LINES_MAX {
            return open
                .append(true)
                .open(&self.path)?
                .write_all(line.as_bytes());
        }
        let new = self.path.with_extension("new");
        let lines: String = self.kept.iter().map(|head| head.to_line() + "\n").collect();
        open.write(true)
            .truncate(true)
            .open(&new)?
            .write_all(lines.as_bytes())?;
        fs::rename(&new, &self.path)?;
        self.lines = self.kept.len();
        Ok(())
    }
}

/// What one head says against an older one, in words. A restore begins a generation, and may go back.
fn contradiction(old: &Head, new: &Head) -> Option<String> {
    if old.control_plane != new.control_plane || old.generation != new.generation {
        return None;
    }
    let (before, now) = (old.position, new.position);
    if now.count < before.count {
        return Some(format!(
            "it had {} entries and now has {}, in one generation",
            before.count, now.count
        ));
    }
    (now.count == before.count && now.hash != before.hash)
        .then(|| format!("entry {} had another hash before", now.count))
}

#[cfg(test)]
mod tests {
    use muster_client::audit::Position;

    use super::*;

    fn head(generation: &str, count: u64, fill: u8) -> AuditHead {
        let position = Position {
            count,
            hash: [fill; 32],
        };
        AuditHead {
            statement: Head::statement("cp", generation, position, 5),
            ..AuditHead::default()
        }
    }

    #[test]
    fn the_last_hundred_are_kept_and_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(directory.path());
        for count in 1..=450 {
            assert_eq!(heads.take(head("a", count, 1)), None);
            assert_eq!(heads.take(head("a", count, 1)), None, "the same again");
        }
        let again = Heads::load(directory.path());
        assert_eq!(again.kept.len(), KEPT);
        assert_eq!(again.kept, heads.kept);
        assert_eq!(again.kept[0].position.count, 351);
        let size = fs::metadata(heads_file(directory.path())).unwrap().len();
        assert!(size < 64 << 10, "{size}");
    }

    #[test]
    fn a_log_that_was_cut_or_rewritten_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(directory.path());
        assert_eq!(heads.take(head("a", 10, 1)), None);
        assert!(heads.take(head("a", 9, 2)).unwrap().contains("had 10"));
        assert_eq!(heads.take(head("a", 8, 3)), None, "it was said");

        // The next process remembers, and says it again.
        let mut heads = Heads::load(directory.path());
        assert!(heads.take(head("a", 10, 4)).unwrap().contains("entry 10"));
    }

    #[test]
    fn a_restore_may_go_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(directory.path());
        assert_eq!(heads.take(head("a", 10, 1)), None);
        assert_eq!(heads.take(head("b", 5, 2)), None);
    }
}
