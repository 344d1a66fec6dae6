//! Jobs and tasks on their way into the ledger, many in one statement.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};

use data_encoding::HEXLOWER;
use muster_proto::ids::JobId;
use prost::Message as _;
use serde::{Serialize, Serializer, ser::SerializeSeq as _};

use crate::{
    model::{
        EntryText, JobState, Order, Summary, Task,
        order::record::{OrderRecord, SecretsRecord},
    },
    store::{Batch, Value},
};

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
    pub(crate) job: Summary,
    /// Each of its tasks.
    pub(crate) tasks: Vec<Placed>,
    /// What the audit log says of it; `None` in records of versions without one.
    pub(crate) entry: Option<EntryText>,
}

impl Accepted {
    /// Names the job.
    pub(crate) fn job_id(&self) -> JobId {
        self.job.order.job_id
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
    let mut batch = Batch::new();
    put(&mut batch, &jobs, &tasks, &[]);
    entries.into_iter().for_each(|entry| batch.record(entry));
    (batch, jobs.len())
}

/// Adds jobs and tasks to a batch as they stand now. `new` are not in the ledger, `changed` are.
pub(crate) fn put(batch: &mut Batch, new: &[Summary], tasks: &[Placed], changed: &[Summary]) {
    if !new.is_empty() {
        // Written again after a try that failed and yet was committed, a job is the same one.
        batch.push(&PUT_JOBS, [rows(new.iter().map(job_row))]);
    }
    if !tasks.is_empty() {
        // A task of a new job is new, one that was adopted may be, and any other is there.
        batch.push(&PUT_TASKS, [rows(tasks.iter().map(task_row))]);
    }
    if !changed.is_empty() {
        batch.push(&CHANGE_JOBS, [rows(changed.iter().map(change_row))]);
    }
}

static PUT_JOBS: LazyLock<String> = LazyLock::new(|| {
    let fixed = [
        "principal",
        "create_time",
        "start_deadline_time",
        "note",
        "record",
    ];
    upsert("jobs", "job_id", JobColumns::NAMES, &fixed)
});

static PUT_TASKS: LazyLock<String> = LazyLock::new(|| {
    let fixed = ["host_id", "host_name", "job_id", "create_time", "ordinal"];
    upsert("tasks", "task_id", TaskColumns::NAMES, &fixed)
});

// What looks secret stays in the ledger only as long as somebody needs it.
static CHANGE_JOBS: LazyLock<String> = LazyLock::new(|| {
    let changed = ChangeColumns::NAMES
        .iter()
        .filter(|name| **name != "job_id");
    let changed: Vec<_> = changed.map(|name| format!("{name} = new.{name}")).collect();
    format!(
        "UPDATE jobs SET {}, secrets = iif(new.state IN ('pending', 'running'), secrets, NULL)
         FROM (SELECT {} FROM jsonb_each(?)) AS new WHERE jobs.job_id = new.job_id",
        changed.join(", "),
        taken(ChangeColumns::NAMES),
    )
});

/// Adds rows, or changes those that are there in all but these columns.
fn upsert(table: &str, key: &str, names: &[&str], fixed: &[&str]) -> String {
    let changes = names
        .iter()
        .filter(|name| **name != key && !fixed.contains(name));
    let changes: Vec<_> = changes
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    format!(
        "INSERT INTO {table} ({}) SELECT {} FROM jsonb_each(?) WHERE TRUE
         ON CONFLICT ({key}) DO UPDATE SET {}",
        names.join(", "),
        taken(names),
        changes.join(", "),
    )
}

/// Columns that hold bytes: they travel in hex.
const BYTES: [&str; 5] = ["record", "secrets", "receipt", "confinement", "result"];

/// The columns of a row, taken by its place from the array that it travels in.
fn taken(names: &[&str]) -> String {
    let taken = names.iter().enumerate().map(|(place, name)| {
        if BYTES.contains(name) {
            format!("unhex(value ->> {place}) AS {name}")
        } else {
            format!("value ->> {place} AS {name}")
        }
    });
    taken.collect::<Vec<_>>().join(", ")
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

/// A row of a table. Its columns are named once; it travels as an array, which takes fewer bytes than an object and is
/// read faster.
macro_rules! row {
    ($(#[$about:meta])* struct $row:ident<$of:lifetime> { $($column:ident: $kind:ty,)* }) => {
        $(#[$about])*
        struct $row<$of> {
            $($column: $kind,)*
        }

        impl $row<'_> {
            const NAMES: &'static [&'static str] = &[$(stringify!($column)),*];
        }

        impl Serialize for $row<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut columns = serializer.serialize_seq(Some(Self::NAMES.len()))?;
                $(columns.serialize_element(&self.$column)?;)*
                columns.end()
            }
        }
    };
}

