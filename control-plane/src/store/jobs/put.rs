//! Jobs and tasks on their way into the ledger, many in one statement.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use muster_proto::ids::JobId;
use serde::Serialize;

use crate::{
    model::{EntryText, Order, Summary, Task},
    store::{Batch, Value},
};

/// A job as it stands now.
pub(crate) struct JobChange {
    /// The job without its tasks.
    pub(crate) summary: Summary,
    /// What stands in the place of its action from now on, serialized; `None` leaves it as it is.
    pub(crate) action: Option<Bytes>,
}

/// A task with its place in a job.
pub(crate) struct Placed {
    /// The job that it belongs to.
    pub(crate) order: Arc<Order>,
    /// Its place in the job.
    pub(crate) ordinal: u32,
    /// The task.
    pub(crate) task: Task,
}

/// A job as it was accepted, with what the audit log says of it.
pub(crate) struct Accepted {
    /// The job without its tasks.
    pub(crate) job: JobChange,
    /// Each of its tasks.
    pub(crate) tasks: Vec<Placed>,
    /// What the audit log says of it; `None` in records of versions without one.
    pub(crate) entry: Option<EntryText>,
}

impl Accepted {
    /// Names the job.
    pub(crate) fn job_id(&self) -> JobId {
        self.job.summary.order.job_id
    }
}

/// Writes those jobs that are not there, and says how many. What is there may have gone on since it was accepted.
pub(crate) fn put_missing(accepted: Vec<Accepted>, there: &HashSet<JobId>) -> (Batch, usize) {
    let (mut jobs, mut tasks, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for one in accepted {
        if !there.contains(&one.job_id()) {
            jobs.push(one.job);
            tasks.extend(one.tasks);
            entries.extend(one.entry);
        }
    }
    let mut batch = put(&jobs, &tasks, &[]);
    entries.into_iter().for_each(|entry| batch.record(entry));
    (batch, jobs.len())
}

/// Writes jobs and tasks as they stand now. `new` are not in the ledger, `changed` are.
pub(crate) fn put(new: &[JobChange], tasks: &[Placed], changed: &[JobChange]) -> Batch {
    let mut batch = Batch::new();
    if !new.is_empty() {
        // Written again after a try that failed and yet was committed, a job is the same one.
        batch.push(
            "INSERT INTO jobs (job_id, principal, request_id, request_digest, selector, action, create_time,
                 start_deadline_time, lost_after, note, state, start_time, end_time, cancel_time, cancelled_by,
                 confinement, reason, approval_id)
             SELECT value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3), value ->> 4, unhex(value ->> 5),
                 value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12,
                 value ->> 13, value ->> 14, unhex(value ->> 15), value ->> 16, value ->> 17
             FROM jsonb_each(?) WHERE TRUE
             ON CONFLICT (job_id) DO UPDATE SET
                 action = excluded.action, state = excluded.state, start_time = excluded.start_time, end_time = excluded.end_time,
                 cancel_time = excluded.cancel_time, cancelled_by = excluded.cancelled_by",
            [rows(new.iter().map(new_job_row))],
        );
    }
    if !tasks.is_empty() {
        // A task of a new job is new, one that was adopted may be, and any other is there.
        batch.push(
            "INSERT INTO tasks (task_id, host_id, host_name, state, reason, message, state_time, offered_boot,
                 offered_journal, start_time, end_time, exit_code, signal, run_time, output_end, output_complete,
                 stdout_bytes, stderr_bytes, dropped_bytes, last_sequence, cancel_time, cancel_grace, late_result,
                 job_id, create_time, ordinal, receipt, confinement, doubt)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
                 value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13,
                 value ->> 14, value ->> 15, value ->> 16, value ->> 17, value ->> 18, value ->> 19, value ->> 20,
                 value ->> 21, value ->> 22, value ->> 23, value ->> 24, value ->> 25, unhex(value ->> 26),
                 unhex(value ->> 27), value ->> 28
             FROM jsonb_each(?) WHERE TRUE
             ON CONFLICT (task_id) DO UPDATE SET
                 state = excluded.state, reason = excluded.reason, message = excluded.message,
                 state_time = excluded.state_time, offered_boot = excluded.offered_boot,
                 offered_journal = excluded.offered_journal, start_time = excluded.start_time,
                 end_time = excluded.end_time, exit_code = excluded.exit_code, signal = excluded.signal,
                 run_time = excluded.run_time, output_end = excluded.output_end,
                 output_complete = excluded.output_complete, stdout_bytes = excluded.stdout_bytes,
                 stderr_bytes = excluded.stderr_bytes, dropped_bytes = excluded.dropped_bytes,
                 last_sequence = excluded.last_sequence, cancel_time = excluded.cancel_time,
                 cancel_grace = excluded.cancel_grace, late_result = excluded.late_result,
                 receipt = excluded.receipt, confinement = excluded.confinement, doubt = excluded.doubt",
            [rows(tasks.iter().map(task_row))],
        );
    }
    if !changed.is_empty() {
        batch.push(
            "UPDATE jobs SET
                 state = new.state, start_time = new.start_time, end_time = new.end_time,
                 cancel_time = new.cancel_time, cancelled_by = new.cancelled_by,
                 action = coalesce(new.action, jobs.action)
             FROM (SELECT
                 value ->> 0 AS job_id, value ->> 1 AS state, value ->> 2 AS start_time,
                 value ->> 3 AS end_time, value ->> 4 AS cancel_time, value ->> 5 AS cancelled_by,
                 unhex(value ->> 6) AS action
                 FROM jsonb_each(?)) AS new
             WHERE jobs.job_id = new.job_id",
            [rows(changed.iter().map(job_row))],
        );
    }
    batch
}

