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

use crate::receipts::Unsigned;

/// Reports that ride on one connection. The control plane takes 200 streams on one, of which some are for what is no
/// report; one stream more would wait, without a word, until another ends.
const REPORTS_MAX: usize = 150;

/// A session: its epoch, and its connections.
pub(crate) struct Session {
    epoch: i64,
    address: String,
    tls: ClientTls,
    // Plain locks: held to look and to set.
    main: Mutex<Connections>,
    bulk: Mutex<Connections>,
    reported: Mutex<HashMap<TaskId, bool>>,
    unsigned: Unsigned,
    ended: CancellationToken,
}

impl Session {
    pub(crate) fn new(epoch: i64, address: String, tls: ClientTls, main: Channel) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            address,
            tls,
            main: Mutex::new(Connections::beginning_with(main)),
            bulk: Mutex::default(),
            reported: Mutex::default(),
            unsigned: Unsigned::default(),
            ended: CancellationToken::new(),
        })
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Receipts of what was reported that are to be signed for.
    pub(crate) fn unsigned(&self) -> &Unsigned {
        &self.unsigned
    }

    /// Room for a report: with a backlog beside the connection that carries control, on the second one; else on that
    /// one. Where these carry as many as they may, on further ones. Each but the first is dialled when it is used.
    pub(crate) fn seat(self: &Arc<Self>, bulk: bool) -> Seat {
        let (index, channel) = self
            .connections(bulk)
            .lock()
            .take(|| connect_lazily(&self.address, &self.tls));
        Seat {
            session: Arc::clone(self),
            bulk,
            index,
            channel,
        }
    }

    fn connections(&self, bulk: bool) -> &Mutex<Connections> {
        if bulk { &self.bulk } else { &self.main }
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

    pub(crate) fn end(&self) {
        self.ended.cancel();
        // Whoever has a seat still has its channel.
        self.main.lock().close();
        self.bulk.lock().close();
    }
}

/// Room on a connection, until it is dropped.
pub(crate) struct Seat {
    session: Arc<Session>,
    bulk: bool,
    index: usize,
    channel: Channel,
}

impl Seat {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.session.connections(self.bulk).lock().leave(self.index);
    }
}

/// Connections, and how many reports ride on each.
struct Connections<C = Channel>(Vec<(Option<C>, usize)>);

impl<C> Default for Connections<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C: Clone> Connections<C> {
    fn beginning_with(connection: C) -> Self {
        Self(vec![(Some(connection), 0)])
    }

    /// The first with room, so that later ones become free.
    fn take(&mut self, dial: impl FnOnce() -> C) -> (usize, C) {
        let roomy = self
            .0
            .iter()
            .position(|(_, reports)| *reports < REPORTS_MAX);
        let index = roomy.unwrap_or_else(|| {
            self.0.push((None, 0));
            self.0.len() - 1
        });
        let (connection, reports) = &mut self.0[index];
        *reports += 1;
        (index, connection.get_or_insert_with(dial).clone())
    }

    /// A report is over. Connections at the end that carry nothing are closed, but for the first.
    fn leave(&mut self, index: usize) {
        if let Some((_, reports)) = self.0.get_mut(index) {
            *reports = reports.saturating_sub(1);
        }
        while self.0.len() > 1 && self.0.last().is_some_and(|(_, reports)| *reports == 0) {
            self.0.pop();
        }
    }

    /// Lets go of all. The numbers stay for those that still leave.
    fn close(&mut self) {
        self.0
            .iter_mut()
            .for_each(|(connection, _)| *connection = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_connection_gets_another_beside_it_which_goes_when_it_is_empty() {
        let mut connections = Connections::beginning_with(0);
        let mut dialled = 0;
        let mut take = |connections: &mut Connections<i32>| {
            connections.take(|| {
                dialled += 1;
                dialled
            })
        };
        for _ in 0..REPORTS_MAX {
            assert_eq!(take(&mut connections), (0, 0));
        }
        assert_eq!(take(&mut connections), (1, 1));
        assert_eq!(take(&mut connections), (1, 1));

        // The first is filled again before the second.
        connections.leave(0);
        assert_eq!(take(&mut connections), (0, 0));

        connections.leave(1);
        connections.leave(1);
        assert_eq!(connections.0.len(), 1);
        assert_eq!(
            take(&mut connections),
            (1, 2),
            "it was closed, and is dialled anew"
        );
    }

    #[test]
    fn the_first_stays_though_it_carries_nothing() {
        let mut connections = Connections::beginning_with("control");
        let (index, _) = connections.take(|| "another");
        connections.leave(index);
        assert_eq!(connections.take(|| "another"), (0, "control"));
    }

    #[test]
    fn reports_leave_after_the_end_of_the_session() {
        let mut connections = Connections::default();
        let (index, _) = connections.take(|| 1);
        connections.close();
        connections.leave(index);
        assert_eq!(connections.0, [(None, 0)]);
    }
}
