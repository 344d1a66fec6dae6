//! Approvals, their answers, and the grants that came of them.

use std::collections::HashMap;

use muster_proto::ids::{ApprovalId, JobId};
use serde_json::json;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqlitePool, sqlite::SqliteRow};

use super::{Batch, StoreError, jobs::After, jobs::parsed};
use crate::model::approval::{Answer, Approval, State, Subject, Terms};

const COLUMNS: &str = "approval_id, kind, state, principal, owner, reason, digest, count, approvers, rules, source, \
     create_time, expire_time, end_time, cause, job_id, start_deadline, selector, mode, actions, ttl, revoke_time, \
     revoked_by, confirmed";

/// Which approvals to list.
#[derive(Debug, Default)]
pub(crate) struct ApprovalFilter {
    /// In one of these states; empty keeps all.
    pub(crate) states: Vec<State>,
    /// Grants only.
    pub(crate) grants: bool,
}

impl Batch {
    /// Adds an approval. One that was added before and never came to anything is replaced.
    pub(crate) fn put_approval(&mut self, approval: &Approval) {
        let (kind, job_id, start_deadline, terms) = match &approval.subject {
            Subject::Job {
                job_id,
                start_deadline,
            } => ("job", job_id.to_string(), *start_deadline, None),
            Subject::Grant(terms) => ("grant", String::new(), 0, Some(terms)),
        };
        self.push(
            "INSERT INTO approvals (approval_id, kind, state, principal, owner, reason, digest, count, approvers,
                 rules, source, confirmed, create_time, expire_time, job_id, start_deadline, selector, mode, actions,
                 ttl)
             VALUES (?, ?, 'awaiting', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (approval_id) DO UPDATE SET
                 state = 'awaiting', reason = excluded.reason, digest = excluded.digest, count = excluded.count,
                 approvers = excluded.approvers, rules = excluded.rules, source = excluded.source,
                 confirmed = excluded.confirmed,
                 create_time = excluded.create_time, expire_time = excluded.expire_time, end_time = NULL, cause = '',
                 start_deadline = excluded.start_deadline
             WHERE kind = 'job' AND state IN ('awaiting', 'cancelled') AND NOT EXISTS
                 (SELECT 1 FROM approval_answers WHERE approval_answers.approval_id = approvals.approval_id)",
            [
                approval.id.to_string().into(),
                kind.into(),
                approval.principal.as_str().into(),
                approval.owner.as_str().into(),
                approval.reason.as_str().into(),
                approval.digest.as_slice().into(),
                approval.count.into(),
                (&*approval.from).into(),
                json!(approval.rules).to_string().into(),
                approval.source.as_str().into(),
                approval.confirmed.into(),
                approval.create_time.into(),
                approval.expire_time.into(),
                job_id.into(),
                start_deadline.into(),
                terms.map_or("", |terms| &terms.selector).into(),
                terms.map_or("", |terms| terms.mode.text()).into(),
                json!(terms.map_or(&[][..], |terms| &terms.actions))
                    .to_string()
                    .into(),
                terms.map_or(0, |terms| terms.ttl).into(),
            ],
        );
    }

    /// Adds an answer; a principal has one.
    pub(crate) fn put_answer(&mut self, id: ApprovalId, answer: &Answer) {
        let word = if answer.approves {
            "approve"
        } else {
            "decline"
        };
        self.push(
            "INSERT INTO approval_answers (approval_id, principal, answer, note, time) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (approval_id, principal) DO UPDATE SET
                 answer = excluded.answer, note = excluded.note, time = excluded.time",
            [
                id.to_string().into(),
                answer.principal.as_str().into(),
                word.into(),
                answer.note.as_str().into(),
                answer.time.into(),
            ],
        );
    }

    /// Ends an approval that is awaited.
    pub(crate) fn end_approval(&mut self, id: ApprovalId, state: State, cause: &str, time: i64) {
        self.push(
            "UPDATE approvals SET state = ?, cause = ?, end_time = ? WHERE approval_id = ? AND state = 'awaiting'",
            [
                state.name().into(),
                cause.into(),
                time.into(),
                id.to_string().into(),
            ],
        );
    }

    /// Lets the tasks of a job go that await approval, until this deadline.
    pub(crate) fn approve_job(&mut self, id: JobId, start_deadline_time: i64, time: i64) {
        self.push(
            "UPDATE tasks SET state = 'pending', message = '', state_time = ?
             WHERE job_id = ? AND state = 'awaiting_approval'",
            [time.into(), id.to_string().into()],
        );
        self.push(
            "UPDATE jobs SET start_deadline_time = ? WHERE job_id = ?",
            [start_deadline_time.into(), id.to_string().into()],
        );
    }

    /// Ends a grant.
    pub(crate) fn revoke_grant(&mut self, id: ApprovalId, by: &str, time: i64) {
        self.push(
            "UPDATE approvals SET revoke_time = ?, revoked_by = ?
             WHERE approval_id = ? AND kind = 'grant' AND revoke_time IS NULL",
            [time.into(), by.into(), id.to_string().into()],
        );
    }

