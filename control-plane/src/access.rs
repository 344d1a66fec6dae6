//! Who may take part: principals, bearer tokens, exchanged tokens.
//!
//! Principals and tokens are in memory: every call is judged without a query. Changes are durable before they
//! count.

mod caller;
mod exchange;
mod locks;
mod roles;
mod scope;
mod secret;
mod standing;
mod tokens;

use std::{collections::HashMap, sync::Arc, time::Duration};

use muster_proto::v1::Reason;
use muster_runtime::tls::SpiffeId;
use parking_lot::RwLock;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    clock::now,
    hosts::Inventory,
    model::{Explain, NameError, Principal, PrincipalKind, check_name},
    seal::Sealer,
    store::{Batch, Store, StoreError},
};

pub(crate) use self::{
    caller::{Caller, Credential, CredentialError},
    scope::{Scope, ScopeError, Scopes},
    secret::{Secret, draw_id, hash},
    standing::{ADMIN, Member, checked_roles, default_roles},
    tokens::Token,
};
use self::{exchange::Exchanged, standing::Standing};

/// How long an exchanged token lives at most.
const EXCHANGED_TTL_MS: i64 = 5 * 60 * 1000;

/// How often it is written when tokens were last used.
const WRITE_USES_EVERY: Duration = Duration::from_secs(60);

/// Why a principal or token was not made, changed or exchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("kind: bearer tokens are for an operator, an ai or an automation")]
    Kind,
    #[error("ttl: at most 366 days, and more than nothing")]
    Ttl,
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("{0}")]
    Argument(&'static str),
    #[error("there is no principal {0:?}; `muster access list` shows them")]
    PrincipalNotFound(String),
    #[error("{0} exists already")]
    PrincipalExists(String),
    #[error("{0} is the last admin: nobody could change rights any more; make another admin first")]
    LastAdmin(String),
    #[error("there is no token {0:?}")]
    TokenNotFound(String),
    #[error("ai/{name} belongs to somebody else; choose another name")]
    NotYours { name: String },
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Default)]
struct State {
    principals: HashMap<String, Standing>,
    by_hash: HashMap<Vec<u8>, Arc<Token>>,
    by_id: HashMap<String, Arc<Token>>,
}

/// Who may take part. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Access(Arc<Shared>);

struct Shared {
    state: RwLock<State>,
    store: Store,
    inventory: Inventory,
    sealer: Sealer,
    trust_domain: Arc<str>,
    /// Principals as they are locked, for whoever closes their connections.
    locked: broadcast::Sender<Principal>,
    /// One change of principals at a time, from the look to the commit: of two admins that lock each other, one stays.
    turn: tokio::sync::Mutex<()>,
}

/// A short-lived token that was exchanged for something.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) token: String,
    pub(crate) expire_time: i64,
    pub(crate) principal: Principal,
    pub(crate) scopes: Scopes,
}

impl Access {
    /// Reads principals and tokens from the ledger.
    pub(crate) async fn load(
        store: Store,
        inventory: Inventory,
        sealer: Sealer,
        trust_domain: Arc<str>,
    ) -> Result<Self, StoreError> {
        let mut state = State::default();
        for row in store.principals().await? {
            state
                .principals
                .insert(row.principal.clone(), Standing::of(row));
        }
        for row in store.tokens().await? {
            state.put(row)?;
        }
        Ok(Self(Arc::new(Shared {
            state: RwLock::new(state),
            store,
            inventory,
            sealer,
            trust_domain,
            locked: broadcast::channel(64).0,
            turn: tokio::sync::Mutex::default(),
        })))
    }

    /// Whether a certificate of this identity may open a connection.
    pub(crate) fn admits(&self, id: &SpiffeId) -> bool {
        self.certified(id).is_ok()
    }

    /// The operator that owns an ai; empty if none does.
    pub(crate) fn owner(&self, principal: &Principal) -> String {
        let state = self.0.state.read();
        state
            .principals
            .get(&principal.to_string())
            .map(|standing| standing.owner.to_string())
            .unwrap_or_default()
    }

    /// Makes a principal, if it is new, with what else is in `batch`. Without roles it gets those of its kind.
    pub(crate) async fn add_principal(
        &self,
        principal: &Principal,
        owner: &str,
        roles: &[String],
        mut batch: Batch,
    ) -> Result<(), AccessError> {
        check_name(&principal.name)?;
        let roles = checked_roles(roles, principal.kind)?;
        let text = principal.to_string();
        let create_time = now();
        batch.add_principal(&text, owner, &roles, create_time);
        self.commit(batch).await?;
        let mut state = self.0.state.write();
        state
            .principals
            .entry(text)
            .or_insert_with(|| Standing::new(owner, roles, create_time));
        Ok(())
    }

