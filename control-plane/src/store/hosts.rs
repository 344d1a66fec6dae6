//! Hosts, their instructions, and what the ledger knows of both.

use std::collections::HashMap;

use muster_proto::ids::HostId;
use sqlx::{Row as _, sqlite::SqliteRow};

use super::{Batch, Store, StoreError, Value};
use crate::model::{Facts, Instruction, Labels, Lock, Mode, NewHost};

/// A host as the ledger has it, and when it was last heard.
pub(crate) struct StoredHost {
    pub(crate) host_id: HostId,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) facts: Option<Facts>,
    pub(crate) instruction: Option<Instruction>,
    pub(crate) create_time: i64,
    pub(crate) last_heard_time: Option<i64>,
    pub(crate) certificate_expire_time: Option<i64>,
    pub(crate) lock: Option<Lock>,
    pub(crate) identity_conflict: String,
    pub(crate) mode_limit: Option<Mode>,
    pub(crate) mode_note: String,
}

/// Everything of a host that can change, except its instruction.
pub(crate) struct HostChange<'a> {
    pub(crate) host_id: HostId,
    pub(crate) name: &'a str,
    pub(crate) labels: &'a Labels,
    pub(crate) facts: Option<&'a Facts>,
    pub(crate) last_heard_time: Option<i64>,
    pub(crate) certificate_expire_time: Option<i64>,
    pub(crate) lock: Option<&'a Lock>,
    pub(crate) identity_conflict: &'a str,
    pub(crate) mode_limit: Option<Mode>,
    pub(crate) mode_note: &'a str,
}

impl Store {
    /// Every host that was not removed.
    pub(crate) async fn hosts(&self) -> Result<Vec<StoredHost>, StoreError> {
        let mut instructions = self.newest_instructions().await?;
        sqlx::query("SELECT * FROM hosts WHERE remove_time IS NULL")
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(|row| {
                let mut host = stored_host(row)?;
                host.instruction = instructions.remove(&host.host_id.to_string());
                Ok(host)
            })
            .collect()
    }

    async fn newest_instructions(&self) -> Result<HashMap<String, Instruction>, StoreError> {
        sqlx::query(
            "SELECT host_id, max(version) AS version, text, author, create_time
             FROM instructions GROUP BY host_id",
        )
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(|row| Ok((row.try_get("host_id")?, instruction(row)?)))
        .collect()
    }

    /// Whether this id was given to a host that was removed since.
    pub(crate) async fn host_was_removed(&self, host: HostId) -> Result<bool, StoreError> {
        let removed = sqlx::query_scalar(
            "SELECT count(*) FROM hosts WHERE host_id = ? AND remove_time IS NOT NULL",
        )
        .bind(host.to_string())
        .fetch_one(&self.readers)
        .await?;
        let removed: i64 = removed;
        Ok(removed > 0)
    }

