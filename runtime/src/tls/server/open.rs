//! The connections that are open.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
};

use tokio_util::sync::CancellationToken;

use crate::tls::{Peer, SpiffeId, SpiffeKind};

/// Open connections of one identity, unless it is a host's: an operator's certificate serves many commands at once.
const OF_ONE_MAX: usize = 1_024;

/// Open connections of one host. Its agent has two, more where it reports hundreds of tasks, and those of before a cut
/// until they are found dead. Where yet more come, the oldest is closed.
const OF_HOST_MAX: usize = 64;

/// The connections that are open, by identity, so that a lock finds them.
#[derive(Default)]
pub(super) struct OpenConnections {
    /// Cuts all of them.
    pub(super) all: CancellationToken,
    // A plain mutex: held for a lookup, never across an await.
    peers: Mutex<HashMap<SpiffeId, Vec<Arc<Peer>>>>,
}

impl OpenConnections {
    pub(super) fn register(
        self: &Arc<Self>,
        identity: &SpiffeId,
        peer: &Arc<Peer>,
    ) -> Registration {
        let most = match identity.kind {
            SpiffeKind::Host => OF_HOST_MAX,
            _ => OF_ONE_MAX,
        };
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = peers.entry(identity.clone()).or_default();
        own.push(peer.clone());
        if own.len() > most {
            // Cut, and not closed as one that is locked: nobody took a right away. Its line goes at once, or a flood
            // would cut it again and again.
            own.remove(0).gives_way().cancel();
        }
        drop(peers);
        Registration {
            open: self.clone(),
            identity: identity.clone(),
            peer: peer.clone(),
        }
    }

    /// What is on its way in from an identity, counted for all of its connections.
    pub(super) fn incoming(&self, identity: &SpiffeId) -> Arc<AtomicUsize> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = peers.get(identity).and_then(|own| own.last());
        own.map_or_else(Arc::default, |peer| Arc::clone(&peer.incoming))
    }

    pub(super) fn identified(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.values().flatten().cloned().collect()
    }

    pub(super) fn of(&self, identity: &SpiffeId) -> Vec<Arc<Peer>> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(identity).cloned().unwrap_or_default()
    }
}

/// Takes a connection off the list when it ends.
pub(in crate::tls) struct Registration {
    open: Arc<OpenConnections>,
    identity: SpiffeId,
    peer: Arc<Peer>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut peers = self
            .open
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(of_identity) = peers.get_mut(&self.identity) {
            of_identity.retain(|peer| !Arc::ptr_eq(peer, &self.peer));
            if of_identity.is_empty() {
                peers.remove(&self.identity);
            }
        }
    }
}
