//! Jobs and tasks in the ledger: rows in, rows out.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use muster_proto::{
    ids::{HostId, JobId, TaskId},
    v1::Reason,
};
use serde_json::{Value as Json, json};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqlitePool, sqlite::SqliteRow};

use super::{Batch, StoreError, Value};
use crate::{
    jobs::{Counts, Fence, Job, JobState, Order, State, Summary, Task},
    output::OutputSize,
};

const JOB_COLUMNS: &str = "job_id, principal, request_id, request_digest, selector, action, create_time, \
     start_deadline_time, lost_after, cancel_time, cancelled_by, note, state, start_time, end_time";

const TASK_COLUMNS: &str = "task_id, host_id, host_name, state, reason, message, state_time, offered_boot, \
     offered_journal, start_time, end_time, exit_code, signal, run_time, output_end, output_complete, \
     stdout_bytes, stderr_bytes, dropped_bytes, last_sequence, cancel_time, cancel_grace, late_result, \
     job_id, create_time, ordinal";

/// Writes a new job and its tasks.
pub(crate) fn insert(job: &Job) -> Batch {
    let Summary {
        order,
        state,
        start_time,
        end_time,
        cancel,
        note,
        ..
    } = job.summary();
    let (cancel_time, cancelled_by) = cancel.unzip();
    let job_id: Arc<str> = order.job_id.to_string().into();
    let tasks = job.tasks(|_| true);
    let rows = Json::Array(tasks.iter().map(|(_, task)| task_row(task)).collect());
    Batch::new()
        .with(
            "INSERT INTO jobs (job_id, principal, request_id, request_digest, selector, action, create_time,
                 start_deadline_time, lost_after, cancel_time, cancelled_by, note, state, start_time, end_time)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                Arc::clone(&job_id).into(),
                Arc::clone(&order.principal).into(),
                Arc::clone(&order.request_id).into(),
                order.request_digest.as_slice().into(),
                Arc::clone(&order.selector).into(),
                order.action.as_ref().into(),
                order.create_time.into(),
                order.start_deadline_time.into(),
                order.lost_after.into(),
                cancel_time.into(),
                cancelled_by.map_or_else(|| "".into(), Value::from),
                note.into(),
                state.name().into(),
                start_time.into(),
                end_time.into(),
            ],
        )
        .with(
            "INSERT INTO tasks (task_id, job_id, ordinal, create_time, host_id, host_name, state, state_time,
                 offered_boot, offered_journal)
             SELECT value ->> 0, ?, key, ?, value ->> 1, value ->> 2, value ->> 3, value ->> 6,
                 value ->> 7, value ->> 8
             FROM json_each(?)",
            [
                Value::from(job_id),
                order.create_time.into(),
                rows.to_string().into(),
            ],
        )
}

/// Writes a task more of a job, at its end.
pub(crate) fn insert_task(order: &Order, ordinal: u32, task: &Task) -> Batch {
    Batch::new().with(
        "INSERT INTO tasks (task_id, job_id, ordinal, create_time, host_id, host_name, state, state_time,
             offered_boot, offered_journal)
         SELECT value ->> 0, ?, ?, ?, value ->> 1, value ->> 2, value ->> 3, value ->> 6,
             value ->> 7, value ->> 8
         FROM json_each(?)",
        [
            order.job_id.to_string().into(),
            ordinal.into(),
            order.create_time.into(),
            Value::from(Json::Array(vec![task_row(task)]).to_string()),
        ],
    )
}

