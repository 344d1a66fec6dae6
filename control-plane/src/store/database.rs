//! One SQLite file: opened, checked, migrated; one writer and several readers.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, Row as _, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::runtime::Handle;

use super::{
    OpenError,
    durability::{Disk, Syncer},
    writer::Writer,
};

/// The oldest SQLite that has no known way to lose a committed WAL frame.
const SQLITE_MIN: (u32, u32, u32) = (3, 51, 3);

/// Sessions that read beside the writer; each is a thread.
const READERS: u32 = 4;

/// How long a connection waits for a lock. Only checkpoints and backups ever hold one for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Results that the connection's thread may be ahead of the writer.
const ROW_BUFFER: usize = 512;

/// An open database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    /// The only way to write.
    pub(crate) writer: Writer,
    /// Reads; sees everything that is committed.
    pub(crate) readers: SqlitePool,
}

impl Database {
    /// Starts writer and readers on a connection made by `connect`.
    pub(super) async fn start(
        path: &Path,
        connection: SqliteConnection,
        position: i64,
        epilogue: Option<&'static str>,
    ) -> Result<Self, OpenError> {
        let disk = Wal::open(path).map_err(|error| OpenError::file(path, error))?;
        let syncer = Syncer::start("ledger-sync", position, disk)
            .map_err(|error| OpenError::file(path, error))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options(path).read_only(true).create_if_missing(false))
            .await
            .map_err(|error| OpenError::database(path, error))?;
        Ok(Self {
            writer: Writer::start(connection, syncer, position, epilogue),
            readers,
        })
    }
}

/// Opens or makes the file and brings it to the newest version.
pub(super) async fn connect(
    path: &Path,
    migrator: &Migrator,
) -> Result<SqliteConnection, OpenError> {
    let fail = |error| OpenError::database(path, error);
    make_private(path).map_err(|error| OpenError::file(path, error))?;
    let mut connection = SqliteConnection::connect_with(&options(path))
        .await
        .map_err(fail)?;
    check_version(&mut connection, path).await?;
    let applied = applied_version(&mut connection).await.map_err(fail)?;
    let newest = migrator.iter().map(|migration| migration.version).max();
    if applied > newest {
        return Err(OpenError::Newer {
            path: path.into(),
            found: applied.unwrap_or_default(),
            known: newest.unwrap_or_default(),
        });
    }
    if let Some(version) = applied.filter(|_| applied < newest) {
        copy_aside(&mut connection, path, version).await?;
    }
    migrator
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) => fail(error),
            error => OpenError::Migrate {
                path: path.into(),
                error,
            },
        })?;
    Ok(connection)
}

/// Makes a database's file, if it is missing, and lets nobody but its owner read it. What SQLite puts beside it gets
/// the same mode.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    // An earlier version left them to the mask of the process.
    for suffix in ["", "-wal", "-shm"] {
        let path = with_suffix(path, suffix);
        match fs::set_permissions(path, fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit reaches the WAL file with write(2), so it survives the process; the syncing thread
        // makes it survive a power cut.
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("trusted_schema", "OFF")
        // Statements of many rows keep a journal of their own, which would be a file made and removed for
        // each of them.
        .pragma("temp_store", "MEMORY")
        // Pages. A checkpoint syncs in the writer's way, and hot pages are copied once for many commits.
        .pragma("wal_autocheckpoint", "8192")
        .row_buffer_size(ROW_BUFFER)
        .statement_cache_capacity(256)
}

async fn check_version(connection: &mut SqliteConnection, path: &Path) -> Result<(), OpenError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await
        .map_err(|error| OpenError::database(path, error))?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    if (next(), next(), next()) < SQLITE_MIN {
        return Err(OpenError::SqliteTooOld { version });
    }
    Ok(())
}

/// The newest migration in the file; `None` if it is new.
pub(super) async fn applied_version(
    connection: &mut SqliteConnection,
) -> Result<Option<i64>, sqlx::Error> {
    let known: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
    )
    .fetch_one(&mut *connection)
    .await?;
    if known == 0 {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(connection)
        .await
}

/// Keeps what the migration is about to change, beside it: `ledger.db.before-6`.
async fn copy_aside(
    connection: &mut SqliteConnection,
    path: &Path,
    version: i64,
) -> Result<(), OpenError> {
    let copy = with_suffix(path, &format!(".version-{version}"));
    match std::fs::remove_file(&copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(OpenError::file(&copy, error));
        }
        _ => {}
    }
    // Into an empty file that nobody else reads.
    make_private(&copy).map_err(|error| OpenError::file(&copy, error))?;
    sqlx::query("VACUUM INTO ?")
        .bind(copy.to_string_lossy().into_owned())
        .execute(connection)
        .await
        .map_err(|error| OpenError::database(&copy, error))?;
    File::open(&copy)
        .and_then(|file| file.sync_all())
        .map_err(|error| OpenError::file(&copy, error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The write-ahead log of a database that stays open: SQLite keeps the file as long as that is so.
struct Wal {
    log: File,
    database: PathBuf,
    runtime: Handle,
}

impl Wal {
    fn open(database: &Path) -> io::Result<Self> {
        let log = File::open(with_suffix(database, "-wal"))?;
        // The files may be new: their names must be durable too.
        if let Some(directory) = database.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(Self {
            log,
            database: database.into(),
            runtime: Handle::current(),
        })
    }

    /// Copies the whole log into the database file, which SQLite then syncs.
    async fn checkpoint(&self) -> Result<bool, sqlx::Error> {
        let mut connection = SqliteConnection::connect_with(&options(&self.database)).await?;
        let row = sqlx::query(AssertSqlSafe("PRAGMA wal_checkpoint(FULL)"))
            .fetch_one(&mut connection)
            .await?;
        let (busy, frames, copied): (i64, i64, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        connection.close().await?;
        Ok(busy == 0 && frames == copied)
    }
}

impl Disk for Wal {
    fn sync(&mut self) -> io::Result<()> {
        self.log.sync_data()
    }

    fn repair(&mut self) -> io::Result<()> {
        match self.runtime.block_on(self.checkpoint()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::Error::other("a reader holds up the checkpoint")),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}
