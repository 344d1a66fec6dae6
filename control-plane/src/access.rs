//! Who may take part: principals, bearer tokens, exchanged tokens.
//!
//! Principals and tokens are in memory: every call is judged without a query. Changes are durable before they
//! count.

mod caller;
mod exchange;
mod principal;
mod secret;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_runtime::tls::SpiffeId;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::{
    hosts::{Inventory, NameError, check_name},
    seal::Sealer,
    store::{Batch, Store, StoreError, TokenRow, now},
};

use self::exchange::Exchanged;
pub(crate) use self::{
    caller::{Caller, CredentialError},
    principal::{Principal, PrincipalKind},
    secret::{Secret, draw_id, hash},
};

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
    /// 0 if never.
    used: AtomicI64,
    /// Ends the calls that were made with it.
    revoked: CancellationToken,
}

impl Token {
    /// When it was last used.
    pub(crate) fn last_used_time(&self) -> Option<i64> {
        Some(self.used.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }
}

/// What is known of a principal.
#[derive(Debug, Clone, Default)]
struct Standing {
    owner: String,
    locked: bool,
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
            let standing = Standing {
                owner: row.owner,
                locked: row.locked,
            };
            state.principals.insert(row.principal, standing);
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
            .map(|standing| standing.owner.clone())
            .unwrap_or_default()
    }

    /// Makes a principal, if it is new, with what else is in `batch`.
    pub(crate) async fn add_principal(
        &self,
        principal: &Principal,
        owner: &str,
        mut batch: Batch,
    ) -> Result<(), AccessError> {
        check_name(&principal.name)?;
        let text = principal.to_string();
        batch.add_principal(&text, owner, now());
        self.commit(batch).await?;
        let mut state = self.0.state.write();
        state.principals.entry(text).or_insert_with(|| Standing {
            owner: owner.to_owned(),
            locked: false,
        });
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
        };
        // One transaction: the token refers to its principal.
        check_name(&principal.name)?;
        let mut batch = Batch::new();
        batch.add_principal(&row.principal, "", create_time);
        batch.add_token(&row);
        self.commit(batch).await?;
        let mut state = self.0.state.write();
        state.principals.entry(row.principal.clone()).or_default();
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
        self.commit(batch).await?;
        let mut state = self.0.state.write();
        if let Some(token) = state.by_id.remove(id) {
            state.by_hash.retain(|_, other| other.id != token.id);
            token.revoked.cancel();
        }
        Ok(())
    }

    /// For a gateway: a short-lived token for whom `bearer` belongs to.
    pub(crate) fn exchange_bearer(
        &self,
        bearer: &str,
        certificate: &SpiffeId,
    ) -> Result<(String, i64, Principal), AccessError> {
        let token = self.bearer(bearer)?;
        self.seal(&token.principal, Some(&token), certificate)
    }

    /// For an operator: a short-lived token for an ai that it owns, made at first use.
    pub(crate) async fn exchange_ai(
        &self,
        operator: &Principal,
        name: &str,
        certificate: &SpiffeId,
    ) -> Result<(String, i64, Principal), AccessError> {
        let ai = Principal::new(PrincipalKind::Ai, name);
        let owner = operator.to_string();
        if !self.knows(&ai) {
            self.add_principal(&ai, &owner, Batch::new()).await?;
        }
        if self.owner(&ai) != owner {
            return Err(AccessError::NotYours {
                name: name.to_owned(),
            });
        }
        self.standing(&ai)?;
        self.seal(&ai, None, certificate)
    }

    fn seal(
        &self,
        principal: &Principal,
        token: Option<&Token>,
        certificate: &SpiffeId,
    ) -> Result<(String, i64, Principal), AccessError> {
        let expire_time = (now() + EXCHANGED_TTL_MS).min(token.map_or(i64::MAX, |t| t.expire_time));
        let exchanged = Exchanged {
            principal: principal.to_string(),
            token_id: token.map(|token| token.id.clone()).unwrap_or_default(),
            certificate: certificate.to_string(),
            expire_time,
        };
        Ok((
            exchanged.seal(&self.0.sealer),
            expire_time,
            principal.clone(),
        ))
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
            if !used.is_empty() {
                let mut batch = Batch::new();
                batch.set_tokens_used(&serde_json::Value::Object(used).to_string());
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
            .map_err(|error: principal::PrincipalError| {
                StoreError::Broken(error.to_string().into())
            })?;
        let token = Arc::new(Token {
            id: row.token_id,
            principal,
            author: row.author,
            create_time: row.create_time,
            expire_time: row.expire_time,
            used: AtomicI64::new(row.last_used_time.unwrap_or_default()),
            revoked: CancellationToken::new(),
        });
        self.by_hash.insert(row.hash, token.clone());
        self.by_id.insert(token.id.clone(), token.clone());
        Ok(token)
    }
}

#[cfg(test)]
mod tests;
