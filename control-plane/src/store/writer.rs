//! One writer for one SQLite file: queued batches become one transaction and one query.
//!
//! sqlx runs a connection on its own thread, so each query costs two thread hops whatever it does.
//! A group of batches is therefore sent as one text, `BEGIN IMMEDIATE; …; COMMIT`, with the arguments
//! of all statements in a row. If a group fails it is rolled back and each batch is tried alone, so
//! that a bad batch fails alone.

use futures_util::TryStreamExt as _;
use muster_client::audit::Position;
use sqlx::{
    AssertSqlSafe, Connection as _, Either, Executor as _, SqliteConnection,
    sqlite::{SqliteArguments, SqliteRow},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    StoreError, audit,
    batch::{Batch, Value},
    durability::{Durable, SyncError, Syncer},
    slot::{self, Taken},
};

/// Batches that wait for the writer; a further caller waits in `commit`.
const QUEUE: usize = 1024;

/// Statements of one group. Keeps a transaction, and the time others wait for it, short.
const GROUP_STATEMENTS_MAX: usize = 256;

/// Bytes of arguments in one group.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// Groups up to this many statements are kept prepared: they are the ones that come again.
const PREPARED_STATEMENTS_MAX: usize = 8;

/// What one statement did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Rows inserted, updated or deleted; meaningless for a SELECT.
    pub(crate) affected: u64,
    /// Rows returned.
    pub(crate) rows: Vec<SqliteRow>,
}

/// A batch that is committed: it survives the end of this process.
pub(crate) struct Committed {
    /// One outcome for each statement, in order.
    pub(crate) outcomes: Vec<Outcome>,
    /// Waits until it survives a power cut as well.
    pub(crate) durable: Durable,
}

struct Queued {
    batch: Batch,
    answer: oneshot::Sender<Result<Committed, StoreError>>,
}

/// Hands batches to the writer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Queued>,
    syncer: Syncer,
}

impl Writer {
    /// Starts the writer on `connection`. `position` counts the commits so far; `epilogue` is run at
    /// the end of each transaction with the new position as its argument.
    pub(super) fn start(
        connection: SqliteConnection,
        syncer: Syncer,
        position: i64,
        epilogue: Option<&'static str>,
    ) -> Self {
        let (queue, batches) = mpsc::channel(QUEUE);
        let actor = Actor {
            connection,
            syncer: syncer.clone(),
            position,
            log: None,
            epilogue,
        };
        tokio::spawn(actor.run(batches));
        Self { queue, syncer }
    }

    /// Commits a batch. Batches of one caller are committed in the order of its calls. If this is done for a call that
    /// is recorded, the first batch takes the call's entry along.
    pub(crate) async fn commit(&self, mut batch: Batch) -> Result<Committed, StoreError> {
        let mut taken = slot::take();
        if let Some(taken) = &mut taken {
            batch.record(taken.entry().text());
        }
        let (answer, committed) = oneshot::channel();
        self.queue
            .send(Queued { batch, answer })
            .await
            .map_err(|_| StoreError::Closed)?;
        // Whether anybody waits for it or not, it is on its way.
        taken.iter_mut().for_each(Taken::keep);
        let outcome = committed.await.unwrap_or(Err(StoreError::Closed));
        if outcome.is_err() {
            taken.into_iter().for_each(Taken::give_back);
        }
        outcome
    }

    /// Waits until every commit so far survives a power cut.
    pub(crate) async fn flush(&self) -> Result<(), SyncError> {
        self.syncer.now().wait().await
    }

    /// The syncing thread: what is durable, and whether syncs work.
    pub(crate) fn syncer(&self) -> &Syncer {
        &self.syncer
    }
}

struct Actor {
    connection: SqliteConnection,
    syncer: Syncer,
    position: i64,
    /// Where the audit log stands; `None` while that has to be looked up.
    log: Option<Position>,
    epilogue: Option<&'static str>,
}

