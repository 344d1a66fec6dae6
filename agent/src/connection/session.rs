//! One attach, as the reports that ride on it see it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use muster_proto::ids::TaskId;
use muster_runtime::tls::{ClientTls, connect_lazily};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tonic::transport::Channel;

/// A session: its epoch, and its connections.
pub(crate) struct Session {
    epoch: i64,
    address: String,
    tls: ClientTls,
    main: Channel,
    // Plain locks: held to look and to set.
    bulk: Mutex<Option<Channel>>,
    reported: Mutex<HashMap<TaskId, bool>>,
    ended: CancellationToken,
}

impl Session {
    pub(super) fn new(epoch: i64, address: String, tls: ClientTls, main: Channel) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            address,
            tls,
            main,
            bulk: Mutex::new(None),
            reported: Mutex::default(),
            ended: CancellationToken::new(),
        })
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The connection that carries control, for reports without a backlog.
    pub(crate) fn main(&self) -> Channel {
        self.main.clone()
    }

    /// The second connection, for reports with a backlog. Dialled when first used.
    pub(crate) fn bulk(&self) -> Channel {
        let mut bulk = self.bulk.lock();
        bulk.get_or_insert_with(|| connect_lazily(&self.address, &self.tls))
            .clone()
    }

    /// Takes the right to report a task in this session; `false` if somebody has it, who then learns that
    /// it was asked for again.
    pub(crate) fn takes_report(&self, task_id: TaskId) -> bool {
        if self.ended.is_cancelled() {
            return false;
        }
        match self.reported.lock().entry(task_id) {
            Entry::Vacant(entry) => {
                entry.insert(false);
                true
            }
            Entry::Occupied(mut asked_again) => {
                asked_again.insert(true);
                false
            }
        }
    }

    /// Gives that right back. Says whether it was asked for again meanwhile.
    pub(crate) fn leaves_report(&self, task_id: TaskId) -> bool {
        self.reported.lock().remove(&task_id).unwrap_or(false)
    }

    /// Resolves when the session is over.
    pub(crate) fn ended(&self) -> WaitForCancellationFuture<'_> {
        self.ended.cancelled()
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
        *self.bulk.lock() = None;
    }
}
