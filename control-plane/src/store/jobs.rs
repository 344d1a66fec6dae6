//! Jobs and tasks in the ledger: rows in, rows out.

mod put;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_proto::{
    ids::{HostId, JobId, TaskId},
    v1::Reason,
};
use prost::Message as _;
use serde_json::{Value as Json, json};
use sqlx::{
    ColumnIndex, QueryBuilder, Row as _, Sqlite, SqliteExecutor, SqlitePool, sqlite::SqliteRow,
};

pub(crate) use self::put::{Accepted, Placed, put, put_missing};
use super::{Batch, StoreError};
use crate::model::{
    Counts, Fence, Hold, JobState, Order, OutputSize, State, Summary, Task,
    order::record::{OrderRecord, SecretsRecord},
};

fn read_task(row: &SqliteRow) -> Result<Task, sqlx::Error> {
    let offered: Option<(String, String)> = row
        .try_get::<Option<String>, _>("offered_boot")?
        .zip(row.try_get::<Option<String>, _>("offered_journal")?);
    let state = State::from_name(row.try_get("state")?).ok_or_else(unknown_state)?;
    let reason = Reason::try_from(row.try_get::<i32, _>("reason")?);
    Ok(Task {
        task_id: parsed(row, "task_id")?,
        host_id: parsed(row, "host_id")?,
        host_name: row.try_get::<String, _>("host_name")?.into(),
        end_recorded: state.is_final(),
        receipt: bytes(row, "receipt")?,
        confinement: bytes(row, "confinement")?,
        result: bytes(row, "result")?,
        doubt: row.try_get("doubt")?,
        state,
        reason: reason.unwrap_or(Reason::Unspecified),
        message: row.try_get("message")?,
        state_time: row.try_get("state_time")?,
        offered: offered.map(|(boot_id, journal_id)| Fence {
            boot_id: boot_id.into(),
            journal_id: journal_id.into(),
        }),
        offer_epoch: 0,
        start_time: row.try_get("start_time")?,
        end_time: row.try_get("end_time")?,
        exit_code: row.try_get("exit_code")?,
        signal: row.try_get("signal")?,
        run_time: row.try_get("run_time")?,
        output_end: row.try_get("output_end")?,
        output_complete: row.try_get("output_complete")?,
        output_size: OutputSize {
            stdout_bytes: row.try_get("stdout_bytes")?,
            stderr_bytes: row.try_get("stderr_bytes")?,
            dropped_bytes: row.try_get("dropped_bytes")?,
            last_sequence: row.try_get("last_sequence")?,
        },
        cancel_time: row.try_get("cancel_time")?,
        cancel_grace: row.try_get("cancel_grace")?,
        late_result: row.try_get("late_result")?,
        // Written where tasks are held and released, and nowhere else.
        hold: match (
            row.try_get::<Option<i64>, _>("hold_time")?,
            row.try_get("released")?,
        ) {
            (None, _) => Hold::None,
            (Some(_), false) => Hold::Held,
            (Some(_), true) => Hold::Released,
        },
    })
}

fn unknown_state() -> sqlx::Error {
    sqlx::Error::Decode("a state that this version does not know".into())
}

/// Bytes that may be missing; empty then.
fn bytes(row: &SqliteRow, column: &str) -> Result<Bytes, sqlx::Error> {
    let bytes = row.try_get::<Option<Vec<u8>>, _>(column)?;
    Ok(bytes.map_or_else(Bytes::new, Bytes::from))
}

struct JobRow {
    order: Arc<Order>,
    state: JobState,
    start_time: Option<i64>,
    end_time: Option<i64>,
    cancel: Option<(i64, Arc<str>)>,
    note: Arc<str>,
}

fn read_job(row: &SqliteRow) -> Result<JobRow, sqlx::Error> {
    let state: &str = row.try_get("state")?;
    let state = JobState::ALL.into_iter().find(|(_, name)| *name == state);
    let cancelled_by: String = row.try_get("cancelled_by")?;
    Ok(JobRow {
        order: Arc::new(read_order(row)?),
        cancel: row
            .try_get::<Option<i64>, _>("cancel_time")?
            .map(|time| (time, cancelled_by.into())),
        note: row.try_get::<String, _>("note")?.into(),
        state: state.map(|(state, _)| state).ok_or_else(unknown_state)?,
        start_time: row.try_get("start_time")?,
        end_time: row.try_get("end_time")?,
    })
}