/// Writes jobs and tasks as they stand now.
pub(crate) fn update(jobs: &[Summary], tasks: &[Task]) -> Batch {
    let mut batch = Batch::new();
    if !tasks.is_empty() {
        let rows = Json::Array(tasks.iter().map(task_row).collect());
        batch.push(
            "UPDATE tasks SET
                 state = new.state, reason = new.reason, message = new.message, state_time = new.state_time,
                 offered_boot = new.offered_boot, offered_journal = new.offered_journal,
                 start_time = new.start_time, end_time = new.end_time, exit_code = new.exit_code,
                 signal = new.signal, run_time = new.run_time, output_end = new.output_end,
                 output_complete = new.output_complete, stdout_bytes = new.stdout_bytes,
                 stderr_bytes = new.stderr_bytes, dropped_bytes = new.dropped_bytes,
                 last_sequence = new.last_sequence, cancel_time = new.cancel_time,
                 cancel_grace = new.cancel_grace, late_result = new.late_result
             FROM (SELECT
                 value ->> 0 AS task_id, value ->> 3 AS state, value ->> 4 AS reason, value ->> 5 AS message,
                 value ->> 6 AS state_time, value ->> 7 AS offered_boot, value ->> 8 AS offered_journal,
                 value ->> 9 AS start_time, value ->> 10 AS end_time, value ->> 11 AS exit_code,
                 value ->> 12 AS signal, value ->> 13 AS run_time, value ->> 14 AS output_end,
                 value ->> 15 AS output_complete, value ->> 16 AS stdout_bytes, value ->> 17 AS stderr_bytes,
                 value ->> 18 AS dropped_bytes, value ->> 19 AS last_sequence, value ->> 20 AS cancel_time,
                 value ->> 21 AS cancel_grace, value ->> 22 AS late_result
                 FROM json_each(?)) AS new
             WHERE tasks.task_id = new.task_id",
            [rows.to_string().into()],
        );
    }
    if !jobs.is_empty() {
        let rows = Json::Array(jobs.iter().map(job_row).collect());
        batch.push(
            "UPDATE jobs SET
                 state = new.state, start_time = new.start_time, end_time = new.end_time,
                 cancel_time = new.cancel_time, cancelled_by = new.cancelled_by
             FROM (SELECT
                 value ->> 0 AS job_id, value ->> 1 AS state, value ->> 2 AS start_time,
                 value ->> 3 AS end_time, value ->> 4 AS cancel_time, value ->> 5 AS cancelled_by
                 FROM json_each(?)) AS new
             WHERE jobs.job_id = new.job_id",
            [rows.to_string().into()],
        );
    }
    batch
}

fn job_row(job: &Summary) -> Json {
    let (cancel_time, by) = job.cancel.as_ref().map(|(time, by)| (*time, &**by)).unzip();
    json!([
        job.order.job_id.to_string(),
        job.state.name(),
        job.start_time,
        job.end_time,
        cancel_time,
        by.unwrap_or("")
    ])
}

/// A task in the order of `TASK_COLUMNS`.
fn task_row(task: &Task) -> Json {
    let (boot, journal) = task
        .offered
        .as_ref()
        .map(|fence| (&*fence.boot_id, &*fence.journal_id))
        .unzip();
    json!([
        task.task_id.to_string(),
        task.host_id.to_string(),
        &*task.host_name,
        task.state.name(),
        task.reason as i32,
        task.message,
        task.state_time,
        boot,
        journal,
        task.start_time,
        task.end_time,
        task.exit_code,
        task.signal,
        task.run_time,
        task.output_end,
        i32::from(task.output_complete),
        task.output_size.stdout_bytes,
        task.output_size.stderr_bytes,
        task.output_size.dropped_bytes,
        task.output_size.last_sequence,
        task.cancel_time,
        task.cancel_grace,
        task.late_result
    ])
}

