//! Locks of principals and tokens: durable first, then in force for every call and every stream at once.

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{Access, AccessError, Member, State, Token};
use crate::{
    clock::now,
    model::{Principal, PrincipalKind},
    store::{Batch, LockRow},
};

/// Characters of a note.
const NOTE_MAX: usize = 500;

impl Access {
    /// Locks a principal and every ai that it owns, and ends their streams. A second lock keeps the first one's time.
    pub(crate) async fn lock_principal(
        &self,
        principal: &Principal,
        author: &str,
        note: &str,
    ) -> Result<Member, AccessError> {
        let lock = lock(author, note)?;
        if principal.kind == PrincipalKind::Host {
            return Err(AccessError::Argument(
                "principal: a host is locked with LockHost (`muster host lock`)",
            ));
        }
        let _turn = self.0.turn.lock().await;
        if self.found(principal)?.lock.is_none() {
            self.spare_last_admin(principal)?;
            let mut batch = Batch::new();
            batch.set_principal_lock(&principal.to_string(), Some(&lock));
            self.commit(batch).await?;
        }
        let cut = {
            let mut state = self.0.state.write();
            if let Some(standing) = state.principals.get_mut(&principal.to_string()) {
                standing.lock.get_or_insert(lock);
            }
            state.cut_off(principal)
        };
        for principal in cut {
            // Nobody listens before the control plane serves.
            let _ = self.0.locked.send(principal);
        }
        tracing::warn!(%principal, author, "{principal} was locked by {author}");
        self.found(principal)
    }

    /// Lets a principal take part again.
    pub(crate) async fn unlock_principal(
        &self,
        principal: &Principal,
    ) -> Result<Member, AccessError> {
        let _turn = self.0.turn.lock().await;
        self.found(principal)?;
        let text = principal.to_string();
        let mut batch = Batch::new();
        batch.set_principal_lock(&text, None);
        self.commit(batch).await?;
        if let Some(standing) = self.0.state.write().principals.get_mut(&text) {
            standing.lock = None;
        }
        tracing::warn!(%principal, "{principal} was unlocked");
        self.found(principal)
    }

    /// Locks a token and ends the calls that were made with it.
    pub(crate) async fn lock_token(
        &self,
        id: &str,
        author: &str,
        note: &str,
    ) -> Result<Arc<Token>, AccessError> {
        let lock = lock(author, note)?;
        let _turn = self.0.turn.lock().await;
        let token = self.token(id)?;
        if token.lock().is_none() {
            let mut batch = Batch::new();
            batch.set_token_lock(id, Some(&lock));
            self.commit(batch).await?;
        }
        let mut gate = token.gate.lock();
        gate.lock.get_or_insert(lock);
        gate.end.cancel();
        gate.end = CancellationToken::new();
        drop(gate);
        Ok(token)
    }

    /// Lets a token be used again.
    pub(crate) async fn unlock_token(&self, id: &str) -> Result<Arc<Token>, AccessError> {
        let _turn = self.0.turn.lock().await;
        let token = self.token(id)?;
        let mut batch = Batch::new();
        batch.set_token_lock(id, None);
        self.commit(batch).await?;
        token.gate.lock().lock = None;
        Ok(token)
    }

    /// Principals as they are locked.
    pub(crate) fn locked(&self) -> broadcast::Receiver<Principal> {
        self.0.locked.subscribe()
    }

    /// A principal and every one that it owns.
    pub(crate) fn family(&self, principal: &Principal) -> Vec<Principal> {
        self.0.state.read().family(principal)
    }

    fn token(&self, id: &str) -> Result<Arc<Token>, AccessError> {
        let state = self.0.state.read();
        let token = state.by_id.get(id).cloned();
        token.ok_or_else(|| AccessError::TokenNotFound(id.chars().take(80).collect()))
    }
}

impl State {
    fn family(&self, principal: &Principal) -> Vec<Principal> {
        let owner = principal.to_string();
        let owned = self
            .principals
            .iter()
            .filter(|(_, standing)| *standing.owner == *owner)
            .filter_map(|(name, _)| name.parse().ok());
        std::iter::once(principal.clone()).chain(owned).collect()
    }

    /// Ends the calls of a principal and of those that it owns; calls from now on find the lock.
    fn cut_off(&mut self, principal: &Principal) -> Vec<Principal> {
        let family = self.family(principal);
        for one in &family {
            if let Some(standing) = self.principals.get_mut(&one.to_string()) {
                standing.end.cancel();
                standing.end = CancellationToken::new();
            }
        }
        family
    }
}

fn lock(author: &str, note: &str) -> Result<LockRow, AccessError> {
    if note.chars().count() > NOTE_MAX {
        return Err(AccessError::Argument("note: at most 500 characters"));
    }
    Ok(LockRow {
        time: now(),
        author: author.to_owned(),
        note: note.to_owned(),
    })
}
