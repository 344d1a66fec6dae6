//! Where each task's output lies: SQLite beside the segments. It follows the log at a distance and can be
//! made again from it, but for what was dropped.

use std::path::Path;

use muster_proto::ids::TaskId;
use sqlx::{
    QueryBuilder, Row as _, Sqlite, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

use super::{
    item::Point,
    log::LogEnd,
    outline::{Extent, Outline, Place},
    task::Changes,
};

const SCHEMA: &str = "
-- Everything in the log before this end is in the index.
CREATE TABLE IF NOT EXISTS checkpoint (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    segment INTEGER NOT NULL,
    length  INTEGER NOT NULL
) STRICT;

-- Runs of a task's sequences. What was dropped has no segment.
CREATE TABLE IF NOT EXISTS extents (
    task_id     TEXT    NOT NULL,
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    stdout_from INTEGER NOT NULL,
    stderr_from INTEGER NOT NULL,
    pty_from    INTEGER NOT NULL,
    stdout_to   INTEGER NOT NULL,
    stderr_to   INTEGER NOT NULL,
    pty_to      INTEGER NOT NULL,
    kept        INTEGER NOT NULL,
    own         INTEGER NOT NULL,
    segment     INTEGER,
    start       INTEGER NOT NULL,
    length      INTEGER NOT NULL,
    PRIMARY KEY (task_id, first)
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS extents_by_segment ON extents (segment) WHERE segment IS NOT NULL;
";

/// Rows of one statement: 14 values each, and SQLite takes 32,766.
const ROWS_MAX: usize = 2_000;

/// The index.
#[derive(Clone)]
pub(super) struct Index {
    pool: SqlitePool,
}

impl Index {
    /// Opens or makes it.
    pub(super) async fn open(path: &Path) -> Result<Index, sqlx::Error> {
        crate::store::make_private(path).map_err(sqlx::Error::Io)?;
        // A commit is rare, and space is given back after it: so it is made durable.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(3)
            .connect_with(options)
            .await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        Ok(Index { pool })
    }

    /// How far it has followed the log; `None` if it is new.
    pub(super) async fn checkpoint(&self) -> Result<Option<LogEnd>, sqlx::Error> {
        let row = sqlx::query("SELECT segment, length FROM checkpoint")
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| {
            Ok((
                row.try_get::<u32, _>("segment")?,
                row.try_get::<i64, _>("length")? as u64,
            ))
        })
        .transpose()
    }

    /// The outline of a task's output, as far as the index knows.
    pub(super) async fn outline(&self, task_id: TaskId) -> Result<Outline, sqlx::Error> {
        let rows = sqlx::query("SELECT * FROM extents WHERE task_id = ? ORDER BY first")
            .bind(task_id.to_string())
            .fetch_all(&self.pool)
            .await?;
        let extents = rows.iter().map(extent).collect::<Result<_, _>>()?;
        Ok(Outline::remembered(extents))
    }

    /// Takes in what changed up to an end of the log.
    pub(super) async fn advance(
        &self,
        changes: &[(TaskId, Changes)],
        end: LogEnd,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (task_id, changes) in changes {
            for gap in changes.extents.iter().filter(|e| e.place.is_none()) {
                sqlx::query("DELETE FROM extents WHERE task_id = ? AND first BETWEEN ? AND ?")
                    .bind(task_id.to_string())
                    .bind(gap.first)
                    .bind(gap.last)
                    .execute(&mut *transaction)
                    .await?;
            }
        }
        let rows: Vec<(String, &Extent)> = changes
            .iter()
            .flat_map(|(task_id, changes)| {
                let task_id = task_id.to_string();
                changes.extents.iter().map(move |e| (task_id.clone(), e))
            })
            .collect();
        for rows in rows.chunks(ROWS_MAX) {
            QueryBuilder::<Sqlite>::new("INSERT OR REPLACE INTO extents ")
                .push_values(rows, |mut row, (task_id, extent)| {
                    let place = extent.place;
                    row.push_bind(task_id)
                        .push_bind(extent.first)
                        .push_bind(extent.last);
                    for offset in extent.from.offsets.into_iter().chain(extent.to.offsets) {
                        row.push_bind(offset);
                    }
                    row.push_bind(extent.kept)
                        .push_bind(extent.own as i64)
                        .push_bind(place.map(|p| p.segment))
                        .push_bind(place.map_or(0, |p| p.start as i64))
                        .push_bind(place.map_or(0, |p| p.length as i64));
                })
                .build()
                .persistent(false)
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query("INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?)")
            .bind(end.0)
            .bind(end.1 as i64)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    /// Forgets tasks.
    pub(super) async fn remove(&self, task_ids: &[TaskId]) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for task_id in task_ids {
            sqlx::query("DELETE FROM extents WHERE task_id = ?")
                .bind(task_id.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    /// Marks all that lies in a segment as dropped.
    pub(super) async fn drop_segment(&self, segment: u32) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE extents SET segment = NULL, start = 0, length = 0, kept = 0, own = 0 WHERE segment = ?")
            .bind(segment)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The segments in which something of a task lies.
    pub(super) async fn segments(&self) -> Result<Vec<u32>, sqlx::Error> {
        sqlx::query_scalar("SELECT DISTINCT segment FROM extents WHERE segment IS NOT NULL")
            .fetch_all(&self.pool)
            .await
    }

    /// Closes the file.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

fn extent(row: &SqliteRow) -> Result<Extent, sqlx::Error> {
    let point = |names: [&str; 3]| -> Result<Point, sqlx::Error> {
        let [stdout, stderr, pty] = names;
        let offsets = [
            row.try_get(stdout)?,
            row.try_get(stderr)?,
            row.try_get(pty)?,
        ];
        Ok(Point {
            position: offsets.iter().sum(),
            offsets,
        })
    };
    let place = match row.try_get::<Option<u32>, _>("segment")? {
        None => None,
        Some(segment) => Some(Place {
            segment,
            start: row.try_get::<i64, _>("start")? as u64,
            length: row.try_get::<i64, _>("length")? as u64,
        }),
    };
    Ok(Extent {
        first: row.try_get("first")?,
        last: row.try_get("last")?,
        from: point(["stdout_from", "stderr_from", "pty_from"])?,
        to: point(["stdout_to", "stderr_to", "pty_to"])?,
        kept: row.try_get("kept")?,
        own: row.try_get::<i64, _>("own")? as u64,
        place,
    })
}
