//! The audit log in the ledger: entries are chained as they are written.

use data_encoding::HEXLOWER;
use muster_client::audit::{BEFORE_THE_FIRST, Hash, Position, line};
use muster_proto::ids::HostId;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{Batch, Store, StoreError, Value};
use crate::model::{Entry, EntryText};

/// Adds rows: one argument, a JSON array of number, time, entry and hash.
pub(super) const APPEND: &str = "INSERT INTO audit (number, time, entry, hash)
     SELECT value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3) FROM jsonb_each(?)";

const LAST: &str = "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1";

/// The rows that continue a log at `position` with these entries, as the argument of `APPEND`, and where it then
/// stands.
pub(super) fn rows<'a>(
    position: Position,
    entries: impl Iterator<Item = &'a EntryText>,
) -> (Value, Position) {
    let mut position = position;
    let mut rows = String::from("[");
    for entry in entries {
        let number = position.count + 1;
        let text = format!("{{\"number\":{number},{}}}", entry.members());
        position = position.with(&text);
        if rows.len() > 1 {
            rows.push(',');
        }
        let text = serde_json::to_string(&text).expect("a text is JSON");
        let hash = HEXLOWER.encode(&position.hash);
        rows.push_str(&format!("[{number},{},{text},\"{hash}\"]", entry.time()));
    }
    rows.push(']');
    (rows.into(), position)
}

/// Where the log of this ledger stands.
pub(super) async fn position(connection: &mut SqliteConnection) -> Result<Position, sqlx::Error> {
    let row = sqlx::query(LAST).fetch_optional(connection).await?;
    row.as_ref().map_or(Ok(Position::EMPTY), read_position)
}

fn read_position(row: &SqliteRow) -> Result<Position, sqlx::Error> {
    let count: i64 = row.try_get(0)?;
    Ok(Position {
        count: u64::try_from(count).unwrap_or_default(),
        hash: read_hash(row, 1)?,
    })
}

fn read_hash(row: &SqliteRow, column: usize) -> Result<Hash, sqlx::Error> {
    let hash: &[u8] = row.try_get(column)?;
    // A hash of another length is none: whoever verifies the log is told that the chain breaks here.
    Ok(hash.try_into().unwrap_or(BEFORE_THE_FIRST))
}

/// Adds entries to a ledger that nobody else writes.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    entries: &[EntryText],
) -> Result<(), sqlx::Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let (Value::Text(rows), _) = rows(position(connection).await?, entries.iter()) else {
        return Ok(());
    };
    sqlx::query(APPEND)
        .bind(rows)
        .execute(connection)
        .await
        .map(drop)
}

/// Which entries to list.
#[derive(Debug, Default)]
pub(crate) struct AuditFilter {
    /// Not before; Unix milliseconds, as every time here.
    pub(crate) from: Option<i64>,
    /// Before.
    pub(crate) to: Option<i64>,
    /// By this principal; empty keeps all.
    pub(crate) principal: String,
    /// Keeps those of this method; empty keeps all.
    pub(crate) method: String,
    /// About this host; `None` keeps all.
    pub(crate) host: Option<HostId>,
    /// Decided so; empty keeps all.
    pub(crate) verdict: String,
}

/// An entry as the ledger has it.
pub(crate) struct AuditRow {
    pub(crate) number: i64,
    pub(crate) time: i64,
    pub(crate) entry: String,
    pub(crate) hash: Vec<u8>,
}