row! {
    /// A new job.
    struct JobColumns<'a> {
        job_id: String,
        principal: &'a str,
        create_time: i64,
        start_deadline_time: i64,
        note: &'a str,
        state: &'static str,
        start_time: Option<i64>,
        end_time: Option<i64>,
        cancel_time: Option<i64>,
        cancelled_by: &'a str,
        record: Option<String>,
        secrets: Option<String>,
    }
}

row! {
    /// What may change of a job.
    struct ChangeColumns<'a> {
        job_id: String,
        state: &'static str,
        start_time: Option<i64>,
        end_time: Option<i64>,
        cancel_time: Option<i64>,
        cancelled_by: &'a str,
    }
}

row! {
    /// A task. What holds it back is written elsewhere.
    struct TaskColumns<'a> {
        task_id: String,
        host_id: String,
        host_name: &'a str,
        job_id: String,
        create_time: i64,
        ordinal: u32,
        state: &'static str,
        reason: i32,
        message: &'a str,
        state_time: i64,
        offered_boot: Option<&'a str>,
        offered_journal: Option<&'a str>,
        start_time: Option<i64>,
        end_time: Option<i64>,
        exit_code: Option<i32>,
        signal: &'a str,
        run_time: Option<i64>,
        output_end: Option<i64>,
        output_complete: i32,
        stdout_bytes: i64,
        stderr_bytes: i64,
        dropped_bytes: i64,
        last_sequence: i64,
        cancel_time: Option<i64>,
        cancel_grace: Option<i64>,
        late_result: &'a str,
        receipt: Option<String>,
        confinement: Option<String>,
        result: Option<String>,
        doubt: &'a str,
    }
}

fn job_row(job: &Summary) -> JobColumns<'_> {
    let order = &job.order;
    let (cancel_time, cancelled_by) = cancel(job);
    let over = !matches!(job.state, JobState::Pending | JobState::Running);
    let values = &order.secrets;
    let secrets = (!over && !values.is_empty()).then(|| SecretsRecord {
        values: values.clone(),
    });
    JobColumns {
        job_id: order.job_id.to_string(),
        principal: &order.principal,
        create_time: order.create_time,
        start_deadline_time: order.start_deadline_time,
        note: &job.note,
        state: job.state.name(),
        start_time: job.start_time,
        end_time: job.end_time,
        cancel_time,
        cancelled_by,
        record: hex(&OrderRecord::of(order).encode_to_vec()),
        secrets: secrets.and_then(|secrets| hex(&secrets.encode_to_vec())),
    }
}

fn change_row(job: &Summary) -> ChangeColumns<'_> {
    let (cancel_time, cancelled_by) = cancel(job);
    ChangeColumns {
        job_id: job.order.job_id.to_string(),
        state: job.state.name(),
        start_time: job.start_time,
        end_time: job.end_time,
        cancel_time,
        cancelled_by,
    }
}

fn cancel(job: &Summary) -> (Option<i64>, &str) {
    let cancel = job.cancel.as_ref();
    (
        cancel.map(|(time, _)| *time),
        cancel.map_or("", |(_, by)| by),
    )
}

fn task_row(placed: &Placed) -> TaskColumns<'_> {
    let Placed {
        order,
        ordinal,
        task,
    } = placed;
    let fence = task.offered.as_ref();
    TaskColumns {
        task_id: task.task_id.to_string(),
        host_id: task.host_id.to_string(),
        host_name: &task.host_name,
        job_id: order.job_id.to_string(),
        create_time: order.create_time,
        ordinal: *ordinal,
        state: task.state.name(),
        reason: task.reason as i32,
        message: &task.message,
        state_time: task.state_time,
        offered_boot: fence.map(|fence| &*fence.boot_id),
        offered_journal: fence.map(|fence| &*fence.journal_id),
        start_time: task.start_time,
        end_time: task.end_time,
        exit_code: task.exit_code,
        signal: &task.signal,
        run_time: task.run_time,
        output_end: task.output_end,
        output_complete: i32::from(task.output_complete),
        stdout_bytes: task.output_size.stdout_bytes,
        stderr_bytes: task.output_size.stderr_bytes,
        dropped_bytes: task.output_size.dropped_bytes,
        last_sequence: task.output_size.last_sequence,
        cancel_time: task.cancel_time,
        cancel_grace: task.cancel_grace,
        late_result: &task.late_result,
        receipt: hex(&task.receipt),
        confinement: hex(&task.confinement),
        result: hex(&task.result),
        doubt: &task.doubt,
    }
}

/// `None` of nothing.
fn hex(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| HEXLOWER.encode(bytes))
}