fn read_task(row: &SqliteRow) -> Result<Task, sqlx::Error> {
    let offered: Option<(String, String)> = row
        .try_get::<Option<String>, _>(7)?
        .zip(row.try_get::<Option<String>, _>(8)?);
    Ok(Task {
        task_id: parsed(row, 0)?,
        host_id: parsed(row, 1)?,
        host_name: row.try_get::<String, _>(2)?.into(),
        state: State::from_name(row.try_get(3)?)
            .ok_or_else(|| sqlx::Error::Decode("a state that this version does not know".into()))?,
        reason: Reason::try_from(row.try_get::<i32, _>(4)?).unwrap_or(Reason::Unspecified),
        message: row.try_get(5)?,
        state_time: row.try_get(6)?,
        offered: offered.map(|(boot_id, journal_id)| Fence {
            boot_id: boot_id.into(),
            journal_id: journal_id.into(),
        }),
        offer_epoch: 0,
        start_time: row.try_get(9)?,
        end_time: row.try_get(10)?,
        exit_code: row.try_get(11)?,
        signal: row.try_get(12)?,
        run_time: row.try_get(13)?,
        output_end: row.try_get(14)?,
        output_complete: row.try_get(15)?,
        output_size: OutputSize {
            stdout_bytes: row.try_get(16)?,
            stderr_bytes: row.try_get(17)?,
            dropped_bytes: row.try_get(18)?,
            last_sequence: row.try_get(19)?,
        },
        cancel_time: row.try_get(20)?,
        cancel_grace: row.try_get(21)?,
        late_result: row.try_get(22)?,
    })
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
    let digest: Vec<u8> = row.try_get(3)?;
    let state: &str = row.try_get(12)?;
    let cancelled_by: String = row.try_get(10)?;
    Ok(JobRow {
        order: Arc::new(Order {
            job_id: parsed(row, 0)?,
            principal: row.try_get::<String, _>(1)?.into(),
            request_id: row.try_get::<String, _>(2)?.into(),
            request_digest: digest
                .try_into()
                .map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))?,
            selector: row.try_get::<String, _>(4)?.into(),
            action: Bytes::from(row.try_get::<Vec<u8>, _>(5)?),
            create_time: row.try_get(6)?,
            start_deadline_time: row.try_get(7)?,
            lost_after: row.try_get(8)?,
        }),
        cancel: row
            .try_get::<Option<i64>, _>(9)?
            .map(|time| (time, cancelled_by.into())),
        note: row.try_get::<String, _>(11)?.into(),
        state: JobState::ALL
            .into_iter()
            .find(|(_, name)| *name == state)
            .map(|(state, _)| state)
            .ok_or_else(|| sqlx::Error::Decode("a state that this version does not know".into()))?,
        start_time: row.try_get(13)?,
        end_time: row.try_get(14)?,
    })
}

