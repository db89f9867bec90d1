//! Cancels the query of an abandoned scan within the database.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sea_orm::sqlx::{self, Connection, Executor, PgConnection, PgPool, Postgres, Sqlite, pool::PoolOptions};
use tokio::time::{Instant, timeout};

use crate::db::{renewal::Renewal, timeouts::IDLE_BEFORE_TEST};

/// Number of SQLite virtual machine instructions between two cancellation checks: less than 1 ms.
const OPERATIONS_PER_CHECK: i32 = 10_000;

/// Time allowed for a PostgreSQL query to end after its scan, before cancellation.
const END_TIMEOUT: Duration = Duration::from_millis(100);

/// Wait after a cancellation before the next attempt, and maximum number of attempts.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_CANCEL_ATTEMPTS: usize = 10;

/// Time after the deadline of a call at which the database ends the query.
const DEADLINE_MARGIN: Duration = Duration::from_secs(1);

/// Cancellation state of the connection of a slot. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(in crate::db) struct QueryCanceller(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// True from the end of a scan until the connection is reused; SQLite checks the flag during a
    /// query.
    is_abandoned: AtomicBool,
    /// Deadline of the scan.
    deadline: Mutex<Option<Instant>>,
    /// Process id of the PostgreSQL backend that serves the connection.
    pid: AtomicI32,
    /// True if this program has set a `statement_timeout` on the connection.
    has_statement_timeout: AtomicBool,
    /// Number of cancelled queries.
    stopped: AtomicU64,
}

impl QueryCanceller {
    /// Begins a scan with this deadline.
    pub(super) fn begin(&self, deadline: Option<Instant>) {
        self.set_deadline(deadline);
    }

    /// Ends a scan: a query still running on the connection is to be cancelled.
    pub(super) fn abandon(&self) {
        self.set_deadline(None);
        self.0.is_abandoned.store(true, Ordering::Release);
    }

    /// Returns the number of cancelled queries.
    pub(super) fn stopped(&self) -> u64 {
        self.0.stopped.load(Ordering::Relaxed)
    }

    /// Attaches the canceller to a SQLite pool of one connection, by a progress handler.
    pub(in crate::db) fn attach_to_sqlite(self, options: PoolOptions<Sqlite>) -> PoolOptions<Sqlite> {
        let (opened, reused) = (self.clone(), self);
        options
            .after_connect(move |connection, _| {
                let canceller = opened.clone();
                Box::pin(async move {
                    canceller.renew();
                    let mut handle = connection.lock_handle().await?;
                    handle.set_progress_handler(OPERATIONS_PER_CHECK, move || canceller.may_continue());
                    Ok(())
                })
            })
            .before_acquire(move |_, _| {
                // The pool holds the connection again, so the previous query has ended.
                reused.renew();
                Box::pin(async { Ok(true) })
            })
    }

    /// Attaches the canceller to a PostgreSQL pool of one connection.
    ///
    /// A connection released during a query does not return to the pool. The query is cancelled
    /// over `others` and the connection is closed, so that a late cancellation cannot hit another
    /// query.
    pub(in crate::db) fn attach_to_postgres(
        self,
        options: PoolOptions<Postgres>,
        others: &PgPool,
        renewal: &Renewal,
    ) -> PoolOptions<Postgres> {
        let (opened, reused, released) = (self.clone(), self.clone(), self);
        let (others, renewal) = (others.clone(), renewal.clone());
        options
            .after_connect(move |connection, _| {
                let canceller = opened.clone();
                Box::pin(async move {
                    let query = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
                    let pid = query.fetch_one(&mut *connection).await?;
                    canceller.0.pid.store(pid, Ordering::Release);
                    canceller.0.has_statement_timeout.store(false, Ordering::Release);
                    canceller.set_statement_timeout(connection).await
                })
            })
            .before_acquire(move |connection, meta| {
                let (canceller, is_new) = (reused.clone(), renewal.allows(meta.age));
                Box::pin(async move {
                    if is_new && meta.idle_for >= IDLE_BEFORE_TEST {
                        connection.ping().await?;
                    }
                    if is_new {
                        canceller.set_statement_timeout(connection).await?;
                    }
                    Ok(is_new)
                })
            })
            .after_release(move |connection, _| {
                let (canceller, others) = (released.clone(), others.clone());
                Box::pin(async move { Ok(canceller.finish_query(connection, &others).await) })
            })
    }

    fn set_deadline(&self, deadline: Option<Instant>) {
        *self.0.deadline.lock() = deadline;
    }

    fn deadline(&self) -> Option<Instant> {
        *self.0.deadline.lock()
    }

    fn renew(&self) {
        self.0.is_abandoned.store(false, Ordering::Release);
    }

    /// Returns true if the running query may continue.
    fn may_continue(&self) -> bool {
        let is_late = || {
            let deadline = self.deadline();
            deadline.is_some_and(|deadline| Instant::now() > deadline + DEADLINE_MARGIN)
        };
        let may_continue = !self.0.is_abandoned.load(Ordering::Acquire) && !is_late();
        if !may_continue {
            self.0.stopped.fetch_add(1, Ordering::Relaxed);
        }
        may_continue
    }

    /// Sets a `statement_timeout` shortly after the scan's deadline, in case the query is not
    /// cancelled.
    async fn set_statement_timeout(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let limit = match self.deadline() {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now()) + DEADLINE_MARGIN;
                // The maximum of the PostgreSQL setting.
                let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
                format!("SET statement_timeout = {left}")
            }
            None if self.0.has_statement_timeout.load(Ordering::Acquire) => "RESET statement_timeout".into(),
            None => return Ok(()),
        };
        let has_statement_timeout = self.deadline().is_some();
        self.0.has_statement_timeout.store(has_statement_timeout, Ordering::Release);
        connection.execute(sqlx::AssertSqlSafe(limit)).await?;
        Ok(())
    }

    /// Returns true if a released connection can be reused: its query and its transaction have
    /// ended. A running query is cancelled first.
    async fn finish_query(&self, connection: &mut PgConnection, others: &PgPool) -> bool {
        let has_answered = {
            // The ping is answered after all earlier queries.
            let mut answer = pin!(connection.ping());
            if let Ok(answer) = timeout(END_TIMEOUT, &mut answer).await {
                answer.is_ok()
            } else {
                self.0.stopped.fetch_add(1, Ordering::Relaxed);
                for _ in 0..MAX_CANCEL_ATTEMPTS {
                    self.cancel(others).await;
                    if timeout(CANCEL_TIMEOUT, &mut answer).await.is_ok() {
                        break;
                    }
                }
                false
            }
        };
        has_answered && !connection.is_in_transaction()
    }

    async fn cancel(&self, others: &PgPool) {
        let cancel = sqlx::query("SELECT pg_cancel_backend($1)").bind(self.0.pid.load(Ordering::Acquire));
        if let Err(error) = cancel.execute(others).await {
            tracing::debug!(%error, "the query of an abandoned scan could not be cancelled");
        }
    }
}
