//! Restores in the ledger: generations, who has uploaded since, which tasks are held.

use std::collections::HashSet;

use muster_proto::ids::{HostId, JobId, TaskId};
use serde_json::json;
use sqlx::{Connection as _, Row as _, SqliteConnection, SqlitePool};

use super::{Batch, StoreError, audit, jobs::parsed, random_name};
use crate::model::State;

const BEGIN: &str = "UPDATE ledger SET generation = ?, backup_time = NULL";

const REMEMBER: &str =
    "INSERT INTO restores (generation, replaced, time, cause) VALUES (?, ?, ?, ?)";

// Since when a task waits is told by its state time, unless it waits for an answer.
const HOLD: &str = "UPDATE tasks SET hold_time = ?, released = 0,
         state_time = CASE WHEN offered_boot IS NULL THEN ? ELSE state_time END
     WHERE state IN ('pending', 'awaiting_approval') AND create_time < ?";

/// Begins a generation if the ledger is the copy of a backup. Returns the generation and the position that stand then.
pub(super) async fn begin_if_copied(
    connection: &mut SqliteConnection,
    generation: String,
    position: i64,
    now: i64,
) -> Result<(String, i64), sqlx::Error> {
    let copied: Option<i64> = sqlx::query_scalar("SELECT backup_time FROM ledger")
        .fetch_one(&mut *connection)
        .await?;
    let Some(copied) = copied else {
        return Ok((generation, position));
    };
    let next = random_name();
    let age = (now - copied).max(0) / 1000;
    let cause = format!("restored from a backup that was {age} s old");
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(BEGIN)
        .bind(&next)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(REMEMBER)
        .bind(&next)
        .bind(&generation)
        .bind(now)
        .bind(&cause)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(HOLD)
        .bind(now)
        .bind(now)
        .bind(i64::MAX)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("UPDATE ledger SET position = ?")
        .bind(position + 1)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok((next, position + 1))
}

/// Begins a generation in a ledger that is in use. Tasks that were created before `before` and are pending are held.
pub(crate) fn begin(
    generation: &str,
    replaced: &str,
    before: i64,
    time: i64,
    cause: &str,
) -> Batch {
    let mut batch = Batch::new();
    batch.record(audit::restored(replaced, generation).text());
    batch
        .with(BEGIN, [generation.into()])
        .with(
            REMEMBER,
            [
                generation.into(),
                replaced.into(),
                time.into(),
                cause.into(),
            ],
        )
        .with(HOLD, [time.into(), time.into(), before.into()])
}

/// What the ledger says of restores.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// The generation that stands began with a restore.
    pub(crate) restored: bool,
    /// Every generation there has been, but the one that stands.
    pub(crate) earlier: HashSet<String>,
    /// Hosts that have uploaded under the one that stands.
    pub(crate) uploaded: HashSet<HostId>,
}

/// Reads what the ledger says of restores. `generation`: the one that stands.
pub(crate) async fn load(readers: &SqlitePool, generation: &str) -> Result<Remembered, StoreError> {
    let mut remembered = Remembered::default();
    let rows = sqlx::query("SELECT generation, replaced FROM restores")
        .fetch_all(readers)
        .await?;
    for row in rows {
        let began: String = row.try_get(0)?;
        if began == generation {
            remembered.restored = true;
        } else {
            remembered.earlier.insert(began);
        }
        remembered.earlier.insert(row.try_get(1)?);
    }
    let rows = sqlx::query("SELECT host_id FROM uploads WHERE generation = ?")
        .bind(generation)
        .fetch_all(readers)
        .await?;
    remembered.uploaded = rows
        .iter()
        .map(|row| parsed(row, 0))
        .collect::<Result<_, sqlx::Error>>()?;
    Ok(remembered)
}

/// Notes that a host has uploaded all that it knows.
pub(crate) fn uploaded(generation: &str, host: HostId, time: i64) -> Batch {
    Batch::new().with(
        "INSERT INTO uploads (generation, host_id, time) VALUES (?, ?, ?)
         ON CONFLICT (generation, host_id) DO NOTHING",
        [generation.into(), host.to_string().into(), time.into()],
    )
}

/// Releases the held tasks of these jobs.
pub(crate) fn release(jobs: &[JobId], time: i64) -> Batch {
    let ids: Vec<_> = jobs.iter().map(ToString::to_string).collect();
    Batch::new().with(
        "UPDATE tasks SET released = 1, state_time = ?
         WHERE hold_time IS NOT NULL AND released = 0 AND state IN ('pending', 'awaiting_approval')
             AND job_id IN (SELECT value FROM json_each(?))",
        [time.into(), json!(ids).to_string().into()],
    )
}

/// What the ledger knows of a task that a host names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The host of the task.
    pub(crate) host_id: HostId,
    /// The task's state.
    pub(crate) state: State,
    /// Nothing will be added to its output.
    pub(crate) output_complete: bool,
    /// A result came after it was declared lost.
    pub(crate) late: bool,
}

/// Reads where tasks stand; those that are not known are left out.
pub(crate) async fn standing(
    readers: &SqlitePool,
    tasks: &[TaskId],
) -> Result<Vec<(TaskId, Standing)>, StoreError> {
    let ids: Vec<_> = tasks.iter().map(ToString::to_string).collect();
    let rows = sqlx::query(
        "SELECT task_id, host_id, state, output_complete, late_result <> '' FROM tasks
         WHERE task_id IN (SELECT value FROM json_each(?))",
    )
    .bind(json!(ids).to_string())
    .fetch_all(readers)
    .await?;
    let rows = rows.iter().map(|row| {
        let standing = Standing {
            host_id: parsed(row, 1)?,
            state: State::from_name(row.try_get(2)?).ok_or_else(|| {
                sqlx::Error::Decode("a state that this version does not know".into())
            })?,
            output_complete: row.try_get(3)?,
            late: row.try_get(4)?,
        };
        Ok((parsed(row, 0)?, standing))
    });
    Ok(rows.collect::<Result<_, sqlx::Error>>()?)
}

/// How many restores there were, and how many tasks are held.
#[cfg(test)]
pub(crate) async fn count(readers: &SqlitePool) -> Result<(i64, i64), StoreError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM restores),
             (SELECT count(*) FROM tasks WHERE hold_time IS NOT NULL AND released = 0)",
    )
    .fetch_one(readers)
    .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
