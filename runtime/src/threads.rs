//! How many threads a process spreads its work over.

use std::{io, thread};

use tokio::runtime::{Builder, Runtime};

/// What an operator of a big machine may set, as tokio understands it.
const OVERRIDE: &str = "TOKIO_WORKER_THREADS";

/// A runtime for what serves many connections: a thread for each core but one.
///
/// The core that is left is for what works beside them: the database, syncs, and on a small machine the agent and its
/// tasks. On two cores a second worker costs more than it gives: each time one of them wakes two tasks, it wakes the
/// other worker too, which mostly finds nothing left to do. That was 40 % of the control plane's CPU for a keystroke.
/// One thread also writes what several tasks have for one connection in one go.
pub fn serving() -> io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    match (std::env::var_os(OVERRIDE), cores) {
        (Some(_), _) => Builder::new_multi_thread().enable_all().build(),
        (None, 0..=2) => single(),
        (None, cores) => spread(cores - 1),
    }
}

/// A runtime of one thread, for what passes bytes on from one place to another. What may take long is done beside it,
/// on threads that come and go.
pub fn single() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// A runtime of so many threads beside the one that waits for its end.
pub fn spread(threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
}
