//! How a principal stands: its owner, its roles, its lock, its last use.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tokio_util::sync::CancellationToken;

use super::{Access, AccessError, CredentialError};
use crate::{
    clock::now,
    model::{Principal, PrincipalKind, check_name},
    store::{Batch, LockRow, PrincipalRow},
};

/// The role that may change rights.
pub(crate) const ADMIN: &str = "admin";

/// Roles of one principal.
const ROLES_MAX: usize = 16;

/// What is known of a principal.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) owner: Arc<str>,
    /// Roles of the principal, for policy.
    pub(super) roles: Arc<[Arc<str>]>,
    /// When and why it was suspended.
    pub(super) suspended: Option<(i64, Arc<str>)>,
    pub(super) lock: Option<LockRow>,
    create_time: i64,
    /// When it last called; 0 if never.
    used: AtomicI64,
    /// Ends its calls; a new one after each lock.
    pub(super) end: CancellationToken,
}

impl Standing {
    pub(super) fn new(owner: &str, roles: Vec<String>, create_time: i64) -> Self {
        Self {
            owner: owner.into(),
            roles: shared(roles),
            suspended: None,
            lock: None,
            create_time,
            used: AtomicI64::new(0),
            end: CancellationToken::new(),
        }
    }

    pub(super) fn of(row: PrincipalRow) -> Self {
        Self {
            owner: row.owner.into(),
            roles: shared(row.roles),
            suspended: row.suspended.map(|(since, cause)| (since, cause.into())),
            lock: row.lock,
            create_time: row.create_time,
            used: AtomicI64::new(row.last_used_time.unwrap_or_default()),
            end: CancellationToken::new(),
        }
    }

    fn is_admin(&self) -> bool {
        self.lock.is_none() && self.roles.iter().any(|role| &**role == ADMIN)
    }
}

fn shared(roles: Vec<String>) -> Arc<[Arc<str>]> {
    roles.into_iter().map(Arc::from).collect()
}

/// A principal and how it stands.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) principal: Principal,
    pub(crate) owner: String,
    pub(crate) roles: Vec<String>,
    pub(crate) lock: Option<LockRow>,
    pub(crate) create_time: i64,
    pub(crate) last_used_time: Option<i64>,
}

/// The roles of a kind where nobody says more.
pub(crate) fn default_roles(kind: PrincipalKind) -> Vec<String> {
    let role = match kind {
        PrincipalKind::Operator | PrincipalKind::Automation => "operator",
        PrincipalKind::Ai => "ai",
        PrincipalKind::Gateway | PrincipalKind::Host => return Vec::new(),
    };
    vec![role.to_owned()]
}

/// Roles as they are kept: checked, each once; those of the kind where there are none.
pub(crate) fn checked_roles(
    roles: &[String],
    kind: PrincipalKind,
) -> Result<Vec<String>, AccessError> {
    if roles.is_empty() {
        return Ok(default_roles(kind));
    }
    if kind == PrincipalKind::Ai && roles.iter().any(|role| role == ADMIN) {
        return Err(AccessError::Argument("roles: an ai is never an admin"));
    }
    let mut roles = roles.to_vec();
    roles.sort();
    roles.dedup();
    if roles.len() > ROLES_MAX {
        return Err(AccessError::Argument("roles: at most 16"));
    }
    for role in &roles {
        check_name(role)?;
    }
    Ok(roles)
}

impl Access {
    /// How a principal stands, hosts aside.
    pub(crate) fn member(&self, principal: &Principal) -> Option<Member> {
        let state = self.0.state.read();
        let standing = state.principals.get(&principal.to_string())?;
        Some(member(principal.clone(), standing))
    }

    /// Every principal, by kind and name.
    pub(crate) fn members(&self) -> Vec<Member> {
        let state = self.0.state.read();
        let mut members: Vec<Member> = state
            .principals
            .iter()
            .filter_map(|(text, standing)| Some(member(text.parse().ok()?, standing)))
            .collect();
        members.sort_by(|a, b| a.principal.cmp(&b.principal));
        members
    }