fn parsed<T: std::str::FromStr>(row: &SqliteRow, column: usize) -> Result<T, sqlx::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Reads every job that is not final, with all its tasks.
pub(crate) async fn load_open(readers: &SqlitePool) -> Result<Vec<Job>, StoreError> {
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
pub(crate) async fn load_one(readers: &SqlitePool, id: JobId) -> Result<Option<Job>, StoreError> {
    Ok(load(readers, &[id.to_string()]).await?.pop())
}

async fn load(readers: &SqlitePool, ids: &[String]) -> Result<Vec<Job>, StoreError> {
    let ids = json!(ids).to_string();
    let mut query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {TASK_COLUMNS} FROM tasks WHERE job_id IN (SELECT value FROM json_each("
    ));
    query.push_bind(ids.clone()).push(")) ORDER BY ordinal");
    let mut tasks: HashMap<String, Vec<Task>> = HashMap::new();
    for row in query.build().fetch_all(readers).await? {
        tasks
            .entry(row.try_get("job_id")?)
            .or_default()
            .push(read_task(&row)?);
    }
    let mut query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {JOB_COLUMNS} FROM jobs WHERE job_id IN (SELECT value FROM json_each("
    ));
    query.push_bind(ids).push("))");
    let mut jobs = Vec::new();
    for row in query.build().fetch_all(readers).await? {
        let JobRow {
            order,
            cancel,
            note,
            ..
        } = read_job(&row)?;
        let own = tasks.remove(row.try_get::<&str, _>(0)?).unwrap_or_default();
        jobs.push(Job::new(order, own, cancel, note));
    }
    Ok(jobs)
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

/// Which jobs to list.
#[derive(Debug, Default)]
pub(crate) struct JobFilter {
    /// This one; `None` keeps all.
    pub(crate) job: Option<JobId>,
    /// In one of these states; empty keeps all.
    pub(crate) states: Vec<JobState>,
    /// With a task on one of these hosts; `None` keeps all.
    pub(crate) hosts: Option<Vec<HostId>>,
    /// Of this principal; empty keeps all.
    pub(crate) principal: String,
    /// Created at or after.
    pub(crate) from: Option<i64>,
    /// Created before.
    pub(crate) to: Option<i64>,
}

/// Reads a page of jobs, newest first.
pub(crate) async fn list(
    readers: &SqlitePool,
    filter: &JobFilter,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<Summary>, StoreError> {
    let mut query =
        QueryBuilder::<Sqlite>::new(format!("SELECT {JOB_COLUMNS} FROM jobs WHERE TRUE"));
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
        "SELECT job_id, state, count(*) FROM tasks
         WHERE job_id IN (SELECT value FROM json_each(?)) GROUP BY job_id, state",
    )
    .bind(texts(ids))
    .fetch_all(readers)
    .await?;
    let mut counts: HashMap<JobId, Counts> = HashMap::new();
    for row in rows {
        if let Some(state) = State::from_name(row.try_get(1)?) {
            counts
                .entry(parsed(&row, 0)?)
                .or_default()
                .add(state, row.try_get(2)?);
        }
    }
    Ok(counts)
}

/// Which tasks to list.
#[derive(Debug, Default)]
pub(crate) struct TaskFilter {
    /// This one; `None` keeps all.
    pub(crate) task: Option<TaskId>,
    /// Of this job; `None` looks across jobs.
    pub(crate) job: Option<JobId>,
    /// In one of these states; empty keeps all.
    pub(crate) states: Vec<State>,
    /// On one of these hosts; `None` keeps all.
    pub(crate) hosts: Option<Vec<HostId>>,
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
    let mut query =
        QueryBuilder::<Sqlite>::new(format!("SELECT {TASK_COLUMNS} FROM tasks WHERE TRUE"));
    if !filter.states.is_empty() {
        let names: Vec<_> = filter.states.iter().map(|state| state.name()).collect();
        query.push(" AND state IN (SELECT value FROM json_each(");
        query.push_bind(json!(names).to_string()).push("))");
    }
    if let Some(hosts) = &filter.hosts {
        query.push(" AND host_id IN (SELECT value FROM json_each(");
        query.push_bind(texts(hosts)).push("))");
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
            job_id: parsed(row, 23)?,
            create_time: row.try_get(24)?,
            ordinal: row.try_get(25)?,
            task: read_task(row)?,
        })
    });
    Ok(rows.collect::<Result<_, sqlx::Error>>()?)
}

/// Finds final jobs that ended before `time`, at most `limit`, with their tasks.
pub(crate) async fn old_jobs(
    readers: &SqlitePool,
    time: i64,
    limit: i64,
) -> Result<Vec<(String, Vec<String>)>, StoreError> {
    let rows = sqlx::query(
        "SELECT job_id, (SELECT json_group_array(task_id) FROM tasks WHERE tasks.job_id = jobs.job_id)
         FROM jobs WHERE end_time < ? AND state NOT IN ('pending', 'running') ORDER BY end_time LIMIT ?",
    )
    .bind(time)
    .bind(limit)
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let tasks = serde_json::from_str(row.try_get(1)?).unwrap_or_default();
            Ok((row.try_get(0)?, tasks))
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
                boot_id: row.try_get::<String, _>(1)?.into(),
                journal_id: row.try_get::<String, _>(2)?.into(),
            },
            position: row.try_get(3)?,
        };
        Ok((parsed(row, 0)?, heard))
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
