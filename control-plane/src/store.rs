//! The ledger: SQLite, one writer, several readers. All SQL is here.
//!
//! Accepted jobs go through the `intake`, a log ahead of the database. A commit survives the end of the process at once (`synchronous=NORMAL` writes it to the log) and
//! a power cut once its `Durable` has been waited for (one thread syncs the log, for all who wait).

pub(crate) mod approvals;
mod audit;
mod authorities;
pub(crate) mod backup;
mod batch;
mod database;
mod durability;
mod hosts;
pub(crate) mod intake;
pub(crate) mod jobs;
mod join_tokens;
mod policies;
mod principals;
pub(crate) mod receipts;
pub(crate) mod restores;
pub(crate) mod slot;
mod take_up;
mod tokens;
mod writer;

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use data_encoding::HEXLOWER;
use muster_proto::v1::Reason;
use rand::Rng as _;
use sqlx::{Row as _, migrate::Migrator};

use self::audit::Beginning;
pub(crate) use self::{
    audit::AuditFilter,
    batch::{Batch, Value},
    database::make_private,
    durability::{Durable, SyncError, Syncer},
    hosts::{HostChange, StoredHost},
    intake::{Appended, Intake},
    join_tokens::JoinTokenRow,
    policies::StoredPolicies,
    principals::PrincipalRow,
    tokens::TokenRow,
    writer::Writer,
};
use crate::{clock::now, model::Explain};

/// A lock as it is written: since when, by whom, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockRow {
    /// Unix milliseconds.
    pub(crate) time: i64,
    pub(crate) author: String,
    pub(crate) note: String,
}

/// The lock in the columns that every lockable thing has.
fn lock_row(row: &sqlx::sqlite::SqliteRow) -> Result<Option<LockRow>, StoreError> {
    let Some(time) = row.try_get("lock_time")? else {
        return Ok(None);
    };
    let text = |column| row.try_get::<Option<String>, _>(column);
    Ok(Some(LockRow {
        time,
        author: text("lock_author")?.unwrap_or_default(),
        note: text("lock_note")?.unwrap_or_default(),
    }))
}

/// A JSON list of texts.
fn texts(json: &str) -> Result<Vec<String>, StoreError> {
    serde_json::from_str(json)
        .map_err(|error| StoreError::Broken(format!("a list of texts: {error}").into()))
}

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Why a write or a read did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// A key, reference or check stands against it; nothing was written.
    #[error("the ledger refuses: {0}")]
    Conflict(Arc<str>),
    /// The database does not work; nothing was written.
    #[error("the ledger does not work: {0}")]
    Broken(Arc<str>),
    /// It is written, and may be lost in a power cut.
    #[error(transparent)]
    NotDurable(#[from] SyncError),
    /// The ledger is closed.
    #[error("the ledger is closed")]
    Closed,
}

impl StoreError {
    fn from_sqlx(error: &sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(error)
                if error.is_unique_violation()
                    || error.is_foreign_key_violation()
                    || error.is_check_violation() =>
            {
                Self::Conflict(error.message().into())
            }
            _ => Self::Broken(error.to_string().into()),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::from_sqlx(&error)
    }
}

/// Why the ledger could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the directory.
    #[error("{} is in use by another process; stop that one or choose another --data-dir", .0.display())]
    Held(PathBuf),
    /// A file or directory cannot be used.
    #[error("{}: {error}{}", path.display(), next_step(error))]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// SQLite refuses.
    #[error("{}: {error}", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// What SQLite says.
        error: sqlx::Error,
    },
    /// A newer Muster has changed the database.
    #[error("{} was made by a newer Muster (schema {found}, this one knows {known}): \
             start that version, or restore the copy it made beside the file", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest that this version knows.
        known: i64,
    },
    /// The ledger is not of the schema that this version works with.
    #[error("{} has schema {found}, and this version works with {known}: use the version that serves it", path.display())]
    Unserved {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The one that this version works with.
        known: i64,
    },
    /// The schema is not what this version expects.
    #[error("{} cannot be brought to this version's schema: {error}", path.display())]
    Migrate {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: sqlx::migrate::MigrateError,
    },
    /// This build carries an SQLite with known defects.
    #[error("SQLite {version} is too old; 3.51.3 is needed")]
    SqliteTooOld {
        /// The version found.
        version: String,
    },
}

