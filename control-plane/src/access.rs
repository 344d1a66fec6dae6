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

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_runtime::tls::SpiffeId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    clock::now,
    hosts::Inventory,
    model::{NameError, Principal, PrincipalError, PrincipalKind, check_name},
    seal::Sealer,
    store::{Batch, LockRow, Store, StoreError, TokenRow},
};

pub(crate) use self::{
    caller::{Caller, Credential, CredentialError},
    scope::{Scope, ScopeError, Scopes},
    secret::{Secret, draw_id, hash},
    standing::{ADMIN, Member, checked_roles, default_roles},
};
use self::{exchange::Exchanged, standing::Standing};

/// How long a bearer token may live.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// How long a bearer token lives if nobody says.
const TOKEN_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

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

/// A bearer token, without its secret.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) principal: Principal,
    pub(crate) author: String,
    /// Unix milliseconds, as every time here.
    pub(crate) create_time: i64,
    pub(crate) expire_time: i64,
    /// What it narrows its principal to.
    pub(crate) scopes: Scopes,
    /// 0 if never.
    used: AtomicI64,
    // Held for a look only.
    gate: Mutex<Gate>,
}

/// Whether a token is let through.
#[derive(Debug, Default)]
struct Gate {
    lock: Option<LockRow>,
    /// Ends the calls that were made with it; a new one after each lock.
    end: CancellationToken,
}

impl Token {
    /// When it was last used.
    pub(crate) fn last_used_time(&self) -> Option<i64> {
        Some(self.used.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }

    /// Its lock, while it is locked.
    pub(crate) fn lock(&self) -> Option<LockRow> {
        self.gate.lock().lock.clone()
    }

    /// What ends calls that are made with it now.
    fn end(&self) -> Result<CancellationToken, CredentialError> {
        let gate = self.gate.lock();
        match gate.lock {
            None => Ok(gate.end.clone()),
            Some(_) => Err(CredentialError::Locked(format!("the token {}", self.id))),
        }
    }
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

    /// Makes a bearer token, and its principal if that is new.
    pub(crate) async fn create_token(
        &self,
        principal: Principal,
        ttl: Option<Duration>,
        scopes: &[String],
        author: &str,
    ) -> Result<(Arc<Token>, Secret), AccessError> {
        let prefix = match principal.kind {
            PrincipalKind::Operator => "mst_op_",
            PrincipalKind::Ai => "mst_ai_",
            PrincipalKind::Automation => "mst_auto_",
            PrincipalKind::Gateway | PrincipalKind::Host => return Err(AccessError::Kind),
        };
        let ttl = ttl.unwrap_or(TOKEN_TTL);
        if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
            return Err(AccessError::Ttl);
        }
        // Names are checked; what is stored is what was meant.
        let scopes = Scopes::parse(scopes)?.texts();
        let secret = Secret::draw(prefix);
        let create_time = now();
        let row = TokenRow {
            token_id: draw_id("k-"),
            hash: secret.hash(),
            principal: principal.to_string(),
            author: author.to_owned(),
            create_time,
            expire_time: create_time + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
            last_used_time: None,
            scopes,
            lock: None,
        };
        // One transaction: the token refers to its principal.
        check_name(&principal.name)?;
        let mut batch = Batch::new();
        let roles = default_roles(principal.kind);
        batch.add_principal(&row.principal, "", &roles, create_time);
        batch.add_token(&row);
        audit::effect("token", &row.token_id);
        audit::effect("of", &row.principal);
        self.commit(batch).await?;
        let mut state = self.0.state.write();
        state
            .principals
            .entry(row.principal.clone())
            .or_insert_with(|| Standing::new("", roles, create_time));
        let token = state.put(row)?;
        Ok((token, secret))
    }

    /// Every token that was not revoked, newest first.
    pub(crate) fn tokens(&self) -> Vec<Arc<Token>> {
        let mut tokens: Vec<_> = self.0.state.read().by_id.values().cloned().collect();
        tokens.sort_by(|a, b| (b.create_time, &b.id).cmp(&(a.create_time, &a.id)));
        tokens
    }

    /// Makes a token useless and ends the calls that were made with it.
    pub(crate) async fn revoke_token(&self, id: &str) -> Result<(), AccessError> {
        let mut batch = Batch::new();
        batch.revoke_token(id, now());
        if !self.0.state.read().by_id.contains_key(id) {
            return Err(AccessError::TokenNotFound(id.chars().take(80).collect()));
        }
        audit::effect("token", id);
        self.commit(batch).await?;
        let mut state = self.0.state.write();
        if let Some(token) = state.by_id.remove(id) {
            state.by_hash.retain(|_, other| other.id != token.id);
            token.gate.lock().end.cancel();
        }
        Ok(())
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

impl State {
    fn put(&mut self, row: TokenRow) -> Result<Arc<Token>, StoreError> {
        let principal = row
            .principal
            .parse()
            .map_err(|error: PrincipalError| StoreError::Broken(error.to_string().into()))?;
        let token = Arc::new(Token {
            id: row.token_id,
            principal,
            author: row.author,
            create_time: row.create_time,
            expire_time: row.expire_time,
            scopes: Scopes::stored(&row.scopes),
            used: AtomicI64::new(row.last_used_time.unwrap_or_default()),
            gate: Mutex::new(Gate {
                lock: row.lock,
                end: CancellationToken::new(),
            }),
        });
        self.by_hash.insert(row.hash, token.clone());
        self.by_id.insert(token.id.clone(), token.clone());
        Ok(token)
    }
}

#[cfg(test)]
mod tests;
