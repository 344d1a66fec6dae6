//! Bearer tokens: made, found and revoked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    Access, AccessError, CredentialError, Scopes, Secret, State, default_roles, draw_id,
    standing::Standing,
};
use crate::{
    audit,
    clock::now,
    model::{Principal, PrincipalError, PrincipalKind, check_name},
    store::{Batch, LockRow, StoreError, TokenRow},
};

/// How long a bearer token may live.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// How long a bearer token lives if nobody says.
const TOKEN_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// A bearer token, without its secret.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) principal: Principal,
    pub(crate) author: String,
    /// Unix milliseconds, as every time here.
    pub(crate) create_time: i64,
    pub(crate) expire_time: i64,
    /// Scopes to which the token narrows its principal.
    pub(crate) scopes: Scopes,
    /// 0 if never.
    pub(super) used: AtomicI64,
    // Held for a look only.
    pub(super) gate: Mutex<Gate>,
}

/// Whether a token is let through.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) lock: Option<LockRow>,
    /// Ends the calls that were made with it; a new one after each lock.
    pub(super) end: CancellationToken,
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
    pub(super) fn end(&self) -> Result<CancellationToken, CredentialError> {
        let gate = self.gate.lock();
        match gate.lock {
            None => Ok(gate.end.clone()),
            Some(_) => Err(CredentialError::Locked(format!("the token {}", self.id))),
        }
    }
}

impl Access {
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
}

impl State {
    pub(super) fn put(&mut self, row: TokenRow) -> Result<Arc<Token>, StoreError> {
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