    /// Versions of an instruction below `before`, newest first.
    pub(crate) async fn instructions(
        &self,
        host: HostId,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Instruction>, StoreError> {
        sqlx::query(
            "SELECT version, text, author, create_time FROM instructions
             WHERE host_id = ? AND version < ? ORDER BY version DESC LIMIT ?",
        )
        .bind(host.to_string())
        .bind(before)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(instruction)
        .collect()
    }
}

fn stored_host(row: &SqliteRow) -> Result<StoredHost, StoreError> {
    let host_id: String = row.try_get("host_id")?;
    let labels: String = row.try_get("labels")?;
    let facts: Option<String> = row.try_get("facts")?;
    let lock_time: Option<i64> = row.try_get("lock_time")?;
    let mode_limit: Option<String> = row.try_get("mode_limit")?;
    let lock = match lock_time {
        None => None,
        Some(create_time) => Some(Lock {
            create_time,
            author: row
                .try_get::<Option<String>, _>("lock_author")?
                .unwrap_or_default(),
            note: row
                .try_get::<Option<String>, _>("lock_note")?
                .unwrap_or_default(),
        }),
    };
    Ok(StoredHost {
        host_id: host_id.parse().map_err(broken)?,
        name: row.try_get("name")?,
        labels: serde_json::from_str(&labels).map_err(broken)?,
        facts: facts
            .map(|facts| serde_json::from_str(&facts))
            .transpose()
            .map_err(broken)?,
        instruction: None,
        create_time: row.try_get("create_time")?,
        last_heard_time: row.try_get("last_heard_time")?,
        certificate_expire_time: row.try_get("certificate_expire_time")?,
        lock,
        identity_conflict: row.try_get("identity_conflict")?,
        mode_limit: mode_limit
            .map(|mode| mode.parse())
            .transpose()
            .map_err(broken)?,
        mode_note: row.try_get("mode_note")?,
    })
}

fn instruction(row: &SqliteRow) -> Result<Instruction, StoreError> {
    Ok(Instruction {
        version: row.try_get("version")?,
        text: row.try_get("text")?,
        author: row.try_get("author")?,
        create_time: row.try_get("create_time")?,
    })
}

fn broken(error: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(format!("a host cannot be read: {error}").into())
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_string(value)
        .expect("maps and texts have a JSON form")
        .into()
}

impl Batch {
    /// Adds a host. Fails as a conflict if the name is taken.
    pub(crate) fn add_host(&mut self, host_id: HostId, host: &NewHost, create_time: i64) {
        self.push(
            "INSERT INTO hosts (host_id, name, labels, create_time, certificate_expire_time)
             VALUES (?, ?, ?, ?, ?)",
            [
                host_id.to_string().into(),
                host.name.clone().into(),
                json(&host.labels),
                create_time.into(),
                host.certificate_expire_time.into(),
            ],
        );
    }

    /// Writes everything of a host that can change, except its instruction.
    pub(crate) fn update_host(&mut self, host: &HostChange<'_>) {
        let lock = host.lock;
        self.push(
            "UPDATE hosts SET name = ?, labels = ?, facts = ?, last_heard_time = ?,
             certificate_expire_time = ?, lock_time = ?, lock_author = ?, lock_note = ?,
             identity_conflict = ?, mode_limit = ?, mode_note = ? WHERE host_id = ?",
            [
                host.name.into(),
                json(host.labels),
                host.facts.map_or(Value::Null, json),
                host.last_heard_time.into(),
                host.certificate_expire_time.into(),
                lock.map(|lock| lock.create_time).into(),
                lock.map(|lock| lock.author.as_str()).into(),
                lock.map(|lock| lock.note.as_str()).into(),
                host.identity_conflict.into(),
                host.mode_limit.map(Mode::text).into(),
                host.mode_note.into(),
                host.host_id.to_string().into(),
            ],
        );
    }

    /// Writes when hosts were last heard, all in one statement.
    pub(crate) fn set_last_heard(&mut self, heard: &[(String, i64)]) {
        self.push(
            "UPDATE hosts SET last_heard_time = one.value ->> 1
             FROM json_each(?) AS one WHERE hosts.host_id = one.value ->> 0",
            [json(&heard)],
        );
    }

    /// Retires a host's id. Its row stays.
    pub(crate) fn remove_host(&mut self, host_id: HostId, time: i64) {
        self.push(
            "UPDATE hosts SET remove_time = ? WHERE host_id = ?",
            [time.into(), host_id.to_string().into()],
        );
    }

    /// Adds a version of an instruction.
    pub(crate) fn add_instruction(&mut self, host_id: HostId, instruction: &Instruction) {
        self.push(
            "INSERT INTO instructions (host_id, version, text, author, create_time)
             VALUES (?, ?, ?, ?, ?)",
            [
                host_id.to_string().into(),
                instruction.version.into(),
                instruction.text.clone().into(),
                instruction.author.clone().into(),
                instruction.create_time.into(),
            ],
        );
    }
}
