//! Pending task and online host: hands one to the other, as `model::dispatch` decides.

use std::{collections::HashMap, sync::Arc};

use muster_proto::ids::HostId;
use tokio_util::sync::CancellationToken;

use crate::{
    hosts::{Bar, Inventory},
    model::{Fence, Order, Task, dispatch::HostView, order::record::OrderRecord},
    seal::Sealer,
    secrets::Secrets,
    sessions::{Sessions, offer},
    store::Syncer,
};

/// Hands tasks to connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    connections: Sessions,
    inventory: Inventory,
    sealer: Arc<Sealer>,
    secrets: Secrets,
    control_plane_id: Arc<str>,
    syncer: Syncer,
}

impl Dispatcher {
    /// A dispatcher over these rooms.
    pub(crate) fn new(
        connections: Sessions,
        inventory: Inventory,
        sealer: Arc<Sealer>,
        secrets: Secrets,
        control_plane_id: Arc<str>,
        syncer: Syncer,
    ) -> Self {
        Self {
            connections,
            inventory,
            sealer,
            secrets,
            control_plane_id,
            syncer,
        }
    }

    /// What encrypts values that look secret.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Cancelled once the control plane stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.connections.stopping()
    }

    /// Whether what is written now can be made durable.
    pub(crate) fn ledger_works(&self) -> bool {
        self.syncer.healthy()
    }

    /// How a host stands now.
    pub(crate) fn host(&self, host: HostId) -> HostView {
        match self.inventory.bar(host) {
            Some(Bar::Removed(_)) => HostView::Gone,
            Some(Bar::Locked(_)) => HostView::Barred,
            None if self.connections.current(host).is_none() => HostView::Away,
            None if self.inventory.owes_upload(host) => HostView::Uploading,
            None => HostView::Attached,
        }
    }

    /// When a host was last heard, Unix milliseconds; `None` if never, or if it was removed.
    pub(crate) fn heard_time(&self, host: HostId) -> Option<i64> {
        self.inventory.get(host)?.pulse.heard_time()
    }

    /// The fence and the session's epoch of a host that can be offered a new task right now.
    pub(crate) fn fence(&self, host: HostId) -> Option<(Fence, i64)> {
        if !self.ledger_works() || self.inventory.bar(host).is_some() {
            return None;
        }
        let session = self.connections.current(host)?;
        Some((session.fence.clone(), session.epoch))
    }

    /// Puts an offer on the road, if the session that `task` was to be offered in still stands and its
    /// queue has room. A newer session has asked for the task already. Never waits.
    pub(crate) fn offer(
        &self,
        order: &Order,
        ordinal: u32,
        task: &Task,
        trace: &HashMap<String, String>,
    ) -> bool {
        let Some(session) = self.connections.current(task.host_id) else {
            return false;
        };
        if task.offer_epoch != session.epoch
            || task.offered.as_ref() != Some(&session.fence)
            || !self.ledger_works()
            || self.inventory.bar(task.host_id).is_some()
        {
            return false;
        }
        let mut offer = OrderRecord::offer(&self.control_plane_id, order, ordinal, task);
        let mut values = self.secrets.values(order);
        if !session.keeps_secrets_apart && order.action.withheld().next().is_some() {
            offer = offer.with_values_inside(order.action.with(&values));
            values.clear();
        }
        let sealed = offer::seal(&self.sealer, &offer);
        session.send(offer::message(sealed, values, trace.clone()))
    }

    /// Tells a host to end a task; one that is away or busy is told when it looks.
    pub(crate) fn cancel(&self, order: &Order, task: &Task) {
        let Some(session) = self.connections.current(task.host_id) else {
            return;
        };
        if !session.send(offer::cancel(order, task)) {
            session.look();
        }
    }

    /// There may be something for a host.
    pub(crate) fn look(&self, host: HostId) {
        if let Some(session) = self.connections.current(host) {
            session.look();
        }
    }

    /// Opens the seal of an offer that came back.
    pub(crate) fn unseal(&self, bytes: &[u8], seal: &[u8]) -> Option<OrderRecord> {
        offer::unseal(&self.sealer, &self.control_plane_id, bytes, seal)
    }
}