/// A JSON array of these rows.
fn rows(rows: impl Iterator<Item = impl Serialize>) -> Value {
    let mut text = String::from("[");
    for row in rows {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&serde_json::to_string(&row).expect("rows are texts and numbers"));
    }
    text.push(']');
    text.into()
}

/// The columns of a new job.
#[derive(Serialize)]
struct JobColumns<'a>(
    String,
    &'a str,
    &'a str,
    String,
    &'a str,
    String,
    i64,
    i64,
    i64,
    &'a str,
    &'static str,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    &'a str,
    String,
    &'a str,
    &'a str,
);

fn new_job_row(change: &JobChange) -> JobColumns<'_> {
    let job = &change.summary;
    let order = &job.order;
    let (cancel_time, by) = cancel(job);
    JobColumns(
        order.job_id.to_string(),
        &order.principal,
        &order.request_id,
        HEXLOWER.encode(&order.request_digest),
        &order.selector,
        HEXLOWER.encode(change.action.as_ref().unwrap_or(&order.action)),
        order.create_time,
        order.start_deadline_time,
        order.lost_after,
        &job.note,
        job.state.name(),
        job.start_time,
        job.end_time,
        cancel_time,
        by,
        HEXLOWER.encode(&order.confinement),
        &order.reason,
        &order.approval_id,
    )
}

fn job_row(change: &JobChange) -> impl Serialize + '_ {
    let job = &change.summary;
    let (cancel_time, by) = cancel(job);
    (
        job.order.job_id.to_string(),
        job.state.name(),
        job.start_time,
        job.end_time,
        cancel_time,
        by,
        change.action.as_ref().map(|action| HEXLOWER.encode(action)),
    )
}

fn cancel(job: &Summary) -> (Option<i64>, &str) {
    let cancel = job.cancel.as_ref();
    (
        cancel.map(|(time, _)| *time),
        cancel.map_or("", |(_, by)| by),
    )
}

/// The columns of a task, in the order of `TASK_COLUMNS`.
#[derive(Serialize)]
struct TaskColumns<'a>(
    String,
    String,
    &'a str,
    &'static str,
    i32,
    &'a str,
    i64,
    Option<&'a str>,
    Option<&'a str>,
    Option<i64>,
    Option<i64>,
    Option<i32>,
    &'a str,
    Option<i64>,
    Option<i64>,
    i32,
    i64,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    &'a str,
    String,
    i64,
    u32,
    Option<String>,
    Option<String>,
    &'a str,
);

fn task_row(placed: &Placed) -> TaskColumns<'_> {
    let Placed {
        order,
        ordinal,
        task,
    } = placed;
    let fence = task.offered.as_ref();
    TaskColumns(
        task.task_id.to_string(),
        task.host_id.to_string(),
        &task.host_name,
        task.state.name(),
        task.reason as i32,
        &task.message,
        task.state_time,
        fence.map(|fence| &*fence.boot_id),
        fence.map(|fence| &*fence.journal_id),
        task.start_time,
        task.end_time,
        task.exit_code,
        &task.signal,
        task.run_time,
        task.output_end,
        i32::from(task.output_complete),
        task.output_size.stdout_bytes,
        task.output_size.stderr_bytes,
        task.output_size.dropped_bytes,
        task.output_size.last_sequence,
        task.cancel_time,
        task.cancel_grace,
        &task.late_result,
        order.job_id.to_string(),
        order.create_time,
        *ordinal,
        hex(&task.receipt),
        hex(&task.confinement),
        &task.doubt,
    )
}

/// `None` of nothing.
fn hex(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| HEXLOWER.encode(bytes))
}
