//! What this agent has promised and done, on disk, so that no restart makes it forget or repeat.
//!
//! A file of entries, only ever appended to, one `write` for each step of a task. What was written
//! outlives this process, and a power cut changes the boot id, which makes whatever was in flight
//! LOST. So nothing waits for the disk; the file is synced a moment later. A torn end is dropped.
//!
//! Entries are counted for ever, over every rewriting of the file: the count is the journal's
//! position, which proves to the control plane that this is the journal it has heard from.

mod book;
mod entry;
mod file;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_proto::ids::TaskId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::{
    book::Book,
    entry::{Entry, Header, Opened},
    file::{File, sync_directory},
};
pub(crate) use self::{
    book::{Held, Phase},
    entry::{Accepted, Barred, Ended, Event, Settled, Started, Starting},
};

/// How long an entry may wait for the disk. Only a power cut could lose it, and that is told apart.
const SYNC_AFTER: Duration = Duration::from_millis(200);

/// The file is rewritten without what may be forgotten once it has this size and twice that of what it began with.
const REWRITE_MIN: u64 = 4 << 20;

/// The journal. Shared by all tasks.
pub(crate) struct Journal {
    path: PathBuf,
    journal_id: String,
    // A plain lock: it is held for one write to the page cache.
    inner: Mutex<Inner>,
    written: Notify,
}

struct Inner {
    file: Arc<File>,
    book: Book,
    /// Bytes of the entries that the file began with.
    kept_bytes: u64,
}

impl Journal {
    /// Opens the journal in this directory, or makes a new one, and notes that an agent begins under
    /// this boot. Returns the tasks that are not settled, as the journal knows them.
    pub(crate) fn open(
        directory: &Path,
        boot_id: &str,
        now_ms: i64,
    ) -> io::Result<(Arc<Self>, Vec<Held>)> {
        let path = directory.join("journal");
        let (file, header) = match File::open(&path)? {
            Some(found) => found,
            None => {
                let header = Header {
                    journal_id: format!("{:032x}", rand::random::<u128>()),
                    ..Header::default()
                };
                let (file, _) = File::create(&path, &header, std::iter::empty())?;
                file.take_place(&path)?;
                sync_directory(&path)?;
                (file, header)
            }
        };
        let file = Arc::new(file);
        let mut inner = Inner {
            file: Arc::clone(&file),
            book: Book::new(header.base_position),
            kept_bytes: header.kept_bytes,
        };
        for entry in file.entries(file.size())? {
            inner.enter(entry?);
        }
        let unsettled = inner.book.unsettled();
        let opened = Opened {
            boot_id: boot_id.to_owned(),
        };
        inner.append(vec![Entry::new(now_ms, Event::Opened(opened))])?;
        inner.book.forget(now_ms);
        let journal = Arc::new(Self {
            path,
            journal_id: header.journal_id,
            inner: Mutex::new(inner),
            written: Notify::new(),
        });
        journal.written.notify_one();
        Ok((journal, unsettled))
    }

    /// Random id of this journal, made with it.
    pub(crate) fn id(&self) -> &str {
        &self.journal_id
    }

    /// How many entries there have ever been.
    pub(crate) fn position(&self) -> i64 {
        self.inner.lock().book.position()
    }

    /// What is known about a task; `None` if it was never heard of.
    pub(crate) fn find(&self, task_id: &TaskId) -> Option<Held> {
        self.inner.lock().book.find(task_id)
    }

    /// Writes what happened, in one piece. Returns the position after it. Once this returns, the end
    /// of this process cannot undo it.
    pub(crate) fn write(&self, now_ms: i64, events: Vec<Event>) -> io::Result<i64> {
        let entries = events
            .into_iter()
            .map(|event| Entry::new(now_ms, event))
            .collect();
        let position = self.inner.lock().append(entries)?;
        self.written.notify_one();
        Ok(position)
    }

    /// Syncs what was written, in batches, and rewrites the file when it has grown, until told to stop.
    pub(crate) async fn keep(self: Arc<Self>, now_ms: impl Fn() -> i64, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = self.written.notified() => {}
                () = stop.cancelled() => {}
            }
            tokio::select! {
                () = tokio::time::sleep(SYNC_AFTER) => {}
                () = stop.cancelled() => {}
            }
            let (journal, now_ms) = (Arc::clone(&self), now_ms());
            let done = tokio::task::spawn_blocking(move || journal.sync(now_ms)).await;
            if let Ok(Err(error)) = done {
                tracing::error!(%error, "the journal could not be synced: {error}");
            }
        }
    }

    fn sync(&self, now_ms: i64) -> io::Result<()> {
        let (file, due) = {
            let inner = self.inner.lock();
            (Arc::clone(&inner.file), inner.is_long())
        };
        file.sync()?;
        if due { self.rewrite(now_ms) } else { Ok(()) }
    }

    /// Writes a new file without what may be forgotten and puts it in the place of the old one. Writers wait only while
    /// what they wrote meanwhile is copied.
    fn rewrite(&self, now_ms: i64) -> io::Result<()> {
        let (old, size, position, open) = {
            let mut inner = self.inner.lock();
            inner.book.forget(now_ms);
            let (file, book) = (&inner.file, &inner.book);
            let (position, open) = (book.position(), book.open_tasks());
            (Arc::clone(file), file.size(), position, open)
        };
        // Tasks that are settled from here on are among those that were open, and so stay whole this time.
        let settled = |task_id: &TaskId| self.inner.lock().book.settled_unseen(task_id);
        let needed = || Ok::<_, io::Error>(book::needed(old.entries(size)?, &open, settled));
        let (mut kept, mut kept_bytes) = (0, 0);
        for entry in needed()? {
            kept += 1;
            kept_bytes += File::size_of(&entry?);
        }
        let header = Header {
            journal_id: self.journal_id.clone(),
            base_position: position - kept,
            kept_bytes,
        };
        let (new, written) = File::create(&self.path, &header, needed()?)?;
        if written != kept {
            return Err(io::Error::other("it changed while it was rewritten"));
        }
        {
            let mut inner = self.inner.lock();
            new.append_rest(&old, size)?;
            new.take_place(&self.path)?;
            inner.kept_bytes = kept_bytes;
            inner.file = Arc::new(new);
        }
        sync_directory(&self.path)
    }
}

impl Inner {
    fn append(&mut self, entries: Vec<Entry>) -> io::Result<i64> {
        self.file.append(&entries)?;
        for entry in entries {
            self.enter(entry);
        }
        Ok(self.book.position())
    }

    /// Whether there is enough in the file that may be forgotten.
    fn is_long(&self) -> bool {
        self.file.size() >= REWRITE_MIN.max(2 * self.kept_bytes)
    }

    fn enter(&mut self, entry: Entry) {
        if let Some(Event::Opened(opened)) = &entry.event {
            self.book.begin(&opened.boot_id);
        }
        self.book.enter(entry);
    }
}

#[cfg(test)]
mod tests;