    /// Deletes approvals that were decided before `time`, and whose grants ended by then.
    pub(crate) fn forget_approvals(&mut self, time: i64) {
        self.push(
            "DELETE FROM approvals WHERE state <> 'awaiting' AND end_time + ttl < ?",
            [time.into()],
        );
    }
}

/// Reads one approval.
pub(crate) async fn get(
    readers: &SqlitePool,
    id: ApprovalId,
) -> Result<Option<Approval>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {COLUMNS} FROM approvals WHERE approval_id = "
    ));
    query.push_bind(id.to_string());
    Ok(read_all(readers, query).await?.pop())
}

/// Reads every approval that is awaited.
pub(crate) async fn load_open(readers: &SqlitePool) -> Result<Vec<Approval>, StoreError> {
    let query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {COLUMNS} FROM approvals WHERE state = 'awaiting'"
    ));
    read_all(readers, query).await
}

/// Reads every grant that still permits something at `now`.
pub(crate) async fn load_grants(
    readers: &SqlitePool,
    now: i64,
) -> Result<Vec<Approval>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {COLUMNS} FROM approvals
         WHERE kind = 'grant' AND state = 'approved' AND revoke_time IS NULL AND end_time + ttl > "
    ));
    query.push_bind(now);
    read_all(readers, query).await
}

/// Reads a page of approvals, newest first.
pub(crate) async fn list(
    readers: &SqlitePool,
    filter: &ApprovalFilter,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<Approval>, StoreError> {
    let mut query =
        QueryBuilder::<Sqlite>::new(format!("SELECT {COLUMNS} FROM approvals WHERE TRUE"));
    if !filter.states.is_empty() {
        let names: Vec<_> = filter.states.iter().map(|state| state.name()).collect();
        query.push(" AND state IN (SELECT value FROM json_each(");
        query.push_bind(json!(names).to_string()).push("))");
    }
    if filter.grants {
        query.push(" AND kind = 'grant'");
    }
    if let Some(after) = after {
        query.push(" AND (create_time < ").push_bind(after.time);
        query.push(" OR (create_time = ").push_bind(after.time);
        query
            .push(" AND approval_id > ")
            .push_bind(&after.id)
            .push("))");
    }
    query
        .push(" ORDER BY create_time DESC, approval_id LIMIT ")
        .push_bind(limit);
    read_all(readers, query).await
}

async fn read_all(
    readers: &SqlitePool,
    mut query: QueryBuilder<Sqlite>,
) -> Result<Vec<Approval>, StoreError> {
    let rows = query.build().fetch_all(readers).await?;
    let mut approvals = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<_> = approvals.iter().map(|one| one.id.to_string()).collect();
    let rows = sqlx::query(
        "SELECT approval_id, principal, answer, note, time FROM approval_answers
         WHERE approval_id IN (SELECT value FROM json_each(?)) ORDER BY time, principal",
    )
    .bind(json!(ids).to_string())
    .fetch_all(readers)
    .await?;
    let mut answers: HashMap<ApprovalId, Vec<Answer>> = HashMap::new();
    for row in &rows {
        answers.entry(parsed(row, 0)?).or_default().push(Answer {
            principal: row.try_get(1)?,
            approves: row.try_get::<&str, _>(2)? == "approve",
            note: row.try_get(3)?,
            time: row.try_get(4)?,
        });
    }
    for approval in &mut approvals {
        approval.answers = answers.remove(&approval.id).unwrap_or_default();
    }
    Ok(approvals)
}

fn read(row: &SqliteRow) -> Result<Approval, sqlx::Error> {
    let unknown =
        |what: &str| sqlx::Error::Decode(format!("{what} that this version does not know").into());
    let texts = |column: usize| -> Result<Vec<String>, sqlx::Error> {
        Ok(serde_json::from_str(row.try_get(column)?).unwrap_or_default())
    };
    let subject = match row.try_get::<&str, _>(1)? {
        "job" => Subject::Job {
            job_id: parsed(row, 15)?,
            start_deadline: row.try_get(16)?,
        },
        _ => Subject::Grant(Terms {
            selector: row.try_get(17)?,
            mode: row
                .try_get::<&str, _>(18)?
                .parse()
                .map_err(|_| unknown("a mode"))?,
            actions: texts(19)?,
            ttl: row.try_get(20)?,
            revoked: row
                .try_get::<Option<i64>, _>(21)?
                .zip(Some(row.try_get::<String, _>(22)?)),
        }),
    };
    Ok(Approval {
        id: parsed(row, 0)?,
        subject,
        state: State::from_name(row.try_get(2)?).ok_or_else(|| unknown("a state"))?,
        principal: row.try_get(3)?,
        owner: row.try_get(4)?,
        reason: row.try_get(5)?,
        digest: row
            .try_get::<Vec<u8>, _>(6)?
            .try_into()
            .map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))?,
        count: row.try_get(7)?,
        from: row.try_get::<String, _>(8)?.into(),
        rules: texts(9)?,
        source: row.try_get(10)?,
        confirmed: row.try_get(23)?,
        create_time: row.try_get(11)?,
        expire_time: row.try_get(12)?,
        end_time: row.try_get(13)?,
        cause: row.try_get(14)?,
        answers: Vec::new(),
    })
}
