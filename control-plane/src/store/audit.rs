//! The audit log in the ledger: entries are chained as they are written.

mod block;

use futures_util::TryStreamExt as _;
use muster_client::audit::{BEFORE_THE_FIRST, Hash, Position, line};
use muster_proto::ids::HostId;
use sqlx::{
    AssertSqlSafe, Row as _, SqliteConnection,
    sqlite::{SqliteArguments, SqliteRow},
};

use self::block::Block;
use super::{Batch, Store, StoreError, Value};
use crate::model::{Entry, EntryText};

/// Adds a block.
pub(super) const APPEND: &str =
    "INSERT INTO audit_blocks (first, count, dictionary, bytes, entries, hash)
     VALUES (?, ?, ?, ?, ?, ?)";

// Entries from before there were blocks stand in `audit`, and are the first ones.
const LAST: &str = "SELECT first + count - 1 AS number, hash FROM audit_blocks
         WHERE first = (SELECT max(first) FROM audit_blocks)
     UNION ALL SELECT number, hash FROM audit WHERE number = (SELECT max(number) FROM audit)
     ORDER BY number DESC LIMIT 1";

/// A block with the hash ahead of it.
const BLOCK: &str = "SELECT first, count, dictionary, bytes, entries, hash, coalesce(
         (SELECT hash FROM audit_blocks AS earlier WHERE earlier.first < block.first ORDER BY first DESC LIMIT 1),
         (SELECT hash FROM audit ORDER BY number DESC LIMIT 1)) AS before
     FROM audit_blocks AS block";

/// The block that continues a log at `position` with these entries, as the arguments of `APPEND`, and where it then stands.
pub(super) fn block<'a>(
    position: Position,
    entries: impl Iterator<Item = &'a EntryText>,
) -> ([Value; 6], Position) {
    let first = position.count + 1;
    let mut position = position;
    let mut text = String::new();
    for entry in entries {
        let start = text.len();
        let number = position.count + 1;
        text.push_str(&format!("{{\"number\":{number},{}}}", entry.members()));
        position = position.with(&text[start..]);
        text.push('\n');
    }
    let integer = |number: u64| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
    let block = Block::of(text);
    let arguments = [
        integer(first),
        integer(position.count + 1 - first),
        block.dictionary.into(),
        integer(block.bytes as u64),
        block.entries.into(),
        (&position.hash[..]).into(),
    ];
    (arguments, position)
}

/// Where the log of this ledger stands.
pub(super) async fn position(connection: &mut SqliteConnection) -> Result<Position, sqlx::Error> {
    let row = sqlx::query(LAST).fetch_optional(connection).await?;
    row.as_ref().map_or(Ok(Position::EMPTY), read_position)
}

/// The entries of a block.
fn read_block(row: &SqliteRow) -> Result<Vec<AuditRow>, sqlx::Error> {
    let first: i64 = row.try_get("first")?;
    let bytes: i64 = row.try_get("bytes")?;
    let before: Option<Vec<u8>> = row.try_get("before")?;
    let before = Position {
        count: u64::try_from(first - 1).unwrap_or_default(),
        hash: before.map_or(BEFORE_THE_FIRST, |hash| to_hash(&hash)),
    };
    let block = Block {
        dictionary: row.try_get("dictionary")?,
        bytes: usize::try_from(bytes).unwrap_or_default(),
        entries: row.try_get("entries")?,
    };
    let rows = block.rows(before, row.try_get("hash")?);
    rows.map_err(|error| {
        sqlx::Error::Decode(format!("the audit log from entry {first} on: {error}").into())
    })
}

/// An entry from before there were blocks.
fn read_row(row: &SqliteRow) -> Result<AuditRow, sqlx::Error> {
    Ok(AuditRow {
        number: row.try_get("number")?,
        time: row.try_get("time")?,
        entry: row.try_get("entry")?,
        hash: row.try_get("hash")?,
    })
}

fn read_position(row: &SqliteRow) -> Result<Position, sqlx::Error> {
    let count: i64 = row.try_get(0)?;
    Ok(Position {
        count: u64::try_from(count).unwrap_or_default(),
        hash: read_hash(row, 1)?,
    })
}

fn read_hash(row: &SqliteRow, column: usize) -> Result<Hash, sqlx::Error> {
    row.try_get::<&[u8], _>(column).map(to_hash)
}