impl AuditFilter {
    /// What the text of an entry must hold. A quote inside of a text is escaped there, so none of these can be found in
    /// what a caller chose.
    fn needles(&self) -> Vec<String> {
        let member = |name: &str, value: &str| {
            let value = serde_json::Value::from(value);
            (value != "").then(|| format!("\"{name}\":{value}"))
        };
        [
            member("principal", &self.principal),
            member("method", &self.method),
            member("verdict", &self.verdict),
            self.host.map(|host| format!("\"{host}\"")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Store {
    /// Where the audit log stands.
    pub(crate) async fn audit_position(&self) -> Result<Position, StoreError> {
        let row = sqlx::query(LAST).fetch_optional(&self.readers).await?;
        let position = row.as_ref().map_or(Ok(Position::EMPTY), read_position);
        Ok(position?)
    }

    /// The position of the log after an entry.
    pub(crate) async fn audit_position_at(&self, number: i64) -> Result<Position, StoreError> {
        let row = sqlx::query("SELECT number, hash FROM audit WHERE number = ?")
            .bind(number)
            .fetch_optional(&self.readers)
            .await?;
        let position = row.as_ref().map_or(Ok(Position::EMPTY), read_position);
        Ok(position?)
    }

    /// A page of entries ahead of `before`, newest first, after a look at so many at most. The second value is set if
    /// there are more to look at: the next page is ahead of that one.
    pub(crate) async fn audit_page(
        &self,
        filter: &AuditFilter,
        before: i64,
        limit: i64,
        looked_at_max: i64,
    ) -> Result<(Vec<AuditRow>, Option<i64>), StoreError> {
        let last = i64::try_from(self.audit_position().await?.count).unwrap_or(i64::MAX);
        let upper = before.min(last.saturating_add(1));
        let lower = upper.saturating_sub(looked_at_max).max(1);
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT number, time, entry, hash FROM audit WHERE number < ",
        );
        query
            .push_bind(upper)
            .push(" AND number >= ")
            .push_bind(lower);
        if let Some(from) = filter.from {
            query.push(" AND time >= ").push_bind(from);
        }
        if let Some(to) = filter.to {
            query.push(" AND time < ").push_bind(to);
        }
        for needle in filter.needles() {
            query
                .push(" AND instr(entry, ")
                .push_bind(needle)
                .push(") > 0");
        }
        query.push(" ORDER BY number DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(&self.readers).await?;
        let rows: Vec<AuditRow> = rows
            .iter()
            .map(|row| {
                Ok(AuditRow {
                    number: row.try_get(0)?,
                    time: row.try_get(1)?,
                    entry: row.try_get(2)?,
                    hash: row.try_get(3)?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()?;
        let full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= limit;
        let next = match rows.last() {
            Some(row) if full => row.number,
            _ => lower,
        };
        Ok((rows, (next > 1).then_some(next)))
    }

    /// Lines of an export: so many behind an entry, each with its number.
    pub(crate) async fn audit_lines(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, String)>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, entry, hash FROM audit WHERE number > ? ORDER BY number LIMIT ?",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let lines = rows.iter().map(|row| {
            let entry: &str = row.try_get(1)?;
            Ok((row.try_get(0)?, line(entry, &read_hash(row, 2)?)))
        });
        Ok(lines.collect::<Result<_, sqlx::Error>>()?)
    }
}

/// To measure what an entry costs.
impl Batch {
    /// Writes a row as it is.
    pub(crate) fn change_nothing(&mut self) {
        self.push("UPDATE ledger SET starts = starts", Vec::new());
    }
}

impl Store {
    /// How large the ledger is, bytes, with what is in its log still.
    pub(crate) async fn ledger_bytes(&self) -> Result<u64, StoreError> {
        let row =
            sqlx::query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
                .fetch_one(&self.readers)
                .await?;
        let bytes: i64 = row.try_get(0)?;
        Ok(u64::try_from(bytes).unwrap_or_default())
    }
}

/// What a ledger says of itself in its log, when it is opened.
pub(super) struct Beginning<'a> {
    pub(super) control_plane_id: &'a str,
    pub(super) generation: &'a str,
    /// The generation that the copy of a backup stood under.
    pub(super) replaced: Option<&'a str>,
}

/// Begins the log, or notes that a copy of it goes on under another generation.
pub(super) async fn begin(
    connection: &mut SqliteConnection,
    beginning: &Beginning<'_>,
) -> Result<(), sqlx::Error> {
    let log = position(connection).await?;
    let entry = match beginning.replaced {
        Some(replaced) => restored(replaced, beginning.generation),
        None if log == Position::EMPTY => Entry::new("audit.begin")
            .by("control-plane")
            .with("control_plane", beginning.control_plane_id)
            .with("generation", beginning.generation),
        None => return Ok(()),
    };
    append(connection, &[entry.text()]).await
}

/// A generation began because the ledger was set back.
pub(super) fn restored(replaced: &str, generation: &str) -> Entry {
    Entry::new("ledger.restore")
        .by("control-plane")
        .with("replaced", replaced)
        .with("generation", generation)
}

#[cfg(test)]
mod tests;
