//! Principals: whoever may ask, hosts aside.

use sqlx::Row as _;

use super::{Batch, Store, StoreError};

/// A principal as it is written.
#[derive(Debug, Clone)]
pub(crate) struct PrincipalRow {
    /// As "operator/ada".
    pub(crate) principal: String,
    /// The operator that owns an ai; empty if none does.
    pub(crate) owner: String,
    pub(crate) locked: bool,
}

impl Store {
    /// Every principal.
    pub(crate) async fn principals(&self) -> Result<Vec<PrincipalRow>, StoreError> {
        sqlx::query("SELECT principal, owner, lock_time IS NOT NULL AS locked FROM principals")
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(|row| {
                Ok(PrincipalRow {
                    principal: row.try_get("principal")?,
                    owner: row.try_get("owner")?,
                    locked: row.try_get("locked")?,
                })
            })
            .collect()
    }
}

impl Batch {
    /// Adds a principal, if it is new.
    pub(crate) fn add_principal(&mut self, principal: &str, owner: &str, create_time: i64) {
        self.push(
            "INSERT INTO principals (principal, owner, create_time) VALUES (?, ?, ?)
             ON CONFLICT (principal) DO NOTHING",
            [principal.into(), owner.into(), create_time.into()],
        );
    }
}
