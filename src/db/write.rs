//! The one way to write: transactions whose commit is a fact once it is answered.

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

/// Time that a transaction may take before it is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// Number of the transaction that `Db::write` runs, in the order of the feed.
    static COMMIT_SEQ: Cell<Option<i64>>;
}

impl Db {
    /// Runs `work` in one transaction, commits, and wakes the change feed. If `work` fails, nothing is written.
    pub async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let done = self.write_quietly(work).await?;
        self.wake();
        Ok(done)
    }

    /// Runs `work`, a single statement, which is a transaction of its own: that saves two round trips. For
    /// PostgreSQL.
    pub async fn write_at_once(
        &self,
        work: impl AsyncFnOnce(&DatabaseConnection) -> Result<()>,
    ) -> Result<()> {
        let done = timeout(WRITE_TIMEOUT, work(&self.0.writer)).await;
        // What has become of the statement is unknown.
        self.noted(done.unwrap_or(Err(Error::DatabaseAway)))?;
        self.wake();
        Ok(())
    }

    /// The same as [`Self::write`] for work that records no change: nobody is woken.
    pub async fn write_quietly<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let commits = AtomicBool::new(false);
        let transaction = COMMIT_SEQ.scope(Cell::new(None), self.transaction(work, &commits));
        let done = match timeout(WRITE_TIMEOUT, transaction).await {
            Ok(done) => done,
            // What has become of the transaction is unknown.
            Err(_) if commits.load(Ordering::Relaxed) => Err(Error::DatabaseAway),
            Err(_) => Err(self.unanswered().await),
        };
        self.noted(done)
    }

    /// Runs `work` in a transaction and commits it. What is returned as done is a fact: the transaction was a real one,
    /// it has ended with a commit, and the files that hold it are those at their paths. `commits` is set before the
    /// commit.
    async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
        commits: &AtomicBool,
    ) -> Result<T> {
        let options = TransactionOptions {
            // A deferred one that reads, then writes, fails as "locked" whatever the busy timeout.
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
                // SQLite may have rolled back by itself: then this fails.
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

    /// Notes the outcome of a write for the monitor of the storage.
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

    /// Number of the transaction that this task runs, once `set_commit_seq` has set it.
    pub(crate) fn commit_seq() -> Option<i64> {
        COMMIT_SEQ.try_with(Cell::get).ok().flatten()
    }

    /// Numbers the transaction that this task runs, for the changes that it records later.
    pub(crate) fn set_commit_seq(number: i64) {
        // Outside of `write` there is nothing to remember it.
        let _ = COMMIT_SEQ.try_with(|seq| seq.set(Some(number)));
    }

    /// Wakes up after this process has committed something. For the one reader of the feed.
    pub(crate) async fn committed(&self) {
        self.0.committed.notified().await;
    }

    /// Has the reader of the feed look again.
    pub(crate) fn wake_feed(&self) {
        self.0.committed.notify_one();
    }

    /// Wakes up when other processes are to be told of a commit.
    pub(crate) async fn to_announce(&self) {
        self.0.announce.notified().await;
    }
}