fn read_order(row: &SqliteRow) -> Result<Order, sqlx::Error> {
    let broken = |cause: String| {
        let id = row.try_get::<&str, _>("job_id").unwrap_or_default();
        sqlx::Error::Decode(format!("the order of job {id}: {cause}").into())
    };
    let record = row
        .try_get::<Option<Vec<u8>>, _>("record")?
        .ok_or_else(|| broken("it is missing".to_owned()))?;
    let record = OrderRecord::decode(Bytes::from(record));
    let record = record.map_err(|error| broken(error.to_string()))?;
    let secrets = SecretsRecord::decode(bytes(row, "secrets")?);
    let secrets = secrets.map_err(|error| broken(error.to_string()))?;
    let order = record.read(secrets.values);
    Ok(Order {
        // An approval sets it anew.
        start_deadline_time: row.try_get("start_deadline_time")?,
        ..order.map_err(|error| broken(error.to_string()))?
    })
}

pub(super) fn parsed<T: std::str::FromStr>(
    row: &SqliteRow,
    column: impl ColumnIndex<SqliteRow>,
) -> Result<T, sqlx::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// A job as the ledger has it.
pub(crate) struct StoredJob {
    /// What was asked for.
    pub(crate) order: Arc<Order>,
    /// In the order of their ordinals.
    pub(crate) tasks: Vec<Task>,
    /// When cancelling was first asked for, and by whom.
    pub(crate) cancel: Option<(i64, Arc<str>)>,
    /// What a reader should know.
    pub(crate) note: Arc<str>,
}

/// Reads every job that is not final, with all its tasks.
pub(crate) async fn load_open(readers: &SqlitePool) -> Result<Vec<StoredJob>, StoreError> {
    // A final job whose host still owes output counts as open.
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT job_id FROM jobs WHERE state IN ('pending', 'running')
         UNION SELECT job_id FROM tasks
         WHERE output_complete = 0 AND state NOT IN ('pending', 'running', 'awaiting_approval', 'lost')",
    )
    .fetch_all(readers)
    .await?;
    load(readers, &ids).await
}

/// Reads one job with all its tasks.
pub(crate) async fn load_one(
    readers: &SqlitePool,
    id: JobId,
) -> Result<Option<StoredJob>, StoreError> {
    Ok(load(readers, &[id.to_string()]).await?.pop())
}

