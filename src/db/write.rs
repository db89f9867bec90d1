//! Writes: every transaction runs here, and an answered commit is durable.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use tokio::time::timeout;

use super::handle::Db;
use crate::error::{Error, Result};

/// Maximum duration of a transaction.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// Number of the transaction run by `Db::write`, in the order of the feed.
    static COMMIT_SEQ: Cell<Option<i64>>;
}

impl Db {
    /// Runs `work` in one transaction, commits, and notifies the change feed. If `work` fails,
    /// nothing is written.
    pub async fn write<T>(&self, work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>) -> Result<T> {
        let result = self.write_unannounced(work).await?;
        self.notify_commit();
        Ok(result)
    }

    /// Runs `work`, a single statement without an explicit transaction, which saves two round
    /// trips. PostgreSQL only.
    pub async fn write_statement(&self, work: impl AsyncFnOnce(&DatabaseConnection) -> Result<()>) -> Result<()> {
        let result = timeout(WRITE_TIMEOUT, work(&self.0.writer)).await;
        // After a timeout the result of the statement is unknown.
        self.note_outcome(result.unwrap_or(Err(Error::DatabaseAway)))?;
        self.notify_commit();
        Ok(())
    }

    /// Variant of [`Self::write`] for work that records no change: the change feed is not notified.
    pub async fn write_unannounced<T>(&self, work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>) -> Result<T> {
        let is_committing = AtomicBool::new(false);
        let transaction = COMMIT_SEQ.scope(Cell::new(None), self.transaction(work, &is_committing));
        let result = match timeout(WRITE_TIMEOUT, transaction).await {
            Ok(result) => result,
            // After a timeout during the commit the result of the transaction is unknown.
            Err(_) if is_committing.load(Ordering::Relaxed) => Err(Error::DatabaseAway),
            Err(_) => Err(self.timeout_error().await),
        };
        self.note_outcome(result)
    }

    /// Runs `work` in a transaction and commits.
    ///
    /// On success the transaction was not a savepoint, was committed, and is stored in the files at
    /// their paths. `is_committing` is set before the commit.
    async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
        is_committing: &AtomicBool,
    ) -> Result<T> {
        let options = TransactionOptions {
            // A deferred transaction that reads and then writes fails with "locked", regardless of
            // the busy timeout.
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let _writing = if self.0.backend == DbBackend::Sqlite { Some(self.0.writing.lock().await) } else { None };
        let storage = self.storage();
        storage.check_files()?;
        let suspect_writer = || storage.suspect_writer();
        let transaction = self.0.writer.begin_with_options(options).await;
        let tx = match transaction.inspect_err(|_| suspect_writer()) {
            Ok(tx) => tx,
            Err(error) => return Err(self.0.reachability.classify(error).await.into()),
        };
        let result = match work(&tx).await {
            Ok(result) => result,
            Err(error) => {
                // SQLite may have rolled back already; the rollback then fails.
                if tx.rollback().await.is_err() || error.storage_fault().is_some() {
                    suspect_writer();
                }
                return Err(error);
            }
        };
        is_committing.store(true, Ordering::Relaxed);
        tx.commit().await.inspect_err(|_| suspect_writer())?;
        storage.check_files()?;
        Ok(result)
    }

    /// Records the result of a write for the storage monitor.
    fn note_outcome<T>(&self, result: Result<T>) -> Result<T> {
        match &result {
            Ok(_) => self.0.storage.note_commit(),
            Err(error) => self.0.storage.note_failure(error),
        }
        result
    }

    fn notify_commit(&self) {
        self.0.committed.notify_one();
        self.0.announce.notify_one();
    }

    /// Returns the feed number of this task's transaction, if `set_commit_seq` was called.
    pub(crate) fn commit_seq() -> Option<i64> {
        COMMIT_SEQ.try_with(Cell::get).ok().flatten()
    }

    /// Sets the feed number of this task's transaction, for later changes.
    pub(crate) fn set_commit_seq(number: i64) {
        // Outside of `write` the number has no storage, and is discarded.
        let _ = COMMIT_SEQ.try_with(|seq| seq.set(Some(number)));
    }

    /// Waits for a commit of this process. Reserved for the tailer of the feed.
    pub(crate) async fn committed(&self) {
        self.0.committed.notified().await;
    }

    /// Makes the tailer read the feed again.
    pub(crate) fn notify_feed(&self) {
        self.0.committed.notify_one();
    }

    /// Waits until other processes are to be notified of a commit.
    pub(crate) async fn announcement_due(&self) {
        self.0.announce.notified().await;
    }
}
