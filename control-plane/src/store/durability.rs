//! Commits that survive a power cut: one thread syncs, for everybody who waits.
//!
//! ```text
//!   commit n ──▶ Durable(n).wait() ──▶ wanted = n ──▶ [thread: sync] ──▶ durable = n
//! ```
//!
//! After a sync has failed, the kernel may have dropped what it could not write, and the next sync of
//! the same file may succeed without it. So the thread does not ask again: it repairs (for SQLite, a
//! whole checkpoint into the database file) until that works.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

/// How long after a failed repair the next one is tried.
const REPAIR_EVERY: Duration = Duration::from_secs(1);

/// What makes written data durable.
pub(crate) trait Disk: Send + 'static {
    /// Makes everything durable that was written before the call.
    fn sync(&mut self) -> io::Result<()>;

    /// The same after `sync` has failed, without trusting the kernel's memory of what is written.
    fn repair(&mut self) -> io::Result<()>;
}

/// Writes could not be made durable. They may be later, or may be lost in a power cut.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot be made durable: {0}")]
pub(crate) struct SyncError(Arc<str>);

#[derive(Debug, Clone, Default)]
struct Progress {
    durable: i64,
    /// Set from a failed sync to the next good repair: up to where waiters were told so, and why.
    failed: Option<(i64, Arc<str>)>,
}

#[derive(Default)]
struct Wanted {
    position: i64,
    stop: bool,
}

struct Shared {
    wanted: Mutex<Wanted>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
    /// Up to where everything is written.
    written: Mutex<i64>,
}

/// A thread that syncs when somebody waits, once for all who do.
#[derive(Clone)]
pub(crate) struct Syncer(Arc<Shared>);

impl Syncer {
    /// Starts the thread. `position` is where the disk stands and is taken as durable.
    pub(crate) fn start(name: &str, position: i64, disk: impl Disk) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            wake: Condvar::new(),
            progress: watch::Sender::new(Progress {
                durable: position,
                failed: None,
            }),
            written: Mutex::new(position),
        });
        let thread_shared = Arc::clone(&shared);
        thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&thread_shared, disk))?;
        Ok(Self(shared))
    }

    /// Notes that everything up to `position` is written. Positions never fall.
    pub(crate) fn wrote(&self, position: i64) {
        let mut written = self.0.written.lock();
        *written = (*written).max(position);
    }

    /// Waits for everything that is written now.
    pub(crate) fn now(&self) -> Durable {
        self.at(*self.0.written.lock())
    }

    /// Waits for everything up to `position`.
    pub(crate) fn at(&self, position: i64) -> Durable {
        Durable {
            position,
            syncer: self.clone(),
        }
    }

    /// Up to where everything is durable.
    pub(crate) fn durable(&self) -> i64 {
        self.0.progress.borrow().durable
    }

    /// Whether the last sync worked.
    pub(crate) fn healthy(&self) -> bool {
        self.0.progress.borrow().failed.is_none()
    }

    /// Returns once `healthy` holds.
    pub(crate) async fn recovered(&self) {
        let mut progress = self.0.progress.subscribe();
        // The sender lives in `self`.
        let _ = progress.wait_for(|now| now.failed.is_none()).await;
    }

    /// Ends the thread, after a last sync if one is wanted.
    pub(crate) fn stop(&self) {
        self.0.wanted.lock().stop = true;
        self.0.wake.notify_all();
    }
}

/// A promise that writes up to a position survive a power cut. Nothing is synced until somebody waits.
#[derive(Clone)]
#[must_use = "a commit is not durable before it was waited for"]
pub(crate) struct Durable {
    position: i64,
    syncer: Syncer,
}

