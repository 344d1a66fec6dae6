//! Which version of the authorities each host has taken.

use std::collections::HashMap;

use muster_proto::ids::HostId;
use sqlx::Row as _;

use super::{Batch, Store, StoreError};

impl Store {
    /// The version that each host has taken.
    pub(crate) async fn authorities_taken(&self) -> Result<HashMap<HostId, i64>, StoreError> {
        let rows = sqlx::query("SELECT host_id, version FROM authorities_taken")
            .fetch_all(&self.readers)
            .await?;
        let mut taken = HashMap::with_capacity(rows.len());
        for row in rows {
            let host: String = row.try_get("host_id")?;
            if let Ok(host) = host.parse() {
                taken.insert(host, row.try_get("version")?);
            }
        }
        Ok(taken)
    }
}

impl Batch {
    /// A host has taken the authorities of this version.
    pub(crate) fn set_authorities_taken(&mut self, host: HostId, version: i64) {
        self.push(
            "INSERT INTO authorities_taken (host_id, version) VALUES (?, ?)
             ON CONFLICT (host_id) DO UPDATE SET version = excluded.version",
            [host.to_string().into(), version.into()],
        );
    }
}
