//! Policies: every version that ever stood.

use sqlx::{Row as _, sqlite::SqliteRow};

use super::{Batch, Store, StoreError};
use crate::model::Files;

/// A version of the policies.
#[derive(Debug, Clone)]
pub(crate) struct StoredPolicies {
    /// Counts from 1.
    pub(crate) version: i64,
    pub(crate) files: Files,
    /// The principal that set them.
    pub(crate) author: String,
    /// Why; may be empty.
    pub(crate) note: String,
    /// Unix milliseconds.
    pub(crate) create_time: i64,
}

impl Store {
    /// The version that stands; `None` if nobody has set any.
    pub(crate) async fn newest_policies(&self) -> Result<Option<StoredPolicies>, StoreError> {
        Ok(self.policies(i64::MAX, 1).await?.pop())
    }

    /// Versions below `before`, newest first.
    pub(crate) async fn policies(
        &self,
        before: i64,
        limit: i64,
    ) -> Result<Vec<StoredPolicies>, StoreError> {
        sqlx::query("SELECT * FROM policies WHERE version < ? ORDER BY version DESC LIMIT ?")
            .bind(before)
            .bind(limit)
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(stored)
            .collect()
    }
}

fn stored(row: &SqliteRow) -> Result<StoredPolicies, StoreError> {
    let files: String = row.try_get("files")?;
    Ok(StoredPolicies {
        version: row.try_get("version")?,
        files: serde_json::from_str(&files).map_err(|error| {
            StoreError::Broken(format!("policies cannot be read: {error}").into())
        })?,
        author: row.try_get("author")?,
        note: row.try_get("note")?,
        create_time: row.try_get("create_time")?,
    })
}

impl Batch {
    /// Adds a version of the policies.
    pub(crate) fn add_policies(&mut self, policies: &StoredPolicies) {
        let files = serde_json::to_string(&policies.files).expect("texts have a JSON form");
        self.push(
            "INSERT INTO policies (version, files, author, note, create_time) VALUES (?, ?, ?, ?, ?)",
            [
                policies.version.into(),
                files.into(),
                policies.author.clone().into(),
                policies.note.clone().into(),
                policies.create_time.into(),
            ],
        );
    }
}