impl Actor {
    async fn run(mut self, mut batches: mpsc::Receiver<Queued>) {
        let mut next = None;
        loop {
            let first = match next.take() {
                Some(first) => first,
                None => match batches.recv().await {
                    Some(first) => first,
                    None => break,
                },
            };
            let mut statements = first.batch.statements.len();
            let mut bytes = first.batch.size;
            let mut group = vec![first];
            while let Ok(queued) = batches.try_recv() {
                statements += queued.batch.statements.len() + queued.batch.entries.len();
                bytes += queued.batch.size;
                if statements > GROUP_STATEMENTS_MAX || bytes > GROUP_BYTES_MAX {
                    next = Some(queued);
                    break;
                }
                group.push(queued);
            }
            self.write(group).await;
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "closing the database failed: {error}");
        }
        self.syncer.stop();
    }

    async fn write(&mut self, group: Vec<Queued>) {
        let batches: Vec<&Batch> = group.iter().map(|queued| &queued.batch).collect();
        match self.transact(&batches).await {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for Queued { batch, answer } in group {
                    let own = outcomes.by_ref().take(batch.statements.len()).collect();
                    // A caller that went away does not need to know.
                    let _ = answer.send(Ok(self.committed(own)));
                }
            }
            Err(error) if group.len() == 1 => {
                for queued in group {
                    let _ = queued.answer.send(Err(StoreError::from_sqlx(&error)));
                }
            }
            Err(_) => {
                for Queued { batch, answer } in group {
                    let outcome = self.transact(&[&batch]).await;
                    let _ = answer.send(match outcome {
                        Ok(outcomes) => Ok(self.committed(outcomes)),
                        Err(error) => Err(StoreError::from_sqlx(&error)),
                    });
                }
            }
        }
    }

    fn committed(&self, outcomes: Vec<Outcome>) -> Committed {
        Committed {
            outcomes,
            durable: self.syncer.at(self.position),
        }
    }

    async fn transact(&mut self, batches: &[&Batch]) -> Result<Vec<Outcome>, sqlx::Error> {
        let entries = || batches.iter().flat_map(|batch| &batch.entries);
        let mut rows = None;
        if entries().next().is_some() {
            let log = match self.log {
                Some(log) => log,
                None => audit::position(&mut self.connection).await?,
            };
            rows = Some(audit::block(log, entries()));
        }
        let mut outcomes = Vec::new();
        let block = rows.as_ref().map(|(block, _)| &block[..]);
        let outcome = self.execute(batches, block, &mut outcomes).await;
        let outcome = match (outcome, rows) {
            (Ok(()), rows) => {
                if let Some((_, log)) = rows {
                    self.log = Some(log);
                }
                Ok(outcomes)
            }
            (Err(error), rows) => {
                // Fails if the error has already ended the transaction, which is as good.
                let _ = self.connection.execute("ROLLBACK").await;
                self.log = None;
                match rows {
                    // A commit may fail and have happened: then its entries must not be written a second time.
                    Some((_, log)) if self.stands_at(log).await => Ok(outcomes),
                    _ => Err(error),
                }
            }
        };
        if outcome.is_ok() {
            self.position += 1;
            self.syncer.wrote(self.position);
        }
        outcome
    }

    /// Looks up where the audit log stands, and says whether that is here.
    async fn stands_at(&mut self, log: Position) -> bool {
        let found = audit::position(&mut self.connection).await.ok();
        self.log = found;
        found == Some(log)
    }

    async fn execute(
        &mut self,
        batches: &[&Batch],
        entries: Option<&[Value]>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), sqlx::Error> {
        let mut text = String::from("BEGIN IMMEDIATE");
        let mut arguments = SqliteArguments::default();
        let mut statements = 0;
        for (sql, values) in batches.iter().flat_map(|batch| &batch.statements) {
            text.push_str(";\n");
            text.push_str(sql);
            for value in values {
                value.add_to(&mut arguments)?;
            }
            statements += 1;
        }
        if let Some(entries) = entries {
            text.push_str(";\n");
            text.push_str(audit::APPEND);
            for value in entries {
                value.add_to(&mut arguments)?;
            }
        }
        if let Some(epilogue) = self.epilogue {
            text.push_str(";\n");
            text.push_str(epilogue);
            Value::from(self.position + 1).add_to(&mut arguments)?;
        }
        text.push_str(";\nCOMMIT");

        // The texts are made of the program's own constants; everything else is an argument.
        let query = sqlx::query_with(AssertSqlSafe(text), arguments)
            .persistent(statements <= PREPARED_STATEMENTS_MAX);
        let mut results = self.connection.fetch_many(query);
        let mut current = Outcome::default();
        let mut ended = 0;
        while let Some(result) = results.try_next().await? {
            match result {
                Either::Right(row) => current.rows.push(row),
                Either::Left(done) => {
                    current.affected = done.rows_affected();
                    let outcome = std::mem::take(&mut current);
                    // The first is BEGIN; what comes after the last one is entries, epilogue and COMMIT.
                    if (1..=statements).contains(&ended) {
                        outcomes.push(outcome);
                    }
                    ended += 1;
                }
            }
        }
        Ok(())
    }
}