async fn load(readers: &SqlitePool, ids: &[String]) -> Result<Vec<StoredJob>, StoreError> {
    let ids = json!(ids).to_string();
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT * FROM tasks WHERE job_id IN (SELECT value FROM json_each(",
    );
    query.push_bind(ids.clone()).push(")) ORDER BY ordinal");
    let mut tasks: HashMap<String, Vec<Task>> = HashMap::new();
    for row in query.build().fetch_all(readers).await? {
        tasks
            .entry(row.try_get("job_id")?)
            .or_default()
            .push(read_task(&row)?);
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT * FROM jobs WHERE job_id IN (SELECT value FROM json_each(",
    );
    query.push_bind(ids).push("))");
    let mut jobs = Vec::new();
    for row in query.build().fetch_all(readers).await? {
        let JobRow {
            order,
            cancel,
            note,
            ..
        } = read_job(&row)?;
        jobs.push(StoredJob {
            order,
            tasks: tasks
                .remove(row.try_get::<&str, _>("job_id")?)
                .unwrap_or_default(),
            cancel,
            note,
        });
    }
    Ok(jobs)
}

/// Reads what a job asked for, without its tasks.
pub(crate) async fn order_of(readers: &SqlitePool, id: JobId) -> Result<Option<Order>, StoreError> {
    let row = sqlx::query("SELECT * FROM jobs WHERE job_id = ?")
        .bind(id.to_string())
        .fetch_optional(readers)
        .await?;
    Ok(row.as_ref().map(read_order).transpose()?)
}

/// Which of these jobs the ledger has.
pub(crate) async fn existing(
    readers: impl SqliteExecutor<'_>,
    ids: &[JobId],
) -> Result<HashSet<JobId>, StoreError> {
    let found =
        sqlx::query("SELECT job_id FROM jobs WHERE job_id IN (SELECT value FROM json_each(?))")
            .bind(texts(ids))
            .fetch_all(readers)
            .await?;
    Ok(found
        .iter()
        .map(|row| parsed(row, "job_id"))
        .collect::<Result<_, _>>()?)
}

/// About how many jobs there are; no fewer, unless some were deleted.
pub(crate) async fn count_all(readers: &SqlitePool) -> Result<i64, StoreError> {
    let last: Option<i64> = sqlx::query_scalar("SELECT max(rowid) FROM jobs")
        .fetch_one(readers)
        .await?;
    Ok(last.unwrap_or(0))
}

/// Calls `take` with the id of every job.
pub(crate) async fn each_id(
    readers: &SqlitePool,
    mut take: impl FnMut(JobId),
) -> Result<(), StoreError> {
    let mut rows = sqlx::query("SELECT job_id FROM jobs").fetch(readers);
    while let Some(row) = rows.try_next().await? {
        take(parsed(&row, "job_id")?);
    }
    Ok(())
}

/// Finds the job of a task.
pub(crate) async fn job_of(
    readers: &SqlitePool,
    task_id: &str,
) -> Result<Option<JobId>, StoreError> {
    let id: Option<String> = sqlx::query_scalar("SELECT job_id FROM tasks WHERE task_id = ?")
        .bind(task_id)
        .fetch_optional(readers)
        .await?;
    Ok(id.and_then(|id| id.parse().ok()))
}

/// Where a page begins: after this time and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct After {
    /// `create_time` of the last row before.
    pub(crate) time: i64,
    /// Its id.
    pub(crate) id: String,
}

/// What somebody may see: jobs of some principals, and what ran on some hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Visible {
    /// As "operator/ada".
    pub(crate) principals: Vec<String>,
    /// Their ids.
    pub(crate) hosts: Vec<HostId>,
}

/// Which jobs to list.
#[derive(Debug, Default)]
pub(crate) struct JobFilter {
    /// This one; `None` keeps all.
    pub(crate) job: Option<JobId>,
    /// In one of these states; empty keeps all.
    pub(crate) states: Vec<JobState>,
    /// With a task on one of these hosts; `None` keeps all.
    pub(crate) hosts: Option<Vec<HostId>>,
    /// Keeps those of this principal; empty keeps all.
    pub(crate) principal: String,
    /// Created at or after.
    pub(crate) from: Option<i64>,
    /// Created before.
    pub(crate) to: Option<i64>,
    /// Only these; `None` keeps all.
    pub(crate) visible: Option<Visible>,
}

/// Reads a page of jobs, newest first.
pub(crate) async fn list(
    readers: &SqlitePool,
    filter: &JobFilter,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<Summary>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM jobs WHERE TRUE");
    if !filter.states.is_empty() {
        let names: Vec<_> = filter.states.iter().map(|state| state.name()).collect();
        query.push(" AND state IN (SELECT value FROM json_each(");
        query.push_bind(json!(names).to_string()).push("))");
    }
    if let Some(hosts) = &filter.hosts {
        query.push(" AND job_id IN (SELECT job_id FROM tasks WHERE host_id IN (SELECT value FROM json_each(");
        query.push_bind(texts(hosts)).push(")))");
    }
    if let Some(job) = filter.job {
        query.push(" AND job_id = ").push_bind(job.to_string());
    }
    if let Some(visible) = &filter.visible {
        query.push(" AND (principal IN (SELECT value FROM json_each(");
        query.push_bind(json!(visible.principals).to_string());
        query.push(")) OR job_id IN (SELECT job_id FROM tasks WHERE host_id IN (SELECT value FROM json_each(");
        query.push_bind(texts(&visible.hosts)).push("))))");
    }
    if !filter.principal.is_empty() {
        query.push(" AND principal = ").push_bind(&filter.principal);
    }
    if let Some(from) = filter.from {
        query.push(" AND create_time >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" AND create_time < ").push_bind(to);
    }
    if let Some(after) = after {
        query.push(" AND (create_time < ").push_bind(after.time);
        query.push(" OR (create_time = ").push_bind(after.time);
        query.push(" AND job_id > ").push_bind(&after.id).push("))");
    }
    query
        .push(" ORDER BY create_time DESC, job_id LIMIT ")
        .push_bind(limit);
    let rows: Vec<JobRow> = query
        .build()
        .fetch_all(readers)
        .await?
        .iter()
        .map(read_job)
        .collect::<Result<_, _>>()?;
    let ids: Vec<_> = rows.iter().map(|row| row.order.job_id).collect();
    let mut counts = count(readers, &ids).await?;
    Ok(rows
        .into_iter()
        .map(|row| Summary {
            counts: counts.remove(&row.order.job_id).unwrap_or_default(),
            order: row.order,
            state: row.state,
            start_time: row.start_time,
            end_time: row.end_time,
            cancel: row.cancel,
            note: row.note,
        })
        .collect())
}

async fn count(readers: &SqlitePool, ids: &[JobId]) -> Result<HashMap<JobId, Counts>, StoreError> {
    let rows = sqlx::query(
        "SELECT job_id, state, count(*) AS tasks FROM tasks
         WHERE job_id IN (SELECT value FROM json_each(?)) GROUP BY job_id, state",
    )
    .bind(texts(ids))
    .fetch_all(readers)
    .await?;
    let mut counts: HashMap<JobId, Counts> = HashMap::new();
    for row in rows {
        if let Some(state) = State::from_name(row.try_get("state")?) {
            counts
                .entry(parsed(&row, "job_id")?)
                .or_default()
                .add(state, row.try_get("tasks")?);
        }
    }
    Ok(counts)
}

/// Which tasks to list.
#[derive(Debug, Default)]
pub(crate) struct TaskFilter {
    /// This one; `None` keeps all.
    pub(crate) task: Option<TaskId>,
    /// Keeps those of this job; `None` looks across jobs.
    pub(crate) job: Option<JobId>,
    /// In one of these states; empty keeps all.
    pub(crate) states: Vec<State>,
    /// On one of these hosts; `None` keeps all.
    pub(crate) hosts: Option<Vec<HostId>>,
    /// Only these; `None` keeps all.
    pub(crate) visible: Option<Visible>,
}

/// A task as the ledger knows it, with its job and its place in it.
pub(crate) struct TaskRow {
    /// Its job.
    pub(crate) job_id: JobId,
    /// Its place in the job.
    pub(crate) ordinal: i64,
    /// When its job was created.
    pub(crate) create_time: i64,
    /// The task.
    pub(crate) task: Task,
}

/// Reads a page of tasks: of one job by ordinal (`after.time` is the ordinal), or newest first.
pub(crate) async fn list_tasks(
    readers: &SqlitePool,
    filter: &TaskFilter,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<TaskRow>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM tasks WHERE TRUE");
    if !filter.states.is_empty() {
        let names: Vec<_> = filter.states.iter().map(|state| state.name()).collect();
        query.push(" AND state IN (SELECT value FROM json_each(");
        query.push_bind(json!(names).to_string()).push("))");
    }
    if let Some(hosts) = &filter.hosts {
        query.push(" AND host_id IN (SELECT value FROM json_each(");
        query.push_bind(texts(hosts)).push("))");
    }
    if let Some(visible) = &filter.visible {
        query.push(" AND (host_id IN (SELECT value FROM json_each(");
        query.push_bind(texts(&visible.hosts));
        query.push(")) OR job_id IN (SELECT job_id FROM jobs WHERE principal IN (SELECT value FROM json_each(");
        query
            .push_bind(json!(visible.principals).to_string())
            .push("))))");
    }
    if let Some(task) = filter.task {
        query.push(" AND task_id = ").push_bind(task.to_string());
    }
    if let Some(job) = filter.job {
        query.push(" AND job_id = ").push_bind(job.to_string());
        if let Some(after) = after {
            query.push(" AND ordinal > ").push_bind(after.time);
        }
        query.push(" ORDER BY ordinal");
    } else {
        if let Some(after) = after {
            query.push(" AND (create_time < ").push_bind(after.time);
            query.push(" OR (create_time = ").push_bind(after.time);
            query
                .push(" AND task_id > ")
                .push_bind(&after.id)
                .push("))");
        }
        query.push(" ORDER BY create_time DESC, task_id");
    }
    query.push(" LIMIT ").push_bind(limit);
    let rows = query.build().fetch_all(readers).await?;
    let rows = rows.iter().map(|row| {
        Ok(TaskRow {
            job_id: parsed(row, "job_id")?,
            create_time: row.try_get("create_time")?,
            ordinal: row.try_get("ordinal")?,
            task: read_task(row)?,
        })
    });
    Ok(rows.collect::<Result<_, sqlx::Error>>()?)
}

/// A final job that ended long ago.
pub(crate) struct OldJob {
    pub(crate) job_id: String,
    pub(crate) end_time: i64,
    pub(crate) tasks: Vec<String>,
}

/// Finds final jobs that ended before `time`, the oldest first, at most `limit`. `after`: goes on behind this one.
pub(crate) async fn old_jobs(
    readers: &SqlitePool,
    time: i64,
    after: Option<&OldJob>,
    limit: i64,
) -> Result<Vec<OldJob>, StoreError> {
    let rows = sqlx::query(
        "SELECT job_id, end_time, (SELECT json_group_array(task_id) FROM tasks WHERE tasks.job_id = jobs.job_id) AS tasks
         FROM jobs WHERE end_time < ? AND (end_time, job_id) > (?, ?) AND state NOT IN ('pending', 'running')
         ORDER BY end_time, job_id LIMIT ?",
    )
    .bind(time)
    .bind(after.map_or(i64::MIN, |job| job.end_time))
    .bind(after.map_or("", |job| &job.job_id))
    .bind(limit)
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(OldJob {
                job_id: row.try_get("job_id")?,
                end_time: row.try_get("end_time")?,
                tasks: serde_json::from_str(row.try_get("tasks")?).unwrap_or_default(),
            })
        })
        .collect()
}