    /// The principal exists, and neither it nor its owner is locked. Returns what ends its calls.
    pub(super) fn standing(
        &self,
        principal: &Principal,
    ) -> Result<CancellationToken, CredentialError> {
        let state = self.0.state.read();
        let unknown = CredentialError::Invalid("the credential names nobody here");
        let mut name = principal.to_string();
        let standing = state.principals.get(&name).ok_or(unknown.clone())?;
        let mut above = standing;
        loop {
            if above.lock.is_some() {
                return Err(CredentialError::Locked(name));
            }
            if above.owner.is_empty() {
                break;
            }
            name = above.owner.to_string();
            above = state.principals.get(&name).ok_or(unknown.clone())?;
        }
        standing.used.store(now(), Ordering::Relaxed);
        Ok(standing.end.clone())
    }

    /// Why a principal may do nothing now, whatever policy says of it; `None` if it may.
    pub(crate) fn barred(&self, principal: &str) -> Option<String> {
        let state = self.0.state.read();
        let own = state.principals.get(principal);
        if own.is_some_and(|standing| standing.suspended.is_some()) {
            return Some(format!("{principal} is suspended"));
        }
        let mut above = (principal.to_owned(), own);
        loop {
            let (name, Some(standing)) = above else {
                return Some(format!("there is no {} any more", above.0));
            };
            if standing.lock.is_some() {
                return Some(format!("{name} is locked"));
            }
            if standing.owner.is_empty() {
                return None;
            }
            above = (
                standing.owner.to_string(),
                state.principals.get(&*standing.owner),
            );
        }
    }

    /// Makes a principal that is new.
    pub(crate) async fn create_principal(
        &self,
        principal: &Principal,
        roles: &[String],
    ) -> Result<Member, AccessError> {
        if matches!(principal.kind, PrincipalKind::Gateway | PrincipalKind::Host) {
            return Err(AccessError::Argument(
                "kind: hosts and gateways come by a join token; make an operator, an ai or an automation",
            ));
        }
        let _turn = self.0.turn.lock().await;
        if self.knows(principal) {
            return Err(AccessError::PrincipalExists(principal.to_string()));
        }
        self.add_principal(principal, "", roles, Batch::new())
            .await?;
        self.found(principal)
    }

    /// Gives a principal these roles and no others. Whoever calls this tells policy, so that what runs is judged anew.
    pub(crate) async fn set_roles(
        &self,
        principal: &Principal,
        roles: &[String],
    ) -> Result<Member, AccessError> {
        let roles = checked_roles(roles, principal.kind)?;
        let _turn = self.0.turn.lock().await;
        self.found(principal)?;
        if !roles.iter().any(|role| role == ADMIN) {
            self.spare_last_admin(principal)?;
        }
        let text = principal.to_string();
        let mut batch = Batch::new();
        batch.set_roles(&text, &roles);
        self.commit(batch).await?;
        if let Some(standing) = self.0.state.write().principals.get_mut(&text) {
            standing.roles = shared(roles);
        }
        self.found(principal)
    }

    pub(super) fn found(&self, principal: &Principal) -> Result<Member, AccessError> {
        self.member(principal)
            .ok_or_else(|| AccessError::PrincipalNotFound(principal.to_string()))
    }

    /// Refuses where `principal` is the only admin that can still act.
    pub(super) fn spare_last_admin(&self, principal: &Principal) -> Result<(), AccessError> {
        let text = principal.to_string();
        let state = self.0.state.read();
        let is_admin = state.principals.get(&text).is_some_and(Standing::is_admin);
        let others = state
            .principals
            .iter()
            .any(|(name, standing)| *name != text && standing.is_admin());
        if is_admin && !others {
            return Err(AccessError::LastAdmin(text));
        }
        Ok(())
    }

    /// When principals last called, of those that did since then.
    pub(super) fn used_since(&self, since: i64) -> serde_json::Map<String, serde_json::Value> {
        let state = self.0.state.read();
        state
            .principals
            .iter()
            .map(|(name, standing)| (name, standing.used.load(Ordering::Relaxed)))
            .filter(|(_, time)| *time >= since.max(1))
            .map(|(name, time)| (name.clone(), time.into()))
            .collect()
    }
}

fn member(principal: Principal, standing: &Standing) -> Member {
    let used = standing.used.load(Ordering::Relaxed);
    Member {
        principal,
        owner: standing.owner.to_string(),
        roles: standing.roles.iter().map(ToString::to_string).collect(),
        lock: standing.lock.clone(),
        create_time: standing.create_time,
        last_used_time: Some(used).filter(|time| *time != 0),
    }
}
