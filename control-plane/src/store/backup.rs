//! A copy of the ledger as it stood at one moment, while it is in use or not.

use std::{
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use sqlx::{
    Connection as _, Row as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use super::{
    MIGRATIONS, OpenError, database,
    jobs::{Accepted, existing, put_missing},
};

/// How long to wait for a checkpoint of the control plane that runs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a ledger says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    /// Names the control plane.
    pub(crate) control_plane_id: String,
    /// Began with its last restore, or with the ledger.
    pub(crate) generation: String,
    /// How many commits it has had.
    pub(crate) position: i64,
    /// Its newest migration.
    pub(crate) schema: i64,
    /// Tasks that a restore would hold.
    pub(crate) pending_tasks: i64,
}

/// The newest migration that this version knows.
pub(crate) fn schema() -> i64 {
    MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or_default()
}

/// Reads what a ledger says about itself, while it is in use or not.
pub(crate) async fn about(path: &Path) -> Result<About, OpenError> {
    let mut connection = read_only(path).await?;
    let about = tell(&mut connection, path).await;
    let _ = connection.close().await;
    about
}

/// Copies the ledger to a file that must not be there, with the jobs that the intake held before, marks the copy as one,
/// and checks it.
pub(crate) async fn copy(
    path: &Path,
    to: &Path,
    accepted: Vec<Accepted>,
    time: i64,
) -> Result<About, OpenError> {
    let mut connection = read_only(path).await?;
    let schema = tell(&mut connection, path).await?.schema;
    if schema != self::schema() {
        let _ = connection.close().await;
        return Err(OpenError::Unserved {
            path: path.into(),
            found: schema,
            known: self::schema(),
        });
    }
    copy_into(&mut connection, to)
        .await
        .map_err(|error| OpenError::database(path, error))?;
    let _ = connection.close().await;

    let fail = |error| OpenError::database(to, error);
    // Without a log of its own: the copy is one file.
    let options = SqliteConnectOptions::new()
        .filename(to)
        .journal_mode(SqliteJournalMode::Delete);
    let mut copy = SqliteConnection::connect_with(&options)
        .await
        .map_err(fail)?;
    add(&mut copy, accepted).await.map_err(fail)?;
    sqlx::query("UPDATE ledger SET backup_time = ?")
        .bind(time)
        .execute(&mut copy)
        .await
        .map_err(fail)?;
    check(&mut copy).await.map_err(fail)?;
    let about = tell(&mut copy, to).await?;
    copy.close().await.map_err(fail)?;
    Ok(about)
}

/// Puts into a copy the jobs that the intake held when it was begun.
async fn add(copy: &mut SqliteConnection, accepted: Vec<Accepted>) -> Result<(), sqlx::Error> {
    let ids: Vec<_> = accepted.iter().map(Accepted::job_id).collect();
    let there = existing(&mut *copy, &ids).await;
    let there = there.map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
    put_missing(accepted, &there).0.run(copy).await
}

/// Copies a database as one moment has it, into a file that only its owner reads.
pub(crate) async fn copy_into(
    connection: &mut SqliteConnection,
    to: &Path,
) -> Result<(), sqlx::Error> {
    sqlx::query("VACUUM INTO ?")
        .bind(to.to_string_lossy().into_owned())
        .execute(connection)
        .await?;
    let file = File::open(to).map_err(sqlx::Error::Io)?;
    file.set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| file.sync_all())
        .map_err(sqlx::Error::Io)
}

/// Opens a database to read, beside whoever writes it.
pub(crate) async fn reader(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT);
    SqliteConnection::connect_with(&options).await
}

async fn read_only(path: &Path) -> Result<SqliteConnection, OpenError> {
    reader(path)
        .await
        .map_err(|error| OpenError::database(path, error))
}

async fn check(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let found: String = sqlx::query_scalar("PRAGMA integrity_check(1)")
        .fetch_one(connection)
        .await?;
    if found == "ok" {
        return Ok(());
    }
    Err(sqlx::Error::Protocol(format!("it is damaged: {found}")))
}

async fn tell(connection: &mut SqliteConnection, path: &Path) -> Result<About, OpenError> {
    let fail = |error| OpenError::database(path, error);
    let schema = database::applied_version(connection)
        .await
        .map_err(fail)?
        .unwrap_or_default();
    let row = sqlx::query("SELECT control_plane_id, generation, position FROM ledger")
        .fetch_one(&mut *connection)
        .await
        .map_err(fail)?;
    let pending_tasks = sqlx::query_scalar(
        "SELECT count(*) FROM tasks WHERE state IN ('pending', 'awaiting_approval')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(fail)?;
    Ok(About {
        control_plane_id: row.try_get(0).map_err(fail)?,
        generation: row.try_get(1).map_err(fail)?,
        position: row.try_get(2).map_err(fail)?,
        schema,
        pending_tasks,
    })
}