/// A hash of another length is none: whoever verifies the log is told that the chain breaks here.
fn to_hash(bytes: &[u8]) -> Hash {
    bytes.try_into().unwrap_or(BEFORE_THE_FIRST)
}

/// Adds entries to a ledger that nobody else writes.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    entries: &[EntryText],
) -> Result<(), sqlx::Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let (values, _) = block(position(connection).await?, entries.iter());
    let mut arguments = SqliteArguments::default();
    for value in &values {
        value.add_to(&mut arguments)?;
    }
    let appended = sqlx::query_with(APPEND, arguments).execute(connection);
    appended.await.map(drop)
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

impl AuditFilter {
    /// Whether it keeps an entry, whose text has to hold all of these.
    fn keeps(&self, row: &AuditRow, needles: &[String]) -> bool {
        self.from.is_none_or(|from| row.time >= from)
            && self.to.is_none_or(|to| row.time < to)
            && needles
                .iter()
                .all(|needle| row.entry.contains(needle.as_str()))
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
        let found = self.audit_after(number - 1, 1).await?;
        let found = found.into_iter().find(|row| row.number == number);
        Ok(found.map_or(Position::EMPTY, |row| Position {
            count: u64::try_from(number).unwrap_or_default(),
            hash: to_hash(&row.hash),
        }))
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
        let limit = usize::try_from(limit).unwrap_or_default();
        let needles = filter.needles();
        let mut rows = Vec::new();
        let sql = format!("{BLOCK} WHERE first < ? ORDER BY first DESC");
        let mut blocks = sqlx::query(AssertSqlSafe(sql))
            .bind(upper)
            .fetch(&self.readers);
        // Where blocks end, and the entries of before begin.
        let mut reached = upper;
        while rows.len() < limit
            && reached > lower
            && let Some(block) = blocks.try_next().await?
        {
            let block = read_block(&block)?;
            reached = block.first().map_or(reached, |row| row.number);
            let kept = block
                .into_iter()
                .rev()
                .filter(|row| (lower..upper).contains(&row.number) && filter.keeps(row, &needles));
            rows.extend(kept.take(limit - rows.len()));
        }
        drop(blocks);
        if rows.len() < limit && reached > lower {
            let earlier = self.audit_rows(lower, reached).await?;
            let kept = earlier
                .into_iter()
                .filter(|row| filter.keeps(row, &needles));
            rows.extend(kept.take(limit - rows.len()));
        }
        let next = match rows.last() {
            Some(row) if rows.len() >= limit => row.number,
            _ => lower,
        };
        Ok((rows, (next > 1).then_some(next)))
    }

    /// Entries from before there were blocks, newest first.
    async fn audit_rows(&self, lower: i64, upper: i64) -> Result<Vec<AuditRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, time, entry, hash FROM audit WHERE number >= ? AND number < ? ORDER BY number DESC",
        )
        .bind(lower)
        .bind(upper)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.iter().map(read_row).collect::<Result<_, _>>()?)
    }

    /// So many entries behind one, or some more.
    async fn audit_after(&self, after: i64, limit: i64) -> Result<Vec<AuditRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, time, entry, hash FROM audit WHERE number > ? ORDER BY number LIMIT ?",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let mut rows: Vec<AuditRow> = rows.iter().map(read_row).collect::<Result<_, _>>()?;
        let limit = usize::try_from(limit).unwrap_or_default();
        let sql = format!(
            "{BLOCK} WHERE first >= coalesce((SELECT max(first) FROM audit_blocks WHERE first <= ?), 0) ORDER BY first"
        );
        let mut blocks = sqlx::query(AssertSqlSafe(sql))
            .bind(after.saturating_add(1))
            .fetch(&self.readers);
        while rows.len() < limit
            && let Some(block) = blocks.try_next().await?
        {
            let block = read_block(&block)?;
            rows.extend(block.into_iter().filter(|row| row.number > after));
        }
        Ok(rows)
    }

    /// Lines of an export: so many behind an entry or some more, each with its number.
    pub(crate) async fn audit_lines(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, String)>, StoreError> {
        let rows = self.audit_after(after, limit).await?;
        let lines = rows.iter().map(|row| {
            let line = line(&row.entry, &to_hash(&row.hash));
            (row.number, line)
        });
        Ok(lines.collect())
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
