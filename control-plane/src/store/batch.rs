//! Statements that stand or fall together.

use std::sync::Arc;

use sqlx::{Arguments as _, SqliteConnection, sqlite::SqliteArguments};

use super::audit;
use crate::model::EntryText;

/// An argument of a statement. Cheap to clone, since a batch may be tried twice.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// TEXT; also JSON for `json_each`.
    Text(Arc<str>),
    /// BLOB.
    Blob(Arc<Vec<u8>>),
}

macro_rules! integers {
    ($($from:ty),*) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Value::Integer(i64::from(value))
            }
        }
    )*};
}

integers!(i64, i32, u32, bool);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text.into())
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Value::Text(text)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Value::Blob(Arc::new(bytes))
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

impl Value {
    pub(super) fn size(&self) -> usize {
        match self {
            Value::Null | Value::Integer(_) => 8,
            Value::Text(text) => text.len(),
            Value::Blob(bytes) => bytes.len(),
        }
    }

    pub(super) fn add_to(&self, arguments: &mut SqliteArguments) -> Result<(), sqlx::Error> {
        match self {
            Value::Null => arguments.add(None::<i64>),
            Value::Integer(number) => arguments.add(*number),
            Value::Text(text) => arguments.add(Arc::clone(text)),
            Value::Blob(bytes) => arguments.add(Arc::clone(bytes)),
        }
        .map_err(sqlx::Error::Encode)
    }
}

/// Statements that are committed in one transaction, in order: all of them or none.
///
/// A statement is one SQL statement without its semicolon; its arguments are written `?`, never `?1`,
/// because batches are joined into one query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch {
    pub(super) statements: Vec<(&'static str, Vec<Value>)>,
    /// What the audit log says of it.
    pub(super) entries: Vec<EntryText>,
    pub(super) size: usize,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a statement; one value for each `?`.
    pub(crate) fn push(&mut self, sql: &'static str, values: impl Into<Vec<Value>>) {
        let values = values.into();
        debug_assert_eq!(sql.matches('?').count(), values.len(), "{sql}");
        self.size += values.iter().map(Value::size).sum::<usize>();
        self.statements.push((sql, values));
    }

    /// This batch with a statement more.
    pub(crate) fn with(mut self, sql: &'static str, values: impl Into<Vec<Value>>) -> Self {
        self.push(sql, values);
        self
    }

    /// Adds an entry to the audit log: it is there if the statements are, and not otherwise.
    pub(crate) fn record(&mut self, entry: EntryText) {
        self.size += entry.len();
        self.entries.push(entry);
    }

    /// Runs the statements on a connection that nobody else uses, one after the other.
    pub(crate) async fn run(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for (sql, values) in &self.statements {
            let mut arguments = SqliteArguments::default();
            for value in values {
                value.add_to(&mut arguments)?;
            }
            sqlx::query_with(*sql, arguments)
                .execute(&mut *connection)
                .await?;
        }
        audit::append(connection, &self.entries).await
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.entries.is_empty()
    }
}