/// Deletes jobs with their tasks.
pub(crate) fn delete(jobs: &[String]) -> Batch {
    Batch::new().with(
        "DELETE FROM jobs WHERE job_id IN (SELECT value FROM json_each(?))",
        [json!(jobs).to_string().into()],
    )
}

/// What was last heard of a host's boot and journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Boot and journal.
    pub(crate) fence: Fence,
    /// The highest position ever heard of this journal.
    pub(crate) position: i64,
}

/// Reads every host's fence.
pub(crate) async fn load_fences(
    readers: &SqlitePool,
) -> Result<HashMap<HostId, Heard>, StoreError> {
    let rows = sqlx::query("SELECT host_id, boot_id, journal_id, journal_position FROM fences")
        .fetch_all(readers)
        .await?;
    let rows = rows.iter().map(|row| {
        let heard = Heard {
            fence: Fence {
                boot_id: row.try_get::<String, _>("boot_id")?.into(),
                journal_id: row.try_get::<String, _>("journal_id")?.into(),
            },
            position: row.try_get("journal_position")?,
        };
        Ok((parsed(row, "host_id")?, heard))
    });
    Ok(rows.collect::<Result<_, sqlx::Error>>()?)
}

/// Adds the fences of hosts to a batch.
pub(crate) fn write_fences(batch: &mut Batch, fences: &[(HostId, Heard)]) {
    let rows: Vec<_> = fences
        .iter()
        .map(|(host, heard)| {
            json!([
                host.to_string(),
                &*heard.fence.boot_id,
                &*heard.fence.journal_id,
                heard.position
            ])
        })
        .collect();
    batch.push(
        "INSERT INTO fences (host_id, boot_id, journal_id, journal_position)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE TRUE
         ON CONFLICT (host_id) DO UPDATE SET boot_id = excluded.boot_id,
             journal_id = excluded.journal_id, journal_position = excluded.journal_position",
        [Json::Array(rows).to_string().into()],
    );
}

fn texts<T: ToString>(ids: &[T]) -> String {
    let texts: Vec<_> = ids.iter().map(T::to_string).collect();
    json!(texts).to_string()
}
