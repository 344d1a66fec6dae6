//! Hosts that are attached: what can be offered to them, and said.
//!
//! Each attach is a session with an epoch: the newest one of a host counts, frames of an older one are refused. A
//! session's stream ends with what its `End` says. The streams themselves are `connections`.

pub(crate) mod arrivals;
mod dispatcher;
pub(crate) mod offer;
mod session;
mod signatures;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use muster_proto::{
    agent::v1::{AttachResponse, HostPolicy, attach_response::Message},
    ids::HostId,
    v1::Mode,
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use self::arrivals::{ATTACHES, Pace};
pub(crate) use self::{
    dispatcher::Dispatcher,
    session::{End, Session},
};
use crate::{
    hosts::{Bar, Inventory},
    model::{Fence, mode_out},
    store::jobs::Heard,
};

/// The sessions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Shared>);

struct Shared {
    // Each held for a look-up only.
    sessions: Mutex<HashMap<HostId, Arc<Session>>>,
    fences: Mutex<HashMap<HostId, Heard>>,
    arrivals: Mutex<HashMap<HostId, Pace>>,
    next_epoch: AtomicI64,
    stopping: CancellationToken,
}

impl Sessions {
    /// No sessions yet. `starts` counts the starts of this control plane: later starts give higher
    /// epochs. `fences`: what was last heard of each host.
    pub(crate) fn new(starts: i64, fences: HashMap<HostId, Heard>) -> Self {
        Self(Arc::new(Shared {
            sessions: Mutex::default(),
            fences: Mutex::new(fences),
            arrivals: Mutex::default(),
            next_epoch: AtomicI64::new((starts << 32) + 1),
            stopping: CancellationToken::new(),
        }))
    }

    /// The session of a host, if it is attached.
    pub(crate) fn current(&self, host: HostId) -> Option<Arc<Session>> {
        let session = self.0.sessions.lock().get(&host).cloned();
        session.filter(|session| session.is_open())
    }

    /// Whether a host may attach now, as far as it has not done so all the time.
    pub(crate) fn may_attach(&self, host: HostId) -> bool {
        let now = Instant::now();
        let mut arrivals = self.0.arrivals.lock();
        arrivals
            .entry(host)
            .or_insert_with(|| Pace::new(ATTACHES, now))
            .take(now)
            .is_ok()
    }

    /// Ends a host's session, if it has one.
    pub(crate) fn end(&self, host: HostId, end: End) {
        if let Some(session) = self.current(host) {
            session.end(end);
        }
    }

    /// Tells a host that is attached what operators lowered it to. One that attaches meanwhile hears it in its
    /// welcome, or right after.
    pub(crate) fn tell_policy(&self, host: HostId, inventory: &Inventory) {
        if let Some(session) = self.current(host)
            && !session.send(policy(inventory, host))
            && session.is_greeted()
        {
            // Its queue is full: it hears it when it attaches again, which it does now.
            session.end(End::Gone);
        }
    }

    /// Ends the session of every host that may not take part.
    pub(crate) fn end_barred(&self, inventory: &Inventory) {
        for session in self.0.sessions.lock().values() {
            match inventory.bar(session.host_id) {
                None => {}
                Some(Bar::Locked(_)) => session.end(End::Locked),
                Some(Bar::Removed(_)) => session.end(End::Removed),
            }
        }
    }

    /// Cancelled once the control plane stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Tells every agent to come back later, and refuses those that come.
    pub(crate) fn stop(&self) {
        self.0.stopping.cancel();
        for session in self.0.sessions.lock().values() {
            session.end(End::Stopping);
        }
    }

    /// Ends every session, so that all agents attach again.
    pub(crate) fn end_all(&self, end: End) {
        for session in self.0.sessions.lock().values() {
            session.end(end);
        }
    }

    pub(crate) fn open(
        &self,
        host_id: HostId,
        fence: Fence,
        rolled_back: bool,
        keeps_secrets_apart: bool,
    ) -> (Arc<Session>, mpsc::Receiver<AttachResponse>) {
        let epoch = self.0.next_epoch.fetch_add(1, Ordering::Relaxed);
        let (session, messages) =
            Session::new(host_id, epoch, fence, rolled_back, keeps_secrets_apart);
        (Arc::new(session), messages)
    }

    pub(crate) fn enter(&self, session: &Arc<Session>) {
        let old = self
            .0
            .sessions
            .lock()
            .insert(session.host_id, Arc::clone(session));
        if let Some(old) = old {
            old.end(End::Superseded);
        }
        if self.0.stopping.is_cancelled() {
            session.end(End::Stopping);
        }
    }

    /// Takes the session out, unless a newer one stands there; says whether it did.
    pub(crate) fn leave(&self, session: &Session) -> bool {
        let mut sessions = self.0.sessions.lock();
        let own = sessions
            .get(&session.host_id)
            .is_some_and(|current| current.epoch == session.epoch);
        if own {
            sessions.remove(&session.host_id);
        }
        own
    }

    /// The journal was heard at `position`. Returns what is now known of it, if that is new.
    pub(crate) fn hear(&self, host: HostId, fence: &Fence, position: i64) -> Option<Heard> {
        let mut fences = self.0.fences.lock();
        let heard = Heard {
            fence: fence.clone(),
            position,
        };
        match fences.get_mut(&host) {
            Some(known) if known.fence.journal_id == fence.journal_id => {
                let new = known.fence != *fence || known.position < position;
                known.fence = fence.clone();
                known.position = known.position.max(position);
                new.then(|| known.clone())
            }
            _ => {
                fences.insert(host, heard.clone());
                Some(heard)
            }
        }
    }

    /// Whether the journal has fewer entries than were ever heard of.
    pub(crate) fn is_rolled_back(&self, host: HostId, fence: &Fence, position: i64) -> bool {
        self.0.fences.lock().get(&host).is_some_and(|known| {
            known.fence.journal_id == fence.journal_id && position < known.position
        })
    }
}

/// What operators lowered a host to.
pub(crate) fn mode_limit(inventory: &Inventory, host: HostId) -> Mode {
    mode_out(inventory.get(host).and_then(|host| host.mode_limit))
}

/// The message that says it.
fn policy(inventory: &Inventory, host: HostId) -> AttachResponse {
    offer::down(Message::Policy(HostPolicy {
        mode_limit: mode_limit(inventory, host).into(),
    }))
}
