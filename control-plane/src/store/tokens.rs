//! Bearer tokens, hashed.

use sqlx::Row as _;

use super::{Batch, LockRow, Store, StoreError, lock_row, principals::json, texts};

/// A bearer token as it is written. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct TokenRow {
    pub(crate) token_id: String,
    /// SHA-256 of the secret.
    pub(crate) hash: Vec<u8>,
    pub(crate) principal: String,
    pub(crate) author: String,
    pub(crate) create_time: i64,
    pub(crate) expire_time: i64,
    pub(crate) last_used_time: Option<i64>,
    /// Empty: all that the principal may.
    pub(crate) scopes: Vec<String>,
    pub(crate) lock: Option<LockRow>,
}

impl Store {
    /// Every token that was not revoked.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        sqlx::query("SELECT * FROM tokens WHERE revoke_time IS NULL")
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(|row| {
                Ok(TokenRow {
                    token_id: row.try_get("token_id")?,
                    hash: row.try_get("hash")?,
                    principal: row.try_get("principal")?,
                    author: row.try_get("author")?,
                    create_time: row.try_get("create_time")?,
                    expire_time: row.try_get("expire_time")?,
                    last_used_time: row.try_get("last_used_time")?,
                    scopes: texts(&row.try_get::<String, _>("scopes")?)?,
                    lock: lock_row(row)?,
                })
            })
            .collect()
    }
}

impl Batch {
    /// Adds a token. Its principal must be there.
    pub(crate) fn add_token(&mut self, token: &TokenRow) {
        self.push(
            "INSERT INTO tokens (token_id, hash, principal, author, create_time, expire_time, scopes)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                token.token_id.as_str().into(),
                token.hash.as_slice().into(),
                token.principal.as_str().into(),
                token.author.as_str().into(),
                token.create_time.into(),
                token.expire_time.into(),
                json(&token.scopes).into(),
            ],
        );
    }

    /// Makes a token useless.
    pub(crate) fn revoke_token(&mut self, token_id: &str, time: i64) {
        self.push(
            "UPDATE tokens SET revoke_time = ? WHERE token_id = ?",
            [time.into(), token_id.into()],
        );
    }

    /// Locks a token, or takes its lock away.
    pub(crate) fn set_token_lock(&mut self, token_id: &str, lock: Option<&LockRow>) {
        self.push(
            "UPDATE tokens SET lock_time = ?, lock_author = ?, lock_note = ? WHERE token_id = ?",
            [
                lock.map(|lock| lock.time).into(),
                lock.map(|lock| lock.author.as_str()).into(),
                lock.map(|lock| lock.note.as_str()).into(),
                token_id.into(),
            ],
        );
    }

    /// Notes when tokens were last used. `used` is a JSON object of times by token id.
    pub(crate) fn set_tokens_used(&mut self, used: &str) {
        self.push(
            "UPDATE tokens SET last_used_time = used.value
             FROM json_each(?) AS used WHERE tokens.token_id = used.key",
            [used.into()],
        );
    }
}
