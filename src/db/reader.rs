//! Reads outside of a transaction, with errors that distinguish a busy database from an unreachable
//! one.

use std::{pin::Pin, sync::Arc, time::Duration};

use sea_orm::{
    AccessMode, ConnAcquireErr, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    IsolationLevel, QueryResult, QueryStream, Statement, StreamTrait, TransactionOptions, TransactionTrait,
    sqlx::{self, ConnectOptions as _, Connection, PgPool, postgres::PgConnectOptions},
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};

use super::storage::Storage;
use crate::error::{self, Result};

/// Maximum duration of a connection attempt before the database counts as unreachable.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which the result of a connection attempt is cached.
const PROBE_TTL: Duration = Duration::from_secs(1);

/// SQLSTATE of a reachable PostgreSQL whose connections are all in use.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// Connections for reads outside of a transaction.
#[derive(Debug, Clone)]
pub struct Reader {
    pool: DatabaseConnection,
    reachability: Reachability,
}

/// Reachability of the database, checked after a pool timeout. Clones share the state.
#[derive(Debug, Clone)]
pub(super) struct Reachability(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    storage: Storage,
    /// Address of PostgreSQL; `None` on SQLite.
    server: Option<Arc<PgConnectOptions>>,
    /// Time and result of the newest connection attempt.
    last_probe: AsyncMutex<Option<(Instant, bool)>>,
}

impl Reader {
    pub(super) fn new(pool: DatabaseConnection, reachability: Reachability) -> Self {
        Self { pool, reachability }
    }

    /// Returns the plain pool, whose errors do not distinguish a busy database from an unreachable
    /// one.
    pub(super) fn pool(&self) -> &DatabaseConnection {
        &self.pool
    }

    /// Returns the pool of PostgreSQL.
    pub(crate) fn get_postgres_connection_pool(&self) -> &PgPool {
        self.pool.get_postgres_connection_pool()
    }

    /// Begins a read-only transaction with a consistent snapshot.
    pub(super) async fn snapshot(&self) -> Result<DatabaseTransaction> {
        let postgres = self.pool.get_database_backend() == DbBackend::Postgres;
        // On SQLite every transaction reads a consistent snapshot.
        let options = TransactionOptions {
            isolation_level: postgres.then_some(IsolationLevel::RepeatableRead),
            access_mode: postgres.then_some(AccessMode::ReadOnly),
            ..Default::default()
        };
        let begun = self.pool.begin_with_options(options).await;
        Ok(self.classify_result(begun).await?)
    }

    async fn classify_result<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        match result {
            Ok(result) => Ok(result),
            Err(error) => Err(self.reachability.classify(error).await),
        }
    }
}

#[tonic::async_trait]
impl ConnectionTrait for Reader {
    fn get_database_backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let result = self.pool.execute_raw(statement).await;
        self.classify_result(result).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let result = self.pool.execute_unprepared(sql).await;
        self.classify_result(result).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let row = self.pool.query_one_raw(statement).await;
        self.classify_result(row).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.pool.query_all_raw(statement).await;
        self.classify_result(rows).await
    }
}

impl StreamTrait for Reader {
    type Stream<'a> = QueryStream;

    fn get_database_backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    fn stream_raw<'a>(
        &'a self,
        statement: Statement,
    ) -> Pin<Box<dyn Future<Output = Result<Self::Stream<'a>, DbErr>> + 'a + Send>> {
        Box::pin(async move {
            let rows = self.pool.stream_raw(statement).await;
            self.classify_result(rows).await
        })
    }
}

impl Reachability {
    /// Creates the reachability of the database of these connections.
    pub(super) fn new(pool: &DatabaseConnection, storage: Storage) -> Self {
        let is_postgres = pool.get_database_backend() == DbBackend::Postgres;
        let server = is_postgres.then(|| pool.get_postgres_connection_pool().connect_options());
        Self(Arc::new(Shared { storage, server, last_probe: AsyncMutex::default() }))
    }

    /// Converts a pool timeout to the error of a busy database if the database is reachable. Other
    /// errors are returned unchanged.
    pub(super) async fn classify(&self, error: DbErr) -> DbErr {
        let has_timed_out = matches!(error, DbErr::ConnectionAcquire(ConnAcquireErr::Timeout));
        if has_timed_out && self.is_reachable().await {
            return error::busy();
        }
        error
    }

    /// Returns true if the database is reachable. PostgreSQL is contacted at most once a second,
    /// over a new connection.
    pub(super) async fn is_reachable(&self) -> bool {
        let Some(server) = &self.0.server else {
            return self.0.storage.fault().is_none();
        };
        let mut last_probe = self.0.last_probe.lock().await;
        if let Some((probed_at, is_reachable)) = *last_probe
            && probed_at.elapsed() < PROBE_TTL
        {
            return is_reachable;
        }
        let is_reachable = match timeout(PROBE_TIMEOUT, server.connect()).await {
            Ok(Ok(connection)) => {
                // A failed close of the test connection has no effect.
                let _ = connection.close().await;
                true
            }
            Ok(Err(sqlx::Error::Database(error))) => error.code().as_deref() == Some(TOO_MANY_CONNECTIONS),
            Ok(Err(_)) | Err(_) => false,
        };
        *last_probe = Some((Instant::now(), is_reachable));
        is_reachable
    }
}