    /// Whether there is such a principal.
    pub(crate) fn knows(&self, principal: &Principal) -> bool {
        let state = self.0.state.read();
        state.principals.contains_key(&principal.to_string())
    }

    /// For a gateway: a short-lived token for whom `bearer` belongs to.
    pub(crate) fn exchange_bearer(
        &self,
        bearer: &str,
        certificate: &SpiffeId,
    ) -> Result<Sealed, AccessError> {
        let (token, _) = self.bearer(bearer)?;
        let limit = (token.expire_time, token.scopes);
        Ok(self.seal(&token.principal, &token.id, limit, certificate))
    }

    /// For a gateway: a short-lived token for a principal that an access token of an authorization server names. It
    /// must be there already: whom such a server knows is none of our principals by that.
    pub(crate) fn exchange_verified(
        &self,
        principal: &Principal,
        limit: (i64, Scopes),
        certificate: &SpiffeId,
    ) -> Result<Sealed, AccessError> {
        self.standing(principal)?;
        Ok(self.seal(principal, "", limit, certificate))
    }

    /// For an operator: a short-lived token for an ai that it owns, made at first use.
    pub(crate) async fn exchange_ai(
        &self,
        operator: &Principal,
        name: &str,
        certificate: &SpiffeId,
    ) -> Result<Sealed, AccessError> {
        let ai = Principal::new(PrincipalKind::Ai, name);
        let owner = operator.to_string();
        if !self.knows(&ai) {
            self.add_principal(&ai, &owner, &[], Batch::new()).await?;
        }
        if self.owner(&ai) != owner {
            return Err(AccessError::NotYours {
                name: name.to_owned(),
            });
        }
        self.standing(&ai)?;
        Ok(self.seal(&ai, "", (i64::MAX, Scopes::ALL), certificate))
    }

    /// A short-lived token: no longer and no further than `limit`, its source, says.
    fn seal(
        &self,
        principal: &Principal,
        token_id: &str,
        limit: (i64, Scopes),
        certificate: &SpiffeId,
    ) -> Sealed {
        audit::effect("of", principal);
        let expire_time = (now() + EXCHANGED_TTL_MS).min(limit.0);
        let exchanged = Exchanged {
            principal: principal.to_string(),
            token_id: token_id.to_owned(),
            certificate: certificate.to_string(),
            expire_time,
            scopes: limit.1.texts(),
            narrowed: !limit.1.is_all(),
        };
        Sealed {
            token: exchanged.seal(&self.0.sealer),
            expire_time,
            principal: principal.clone(),
            scopes: limit.1,
        }
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let committed = self.0.store.writer.commit(batch).await?;
        Ok(committed.durable.wait().await?)
    }

    /// Writes now and then when tokens were used, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut written = 0;
        loop {
            let stopping = tokio::select! {
                () = tokio::time::sleep(WRITE_USES_EVERY) => false,
                () = stop.cancelled() => true,
            };
            let since = std::mem::replace(&mut written, now());
            let used: serde_json::Map<String, serde_json::Value> = self
                .tokens()
                .iter()
                .filter_map(|token| Some((token.id.clone(), token.last_used_time()?)))
                .filter(|(_, time)| *time >= since)
                .map(|(id, time)| (id, time.into()))
                .collect();
            let callers = self.used_since(since);
            if !used.is_empty() || !callers.is_empty() {
                let mut batch = Batch::new();
                batch.set_tokens_used(&serde_json::Value::Object(used).to_string());
                batch.set_principals_used(&serde_json::Value::Object(callers).to_string());
                if let Err(error) = self.0.store.writer.commit(batch).await {
                    tracing::warn!(%error, "when tokens were used is not written: {error}");
                }
            }
            if stopping {
                return;
            }
        }
    }
}

impl Explain for AccessError {
    fn reason(&self) -> Reason {
        match self {
            Self::Name(error) => error.reason(),
            Self::Kind | Self::Ttl | Self::Scope(_) | Self::Argument(_) => Reason::ArgumentInvalid,
            Self::PrincipalNotFound(_) => Reason::PrincipalNotFound,
            Self::PrincipalExists(_) => Reason::PrincipalExists,
            Self::LastAdmin(_) => Reason::LastAdmin,
            Self::TokenNotFound(_) => Reason::TokenNotFound,
            Self::NotYours { .. } => Reason::NotAllowed,
            Self::Credential(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }
}

#[cfg(test)]
mod tests;
