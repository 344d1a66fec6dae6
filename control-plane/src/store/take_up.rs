//! Orders that an earlier version wrote into columns become records, at the start that follows the migration.
//!
//! Each transaction takes some of them from `orders_before` and removes them there: interrupted anywhere, the next start
//! goes on where it stood.

use bytes::Bytes;
use prost::Message as _;
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteRow};

use crate::model::order::record::{Before, SecretsRecord};

/// Orders in one transaction.
const ORDERS_EACH: i64 = 500;

/// Writes the records of all orders that are left. Nobody else may use the ledger meanwhile.
pub(super) async fn orders(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    while some(connection, ORDERS_EACH).await? {}
    Ok(())
}

/// Takes up so many; says whether there were any.
async fn some(connection: &mut SqliteConnection, limit: i64) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let rows = sqlx::query("SELECT rowid, * FROM orders_before ORDER BY rowid LIMIT ?")
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?;
    let Some(last) = rows.last() else {
        return Ok(false);
    };
    for row in &rows {
        let job_id: &str = row.try_get("job_id")?;
        let (record, values) = before(row)?.now().map_err(|error| {
            sqlx::Error::Decode(format!("job {job_id} of an earlier version: {error}").into())
        })?;
        let secrets = (!values.is_empty()).then(|| SecretsRecord { values }.encode_to_vec());
        // A job that is over has no use for them any more.
        sqlx::query(
            "UPDATE jobs SET record = ?, secrets = iif(state IN ('pending', 'running'), ?, NULL)
             WHERE job_id = ?",
        )
        .bind(record.encode_to_vec())
        .bind(secrets)
        .bind(job_id)
        .execute(&mut *transaction)
        .await?;
    }
    sqlx::query("DELETE FROM orders_before WHERE rowid <= ?")
        .bind(last.try_get::<i64, _>("rowid")?)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(true)
}

fn before(row: &SqliteRow) -> Result<Before, sqlx::Error> {
    let bytes = |column| Ok::<_, sqlx::Error>(Bytes::from(row.try_get::<Vec<u8>, _>(column)?));
    Ok(Before {
        job_id: row.try_get("job_id")?,
        principal: row.try_get("principal")?,
        request_id: row.try_get("request_id")?,
        request_digest: bytes("request_digest")?,
        selector: row.try_get("selector")?,
        action: bytes("action")?,
        confinement: bytes("confinement")?,
        reason: row.try_get("reason")?,
        approval_id: row.try_get("approval_id")?,
        create_time: row.try_get("create_time")?,
        start_deadline_time: row.try_get("start_deadline_time")?,
        lost_after: row.try_get("lost_after")?,
    })
}

#[cfg(test)]
mod tests;
