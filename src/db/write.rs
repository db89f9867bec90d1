//! Writes: every transaction runs here, and an answered commit is durable.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
};
use tokio::time::timeout;

use super::Db;
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
    pub async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let done = self.write_quietly(work).await?;
        self.wake();
        Ok(done)
    }

    /// Runs `work`, a single statement without an explicit transaction, which saves two round
    /// trips. PostgreSQL only.
    pub async fn write_at_once(
        &self,
        work: impl AsyncFnOnce(&DatabaseConnection) -> Result<()>,
    ) -> Result<()> {
        let done = timeout(WRITE_TIMEOUT, work(&self.0.writer)).await;
        // After a timeout the result of the statement is unknown.
        self.noted(done.unwrap_or(Err(Error::DatabaseAway)))?;
        self.wake();
        Ok(())
    }

    /// Variant of [`Self::write`] for work that records no change: the change feed is not notified.
    pub async fn write_quietly<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let commits = AtomicBool::new(false);
        let transaction = COMMIT_SEQ.scope(Cell::new(None), self.transaction(work, &commits));
        let done = match timeout(WRITE_TIMEOUT, transaction).await {
            Ok(done) => done,
            // After a timeout during the commit the result of the transaction is unknown.
            Err(_) if commits.load(Ordering::Relaxed) => Err(Error::DatabaseAway),
            Err(_) => Err(self.unanswered().await),
        };
        self.noted(done)
    }

    /// Runs `work` in a transaction and commits.
    ///
    /// On success the transaction was not a savepoint, was committed, and is stored in the files at
    /// their paths. `is_committing` is set before the commit.
    async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
        commits: &AtomicBool,
    ) -> Result<T> {
        let options = TransactionOptions {
            // A deferred transaction that reads and then writes fails with "locked", regardless of
            // the busy timeout.
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let _writing = if self.0.backend == DbBackend::Sqlite {
            Some(self.0.writing.lock().await)
        } else {
            None
        };
        let storage = self.storage();
        storage.check_files()?;
        let doubt = || storage.doubt_writer();
        let begun = self.0.writer.begin_with_options(options).await;
        let tx = match begun.inspect_err(|_| doubt()) {
            Ok(tx) => tx,
            Err(error) => return Err(self.0.life.explain(error).await.into()),
        };
        let done = match work(&tx).await {
            Ok(done) => done,
            Err(error) => {
                // SQLite may have rolled back already; the rollback then fails.
                if tx.rollback().await.is_err() || error.storage_fault().is_some() {
                    doubt();
                }
                return Err(error);
            }
        };
        commits.store(true, Ordering::Relaxed);
        tx.commit().await.inspect_err(|_| doubt())?;
        storage.check_files()?;
        Ok(done)
    }

    /// Records the result of a write for the storage monitor.
    fn noted<T>(&self, done: Result<T>) -> Result<T> {
        match &done {
            Ok(_) => self.0.storage.committed(),
            Err(error) => self.0.storage.failed(error),
        }
        done
    }

    fn wake(&self) {
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
    pub(crate) fn wake_feed(&self) {
        self.0.committed.notify_one();
    }

    /// Waits until other processes are to be notified of a commit.
    pub(crate) async fn to_announce(&self) {
        self.0.announce.notified().await;
    }
}
