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
use prost::Message as _;

/// Heads that are kept.
const KEPT: usize = 100;

/// Lines of the file before it is written anew with those that are kept.
const LINES_MAX: usize = 2 * KEPT;

/// A longer head is left out, bytes: what is signed is short, and so are certificates.
const HEAD_MAX: usize = 16 << 10;

/// Name of the file in the agent's directory: one head a line, oldest first.
const FILE: &str = "audit-heads.jsonl";

/// The file with the heads that an agent keeps.
pub fn heads_file(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// The heads that an agent keeps.
pub(crate) struct Heads {
    path: PathBuf,
    /// The oldest first.
    kept: Vec<Head>,
    lines: usize,
    /// The contradiction between heads, in words; empty if there is none.
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
        trim(&mut kept);
        Self {
            path,
            conflict: conflict(&kept).map_or(String::new(), |conflict| conflict.words),
            kept,
            // Behind a line that is torn nothing can be added.
            lines: match text.is_empty() || text.ends_with('\n') {
                true => text.lines().count(),
                false => LINES_MAX,
            },
        }
    }

    /// What the heads contradict, in words; empty if nothing.
    pub(crate) fn conflict(&self) -> &str {
        &self.conflict
    }

    /// Takes a head; says whether it changes what they contradict.
    pub(crate) fn take(&mut self, head: AuditHead) -> bool {
        if head.encoded_len() > HEAD_MAX {
            tracing::warn!("a head of the audit log was left out: it has more than 16 KiB");
            return false;
        }
        let head = match Head::read(head) {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(%error, "a head of the audit log was left out: {error}");
                return false;
            }
        };
        if self
            .kept
            .last()
            .is_some_and(|last| last.signed == head.signed)
        {
            return false;
        }
        if let Err(error) = self.keep(head) {
            tracing::warn!(%error, "{} cannot be written: {error}", self.path.display());
        }
        let words = conflict(&self.kept).map_or(String::new(), |conflict| conflict.words);
        if words == self.conflict {
            return false;
        }
        if !words.is_empty() {
            tracing::warn!("heads of the control plane's audit log contradict each other: {words}");
        }
        self.conflict = words;
        true
    }

    fn keep(&mut self, head: Head) -> io::Result<()> {
        let line = format!("{}\n", head.to_line());
        self.kept.push(head);
        trim(&mut self.kept);
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

/// Lets go of the oldest that are too many, but never of those that prove that the log was cut or rewritten: what came
/// after must not push them out.
fn trim(kept: &mut Vec<Head>) {
    while kept.len() > KEPT {
        let proof = conflict(kept).filter(|conflict| !conflict.restored);
        let spared = |at: usize| {
            let proof = proof.as_ref();
            proof.is_some_and(|proof| at == proof.older || at == proof.newer)
        };
        let Some(gone) = (0..kept.len()).find(|at| !spared(*at)) else {
            return;
        };
        kept.remove(gone);
    }
}

/// Two heads that no log that only grows can have had.
#[derive(Debug, PartialEq, Eq)]
struct Conflict {
    older: usize,
    newer: usize,
    /// The log says of itself that it was set back.
    restored: bool,
    words: String,
}

/// The first contradiction among heads in the order in which they came. That entries were lost by a restore is told if
/// there is nothing worse.
fn conflict(kept: &[Head]) -> Option<Conflict> {
    let mut lost = None;
    for (newer, new) in kept.iter().enumerate() {
        // The longest of the older ones says most.
        let mut older: Vec<_> = kept[..newer].iter().enumerate().collect();
        older.sort_by_key(|(_, old)| std::cmp::Reverse(old.position.count));
        for (older, old) in older {
            let Some((restored, words)) = contradiction(old, new) else {
                continue;
            };
            let found = Conflict {
                older,
                newer,
                restored,
                words,
            };
            if !restored {
                return Some(found);
            }
            lost.get_or_insert(found);
        }
    }
    lost
}

/// What one head says against an older one: whether that is by a restore, and words. A restore begins a generation, and
/// may go back; what was lost by it is told all the same.
fn contradiction(old: &Head, new: &Head) -> Option<(bool, String)> {
    if old.control_plane != new.control_plane {
        return None;
    }
    let (before, now) = (old.position, new.position);
    let restored = old.generation != new.generation;
    if now.count < before.count {
        let words = match restored {
            true => format!(
                "it was cut by a restore from a backup: it had {} entries and then {}",
                before.count, now.count
            ),
            false => format!(
                "it was cut or rewritten: it had {} entries and then {}, in one generation",
                before.count, now.count
            ),
        };
        return Some((restored, words));
    }
    (!restored && now.count == before.count && now.hash != before.hash).then(|| {
        let words = format!(
            "it was rewritten: entry {} had another hash before",
            now.count
        );
        (false, words)
    })
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
            assert!(!heads.take(head("a", count, 1)));
            assert!(!heads.take(head("a", count, 1)), "the same again");
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
        assert!(!heads.take(head("a", 10, 1)));
        assert!(heads.take(head("a", 9, 2)));
        assert!(heads.conflict().contains("had 10"), "{}", heads.conflict());
        assert!(!heads.take(head("a", 8, 3)), "it was said");

        // The next process knows it from the start.
        let mut heads = Heads::load(directory.path());
        assert!(heads.conflict().contains("had 10 entries and then 9"));
        assert!(!heads.take(head("a", 11, 4)), "and goes on to say so");

        let other = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(other.path());
        assert!(!heads.take(head("a", 10, 1)));
        assert!(heads.take(head("a", 10, 4)));
        assert!(heads.conflict().contains("entry 10"));
    }

    #[test]
    fn what_proves_a_cut_is_not_pushed_out() {
        let directory = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(directory.path());
        for count in 1..=50 {
            heads.take(head("a", count, 1));
        }
        heads.take(head("a", 40, 2));
        let told = heads.conflict().to_owned();
        assert!(told.contains("had 50 entries and then 40"), "{told}");
        for count in 51..=500 {
            assert!(!heads.take(head("a", count, 2)));
            if count % 70 == 0 {
                heads = Heads::load(directory.path());
            }
        }
        assert_eq!(heads.kept.len(), KEPT);
        assert_eq!(heads.conflict(), told);
        assert_eq!(heads.kept[0].position.count, 50);
        assert_eq!(heads.kept[1].position.count, 40);
    }

    #[test]
    fn a_torn_line_takes_no_other_along() {
        let directory = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(directory.path());
        heads.take(head("a", 1, 1));
        heads.take(head("a", 2, 1));
        let path = heads_file(directory.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        let mut heads = Heads::load(directory.path());
        heads.take(head("a", 3, 1));
        let counts = |heads: &Heads| {
            let kept = heads.kept.iter();
            kept.map(|head| head.position.count).collect::<Vec<_>>()
        };
        assert_eq!(counts(&Heads::load(directory.path())), [1, 3]);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|line| Head::from_line(line).is_ok()));
    }

    #[test]
    fn a_restore_may_go_back_and_what_it_lost_is_told_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let mut heads = Heads::load(directory.path());
        assert!(!heads.take(head("a", 10, 1)));
        assert!(heads.take(head("b", 5, 2)));
        assert!(heads.conflict().contains("by a restore"));
        for count in 6..=200 {
            heads.take(head("b", count, 2));
        }
        assert_eq!(heads.conflict(), "", "nothing here is older");
        // A cut is worse than a restore.
        heads.take(head("c", 100, 3));
        heads.take(head("c", 90, 3));
        assert!(heads.conflict().contains("in one generation"));
    }
}
