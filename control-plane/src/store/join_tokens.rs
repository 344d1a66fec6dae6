//! Join tokens, hashed, and who came in by them.

use std::collections::BTreeMap;

use sqlx::{Row as _, sqlite::SqliteRow};

use super::{Batch, Store, StoreError, principals::json, texts};

/// A join token as it is written. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct JoinTokenRow {
    pub(crate) token_id: String,
    /// SHA-256 of the secret.
    pub(crate) hash: Vec<u8>,
    /// "host", "gateway" or "operator".
    pub(crate) kind: String,
    /// Empty lets the joiner choose.
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) author: String,
    pub(crate) create_time: i64,
    pub(crate) expire_time: i64,
    pub(crate) uses: i64,
    pub(crate) uses_max: i64,
    pub(crate) revoked: bool,
    /// What an operator that is new gets.
    pub(crate) roles: Vec<String>,
}

fn join_token(row: &SqliteRow) -> Result<JoinTokenRow, StoreError> {
    let labels: String = row.try_get("labels")?;
    Ok(JoinTokenRow {
        token_id: row.try_get("token_id")?,
        hash: row.try_get("hash")?,
        kind: row.try_get("kind")?,
        name: row.try_get("name")?,
        labels: serde_json::from_str(&labels)
            .map_err(|error| StoreError::Broken(format!("labels of a token: {error}").into()))?,
        author: row.try_get("author")?,
        create_time: row.try_get("create_time")?,
        expire_time: row.try_get("expire_time")?,
        uses: row.try_get("uses")?,
        uses_max: row.try_get("uses_max")?,
        revoked: row.try_get::<Option<i64>, _>("revoke_time")?.is_some(),
        roles: texts(&row.try_get::<String, _>("roles")?)?,
    })
}

impl Store {
    /// The token with this hash.
    pub(crate) async fn join_token(&self, hash: &[u8]) -> Result<Option<JoinTokenRow>, StoreError> {
        sqlx::query("SELECT * FROM join_tokens WHERE hash = ?")
            .bind(hash)
            .fetch_optional(&self.readers)
            .await?
            .map(|row| join_token(&row))
            .transpose()
    }

    /// Whether there is a token with this id that was not revoked.
    pub(crate) async fn has_join_token(&self, token_id: &str) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM join_tokens WHERE token_id = ? AND revoke_time IS NULL",
        )
        .bind(token_id)
        .fetch_optional(&self.readers)
        .await?;
        Ok(found.is_some())
    }

    /// Tokens that can still be used at `now` and come after (`create_time`, `token_id`) as the newest first.
    pub(crate) async fn join_tokens(
        &self,
        now: i64,
        after: (i64, &str),
        limit: i64,
    ) -> Result<Vec<JoinTokenRow>, StoreError> {
        sqlx::query(
            "SELECT * FROM join_tokens
             WHERE revoke_time IS NULL AND expire_time > ? AND uses < uses_max
               AND (create_time, token_id) < (?, ?)
             ORDER BY create_time DESC, token_id DESC LIMIT ?",
        )
        .bind(now)
        .bind(after.0)
        .bind(after.1)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(join_token)
        .collect()
    }

    /// The identity that this key got by this token: "host/h-…" or "gateway/local".
    pub(crate) async fn enrolled(
        &self,
        token_id: &str,
        key_hash: &[u8],
    ) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT identity FROM enrollments WHERE token_id = ? AND key_hash = ?",
        )
        .bind(token_id)
        .bind(key_hash)
        .fetch_optional(&self.readers)
        .await?)
    }
}

impl Batch {
    /// Adds a join token.
    pub(crate) fn add_join_token(&mut self, token: &JoinTokenRow) {
        let labels = serde_json::to_string(&token.labels).expect("a map of texts is JSON");
        self.push(
            "INSERT INTO join_tokens
                 (token_id, hash, kind, name, labels, author, create_time, expire_time, uses_max, roles)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                token.token_id.as_str().into(),
                token.hash.as_slice().into(),
                token.kind.as_str().into(),
                token.name.as_str().into(),
                labels.into(),
                token.author.as_str().into(),
                token.create_time.into(),
                token.expire_time.into(),
                token.uses_max.into(),
                json(&token.roles).into(),
            ],
        );
    }

    /// Makes a join token useless.
    pub(crate) fn revoke_join_token(&mut self, token_id: &str, time: i64) {
        self.push(
            "UPDATE join_tokens SET revoke_time = ? WHERE token_id = ? AND revoke_time IS NULL",
            [time.into(), token_id.into()],
        );
    }

    /// Uses a join token up by one, for this key and identity. The whole batch conflicts if it was used up.
    pub(crate) fn use_join_token(
        &mut self,
        token_id: &str,
        key_hash: &[u8],
        identity: &str,
        time: i64,
    ) {
        self.push(
            "UPDATE join_tokens SET uses = uses + 1 WHERE token_id = ?",
            [token_id.into()],
        );
        self.push(
            "INSERT INTO enrollments (token_id, key_hash, identity, create_time) VALUES (?, ?, ?, ?)",
            [
                token_id.into(),
                key_hash.into(),
                identity.into(),
                time.into(),
            ],
        );
    }
}
