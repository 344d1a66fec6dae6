//! What principals are to policy, and whether they are suspended.

use std::sync::Arc;

use super::{Access, AccessError};
use crate::{clock::now, model::Principal, policy::Who, store::Batch};

/// Principals that are looked at to say who could grant something.
const LOOKED_AT_MAX: usize = 1000;

impl Access {
    /// What policy sees of a principal; whoever is unknown has no roles.
    pub(crate) fn who(&self, principal: &Arc<str>) -> Who {
        let state = self.0.state.read();
        let standing = state.principals.get(&**principal);
        Who {
            principal: Arc::clone(principal),
            owner: standing.map_or_else(|| "".into(), |standing| Arc::clone(&standing.owner)),
            roles: standing.map_or_else(Arc::default, |standing| Arc::clone(&standing.roles)),
        }
    }

    /// The roles of a principal.
    pub(crate) fn roles(&self, principal: &Principal) -> Arc<[Arc<str>]> {
        self.who(&principal.to_string().into()).roles
    }

    /// Some who could be asked for something: operators, in the order of their names.
    pub(crate) fn operators(&self) -> Vec<Who> {
        let state = self.0.state.read();
        let mut names: Vec<Arc<str>> = state
            .principals
            .iter()
            .filter(|(name, standing)| name.starts_with("operator/") && standing.lock.is_none())
            .take(LOOKED_AT_MAX)
            .map(|(name, _)| name.as_str().into())
            .collect();
        drop(state);
        names.sort();
        names.iter().map(|name| self.who(name)).collect()
    }

    /// The principal and those that it owns.
    pub(crate) fn household(&self, principal: &str) -> Vec<String> {
        let state = self.0.state.read();
        let owned = state
            .principals
            .iter()
            .filter(|(_, standing)| &*standing.owner == principal)
            .map(|(name, _)| name.clone());
        owned.chain([principal.to_owned()]).collect()
    }

    /// Whether something of `other` is also `principal`'s.
    pub(crate) fn owns(&self, principal: &str, other: &str) -> bool {
        if principal == other {
            return true;
        }
        let state = self.0.state.read();
        let standing = state.principals.get(other);
        standing.is_some_and(|standing| &*standing.owner == principal)
    }

    /// Gives a principal one more role.
    pub(crate) async fn add_role(
        &self,
        principal: &Principal,
        role: &str,
    ) -> Result<(), AccessError> {
        let roles = self.roles(principal);
        if roles.iter().any(|own| &**own == role) {
            return Ok(());
        }
        let roles = roles.iter().map(|role| &**role).chain([role]);
        let roles: Vec<String> = roles.map(str::to_owned).collect();
        self.set_roles(principal, &roles).await.map(drop)
    }

    /// Since when and why a principal is suspended.
    pub(crate) fn suspended(&self, principal: &str) -> Option<(i64, Arc<str>)> {
        let state = self.0.state.read();
        state.principals.get(principal)?.suspended.clone()
    }

    /// Suspends a principal: at once, and durably soon after. Says whether that is news.
    pub(crate) fn suspend(&self, principal: &str, cause: &str) -> bool {
        let since = now();
        {
            let mut state = self.0.state.write();
            let Some(standing) = state.principals.get_mut(principal) else {
                return false;
            };
            if standing.suspended.is_some() {
                return false;
            }
            standing.suspended = Some((since, cause.into()));
        }
        tracing::warn!("{principal} is suspended: {cause}");
        let mut batch = Batch::new();
        batch.set_suspended(principal, Some((since, cause)));
        let access = self.clone();
        tokio::spawn(async move {
            if let Err(error) = access.commit(batch).await {
                tracing::error!(%error, "a suspension is not written, and ends with this process: {error}");
            }
        });
        true
    }

    /// Lifts a suspension.
    pub(crate) async fn resume(&self, principal: &Principal) -> Result<(), AccessError> {
        let name = self.known(principal)?;
        let mut batch = Batch::new();
        batch.set_suspended(&name, None);
        self.commit(batch).await?;
        if let Some(standing) = self.0.state.write().principals.get_mut(&name) {
            standing.suspended = None;
        }
        Ok(())
    }

    fn known(&self, principal: &Principal) -> Result<String, AccessError> {
        let name = principal.to_string();
        if self.0.state.read().principals.contains_key(&name) {
            Ok(name)
        } else {
            Err(AccessError::PrincipalNotFound(
                name.chars().take(80).collect(),
            ))
        }
    }
}
