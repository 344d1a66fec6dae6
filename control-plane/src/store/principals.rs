//! Principals: whoever may ask, hosts aside.

use sqlx::Row as _;

use super::{Batch, LockRow, Store, StoreError, lock_row, texts};

/// A principal as it is written. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct PrincipalRow {
    /// As "operator/ada".
    pub(crate) principal: String,
    /// The operator that owns an ai; empty if none does.
    pub(crate) owner: String,
    /// Roles of the principal, for policy.
    pub(crate) roles: Vec<String>,
    pub(crate) lock: Option<LockRow>,
    pub(crate) create_time: i64,
    pub(crate) last_used_time: Option<i64>,
    /// When and why it was suspended.
    pub(crate) suspended: Option<(i64, String)>,
}

impl Store {
    /// Every principal.
    pub(crate) async fn principals(&self) -> Result<Vec<PrincipalRow>, StoreError> {
        sqlx::query("SELECT * FROM principals")
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(|row| {
                let since: Option<i64> = row.try_get("suspend_time")?;
                let cause: String = row.try_get("suspend_cause")?;
                Ok(PrincipalRow {
                    suspended: since.map(|since| (since, cause)),
                    principal: row.try_get("principal")?,
                    owner: row.try_get("owner")?,
                    roles: texts(&row.try_get::<String, _>("roles")?)?,
                    lock: lock_row(row)?,
                    create_time: row.try_get("create_time")?,
                    last_used_time: row.try_get("last_used_time")?,
                })
            })
            .collect()
    }
}

impl Batch {
    /// Adds a principal, if it is new.
    pub(crate) fn add_principal(
        &mut self,
        principal: &str,
        owner: &str,
        roles: &[String],
        create_time: i64,
    ) {
        self.push(
            "INSERT INTO principals (principal, owner, roles, create_time) VALUES (?, ?, ?, ?)
             ON CONFLICT (principal) DO NOTHING",
            [
                principal.into(),
                owner.into(),
                json(roles).into(),
                create_time.into(),
            ],
        );
    }

    /// Gives a principal these roles and no others.
    pub(crate) fn set_roles(&mut self, principal: &str, roles: &[String]) {
        self.push(
            "UPDATE principals SET roles = ? WHERE principal = ?",
            [json(roles).into(), principal.into()],
        );
    }

    /// Locks a principal, or takes its lock away.
    pub(crate) fn set_principal_lock(&mut self, principal: &str, lock: Option<&LockRow>) {
        self.push(
            "UPDATE principals SET lock_time = ?, lock_author = ?, lock_note = ? WHERE principal = ?",
            [
                lock.map(|lock| lock.time).into(),
                lock.map(|lock| lock.author.as_str()).into(),
                lock.map(|lock| lock.note.as_str()).into(),
                principal.into(),
            ],
        );
    }

    /// Notes when principals last called. `used` is a JSON object of times by principal.
    pub(crate) fn set_principals_used(&mut self, used: &str) {
        self.push(
            "UPDATE principals SET last_used_time = used.value
             FROM json_each(?) AS used WHERE principals.principal = used.key",
            [used.into()],
        );
    }

    /// Suspends a principal, or with `None` no longer.
    pub(crate) fn set_suspended(&mut self, principal: &str, suspended: Option<(i64, &str)>) {
        let (since, cause) = suspended.unzip();
        self.push(
            "UPDATE principals SET suspend_time = ?, suspend_cause = ? WHERE principal = ?",
            [
                since.into(),
                cause.unwrap_or_default().into(),
                principal.into(),
            ],
        );
    }
}

pub(super) fn json(texts: &[String]) -> String {
    serde_json::to_string(texts).expect("a list of texts is JSON")
}