impl Durable {
    /// Returns once the writes are durable, or could not be made so.
    pub(crate) async fn wait(&self) -> Result<(), SyncError> {
        let shared = &self.syncer.0;
        let mut progress = shared.progress.subscribe();
        if progress.borrow_and_update().durable >= self.position {
            return Ok(());
        }
        {
            let mut wanted = shared.wanted.lock();
            if wanted.stop {
                return Err(SyncError("the control plane is stopping".into()));
            }
            let further = wanted.position < self.position;
            wanted.position = wanted.position.max(self.position);
            // Whoever is woken needs the lock.
            drop(wanted);
            if further {
                shared.wake.notify_one();
            }
        }
        loop {
            {
                let now = progress.borrow_and_update();
                if now.durable >= self.position {
                    return Ok(());
                }
                if let Some((_, cause)) = now
                    .failed
                    .as_ref()
                    .filter(|(upto, _)| *upto >= self.position)
                {
                    return Err(SyncError(Arc::clone(cause)));
                }
            }
            if progress.changed().await.is_err() {
                return Err(SyncError("the control plane is stopping".into()));
            }
        }
    }

    /// The same, but waits for a repair if a sync fails. An error says that no more syncs will come.
    pub(crate) async fn wait_patiently(&self) -> Result<(), SyncError> {
        loop {
            match self.wait().await {
                Err(error) if self.syncer.healthy() => return Err(error),
                Err(_) => self.syncer.recovered().await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// The position, as commits count.
    #[cfg(test)]
    pub(crate) fn position(&self) -> i64 {
        self.position
    }
}

fn run(shared: &Shared, mut disk: impl Disk) {
    loop {
        let failed = shared.progress.borrow().failed.is_some();
        let stop = {
            let durable = shared.progress.borrow().durable;
            let mut wanted = shared.wanted.lock();
            let repair_at = Instant::now() + REPAIR_EVERY;
            while !wanted.stop && (failed || wanted.position <= durable) {
                if !failed {
                    shared.wake.wait(&mut wanted);
                } else if shared.wake.wait_until(&mut wanted, repair_at).timed_out() {
                    break;
                }
                if failed && wanted.position > failed_upto(shared) {
                    break;
                }
            }
            if wanted.stop && wanted.position <= durable {
                return;
            }
            wanted.stop
        };
        // Taken before the sync: what is written after it began is not covered.
        let target = *shared.written.lock();
        let outcome = if failed { disk.repair() } else { disk.sync() };
        shared.progress.send_modify(|progress| match outcome {
            Ok(()) => {
                progress.durable = progress.durable.max(target);
                progress.failed = None;
            }
            Err(error) => {
                if !failed {
                    tracing::error!(%error, "a sync failed: nothing is accepted until a repair works: {error}");
                }
                progress.failed = Some((target, error.to_string().into()));
            }
        });
        if stop {
            return;
        }
    }
}

fn failed_upto(shared: &Shared) -> i64 {
    shared
        .progress
        .borrow()
        .failed
        .as_ref()
        .map_or(0, |(upto, _)| *upto)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Flaky(Arc<AtomicBool>);

    impl Disk for Flaky {
        fn sync(&mut self) -> io::Result<()> {
            if self.0.load(Ordering::SeqCst) {
                return Err(io::Error::other("no space"));
            }
            Ok(())
        }

        fn repair(&mut self) -> io::Result<()> {
            self.sync()
        }
    }

    #[tokio::test]
    async fn a_failed_sync_fails_its_waiters_and_a_repair_serves_the_next() {
        let broken = Arc::new(AtomicBool::new(false));
        let syncer = Syncer::start("sync", 0, Flaky(Arc::clone(&broken))).unwrap();
        syncer.wrote(1);
        syncer.at(1).wait().await.unwrap();
        assert_eq!(syncer.durable(), 1);

        broken.store(true, Ordering::SeqCst);
        syncer.wrote(2);
        let error = syncer.now().wait().await.unwrap_err();
        assert!(error.to_string().contains("no space"));
        assert!(!syncer.healthy());

        broken.store(false, Ordering::SeqCst);
        syncer.wrote(3);
        syncer.at(3).wait().await.unwrap();
        assert!(syncer.healthy());
        syncer.at(2).wait().await.unwrap();
        syncer.stop();
    }
}