/// What to do about a file that cannot be used, where that is known.
fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make it writable for this user or choose another --data-dir"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "; choose a --data-dir that is a directory"
        }
        io::ErrorKind::StorageFull => "; make room on this disk",
        _ => "",
    }
}

impl OpenError {
    fn file(path: &Path, error: io::Error) -> Self {
        Self::File {
            path: path.into(),
            error,
        }
    }

    fn database(path: &Path, error: sqlx::Error) -> Self {
        Self::Database {
            path: path.into(),
            error,
        }
    }
}

/// The ledger, and what it says about itself.
#[derive(Clone)]
pub(crate) struct Store {
    /// Writes.
    pub(crate) writer: Writer,
    /// Reads.
    pub(crate) readers: sqlx::SqlitePool,
    /// Takes accepted jobs ahead of the database.
    pub(crate) intake: Intake,
    /// Names this control plane; random, made at its first start.
    pub(crate) control_plane_id: Arc<str>,
    /// Random, new at each restore; the one that stood when the ledger was opened.
    pub(crate) generation: Arc<str>,
    /// How many commits it had when it was opened. Nobody has seen more, unless it was set back.
    pub(crate) position: i64,
    /// How often the ledger was opened, this time included.
    pub(crate) starts: i64,
    _lock: Arc<File>,
}

impl Store {
    /// Opens the ledger in `directory`, which is made if it is missing and held until the last clone
    /// is dropped.
    pub(crate) async fn open(directory: &Path) -> Result<Self, OpenError> {
        let lock = hold(directory)?;
        let path = directory.join("ledger.db");
        let fail = |error| OpenError::database(&path, error);
        let mut connection = database::connect(&path, &MIGRATIONS).await?;
        take_up::orders(&mut connection).await.map_err(fail)?;
        let row = sqlx::query(
            "INSERT INTO ledger (one, control_plane_id, generation, starts, position)
             VALUES (1, ?, ?, 1, 1)
             ON CONFLICT (one) DO UPDATE SET starts = starts + 1, position = position + 1
             RETURNING control_plane_id, generation, starts, position",
        )
        .bind(random_name())
        .bind(random_name())
        .fetch_one(&mut connection)
        .await
        .map_err(fail)?;
        let control_plane_id: String = row.try_get(0).map_err(fail)?;
        let generation: String = row.try_get(1).map_err(fail)?;
        let starts = row.try_get(2).map_err(fail)?;
        let position = row.try_get(3).map_err(fail)?;
        let copied = generation.clone();
        let (generation, position) =
            restores::begin_if_copied(&mut connection, generation, position, now())
                .await
                .map_err(fail)?;
        let beginning = Beginning {
            control_plane_id: &control_plane_id,
            generation: &generation,
            replaced: (copied != generation).then_some(&*copied),
        };
        audit::begin(&mut connection, &beginning)
            .await
            .map_err(fail)?;
        // Epochs are derived from `starts`: it must not come twice, whatever happens.
        let database = database::Database::start(
            &path,
            connection,
            position,
            Some("UPDATE ledger SET position = ?"),
        )
        .await?;
        File::open(directory.join("ledger.db-wal"))
            .and_then(|log| log.sync_data())
            .map_err(|error| OpenError::file(&path, error))?;
        let intake = Intake::open(directory).map_err(|error| OpenError::file(directory, error))?;
        Ok(Self {
            intake,
            writer: database.writer,
            readers: database.readers,
            control_plane_id: control_plane_id.into(),
            generation: generation.into(),
            position,
            starts,
            _lock: Arc::new(lock),
        })
    }
}

/// Makes the directory if it is missing and keeps other processes out.
pub(crate) fn hold(directory: &Path) -> Result<File, OpenError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| OpenError::file(directory, error))?;
    let path = directory.join("lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| OpenError::file(&path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::Held(directory.into())),
        Err(TryLockError::Error(error)) => Err(OpenError::file(&path, error)),
    }
}

/// 128 random bits in hex.
pub(crate) fn random_name() -> String {
    HEXLOWER.encode(&rand::rng().random::<[u8; 16]>())
}

impl Explain for StoreError {
    fn reason(&self) -> Reason {
        match self {
            Self::NotDurable(_) | Self::Broken(_) => Reason::LedgerUnavailable,
            Self::Closed => Reason::ShuttingDown,
            Self::Conflict(_) => Reason::Internal,
        }
    }
}

#[cfg(test)]
mod tests;
