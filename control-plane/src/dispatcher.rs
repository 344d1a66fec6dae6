//! Pending task and online host: hands one to the other.
//!
//! What is decided is pure and at the top; what is done about it is below.

use std::{collections::HashMap, sync::Arc};

use muster_proto::ids::HostId;
use tokio_util::sync::CancellationToken;

use crate::{
    connections::{Connections, offer},
    hosts::{Bar, Inventory},
    jobs::Job,
    model::{Fence, Hold, State, Task, Withdrawal},
    seal::Sealer,
    secrets::Secrets,
    store::Syncer,
};

/// Why a pending task has not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Its host is not attached.
    Host,
    /// It may have left, and its host has not answered.
    Answer,
    /// Its host is locked or set aside.
    Unlock,
    /// It is next in line.
    Dispatch,
    /// The control plane was restored, and an operator has to release it.
    Release,
    /// The control plane was restored, and its host has to upload what it knows first.
    Upload,
}

/// What decides about a task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskView {
    /// Where it stands.
    pub(crate) state: State,
    /// It may have left the control plane.
    pub(crate) offered: bool,
    /// Somebody asked to cancel it.
    pub(crate) cancelled: bool,
    /// Its start deadline has passed.
    pub(crate) overdue: bool,
    /// Whether a restore holds it back.
    pub(crate) hold: Hold,
}

impl TaskView {
    /// How a task looks at `now`. Its job's deadline is asked for before: a look at the task holds the job's lock.
    pub(crate) fn of(start_deadline_time: i64, task: &Task, now: i64) -> Self {
        Self {
            state: task.state,
            offered: task.offered.is_some(),
            cancelled: task.cancel_time.is_some(),
            overdue: now >= start_deadline_time,
            hold: task.hold,
        }
    }
}

impl TaskView {
    /// How a task that is only shown looks: what time makes of it, the sweeper writes.
    pub(crate) fn waiting(task: &Task) -> Self {
        Self {
            state: task.state,
            offered: task.offered.is_some(),
            cancelled: false,
            overdue: false,
            hold: task.hold,
        }
    }
}

/// How a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostView {
    /// It was removed.
    Gone,
    /// It is locked or set aside.
    Barred,
    /// Its agent is not attached.
    Away,
    /// Its agent is attached, and uploads what it knows since before a restore.
    Uploading,
    /// Its agent is attached.
    Attached,
}

/// What to do with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing: it is not pending.
    Nothing,
    /// It waits.
    Wait(Wait),
    /// It goes to its host now.
    Offer,
    /// The control plane takes it back; it never left.
    Withdraw(Withdrawal),
    /// Its host was removed before it was offered.
    WithdrawFromGone,
}

/// Decides about one task. `ledger_works`: what is written now can be made durable.
pub(crate) fn decide(task: TaskView, host: HostView, ledger_works: bool) -> Decision {
    if task.state != State::Pending {
        return Decision::Nothing;
    }
    if task.offered {
        return Decision::Wait(Wait::Answer);
    }
    if task.cancelled {
        return Decision::Withdraw(Withdrawal::Cancelled);
    }
    if host == HostView::Gone {
        return Decision::WithdrawFromGone;
    }
    if task.overdue {
        return Decision::Withdraw(Withdrawal::Expired);
    }
    if task.hold == Hold::Held {
        return Decision::Wait(Wait::Release);
    }
    match host {
        HostView::Gone => Decision::WithdrawFromGone,
        HostView::Barred => Decision::Wait(Wait::Unlock),
        HostView::Away => Decision::Wait(Wait::Host),
        HostView::Uploading if task.hold == Hold::Released => Decision::Wait(Wait::Upload),
        HostView::Attached | HostView::Uploading if ledger_works => Decision::Offer,
        HostView::Attached | HostView::Uploading => Decision::Wait(Wait::Dispatch),
    }
}

/// Hands tasks to connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    connections: Connections,
    inventory: Inventory,
    sealer: Arc<Sealer>,
    secrets: Secrets,
    control_plane_id: Arc<str>,
    syncer: Syncer,
}

impl Dispatcher {
    /// A dispatcher over these rooms.
    pub(crate) fn new(
        connections: Connections,
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
        job: &Job,
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
        let order = job.terms();
        let (action, apart) = offer::action(&self.secrets, &order, session.keeps_secrets_apart);
        let sealed = offer::seal(
            &self.sealer,
            &self.control_plane_id,
            &order,
            (action, &apart.names),
            ordinal,
            task,
        );
        session.send(offer::message(sealed, apart.values, trace.clone()))
    }

    /// Tells a host to end a task; one that is away or busy is told when it looks.
    pub(crate) fn cancel(&self, job: &Job, task: &Task) {
        let Some(session) = self.connections.current(task.host_id) else {
            return;
        };
        if !session.send(offer::cancel(&job.terms(), task)) {
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
    pub(crate) fn unseal(&self, bytes: &[u8], seal: &[u8]) -> Option<offer::Unsealed> {
        offer::unseal(&self.sealer, &self.control_plane_id, bytes, seal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_what_never_left_is_taken_back_or_sent(
            state in proptest::sample::select(State::ALL.map(|(state, _)| state).to_vec()),
            offered: bool, cancelled: bool, overdue: bool, works: bool,
            hold in proptest::sample::select(vec![Hold::None, Hold::Held, Hold::Released]),
            host in proptest::sample::select(vec![
                HostView::Gone, HostView::Barred, HostView::Away, HostView::Uploading, HostView::Attached
            ]),
        ) {
            let task = TaskView { state, offered, cancelled, overdue, hold };
            let decision = decide(task, host, works);
            match decision {
                Decision::Nothing => prop_assert_ne!(state, State::Pending),
                Decision::Wait(Wait::Answer) => prop_assert!(offered),
                Decision::Wait(_) => prop_assert!(!offered && !cancelled && !overdue),
                Decision::Offer => {
                    prop_assert!(!offered && !cancelled && !overdue && works);
                    let may = match hold {
                        Hold::None => matches!(host, HostView::Attached | HostView::Uploading),
                        Hold::Held => false,
                        Hold::Released => host == HostView::Attached,
                    };
                    prop_assert!(may);
                }
                Decision::Withdraw(_) | Decision::WithdrawFromGone => prop_assert!(!offered),
            }
        }
    }
}
