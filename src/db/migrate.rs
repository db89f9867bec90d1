//! Schema migrations, run by one process at a time.

use std::time::Duration;

use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, sqlx};
use tokio::time::{Instant, sleep};

use super::{connect::APPLICATION_NAME, errors::to_db_err, handle::Db};

/// Advisory lock for migrations on PostgreSQL; the number must be unique among the advisory locks
/// of the database.
const MIGRATION_LOCK: i64 = 0x7761_7463_6870;

/// Prefix of the names of migrations from before version 0.1, with the quote that SeaORM puts before a name.
const BEFORE_0_1: &str = "'m20261124_";

/// Time allowed for PostgreSQL to end the backends of a finished process.
const BACKEND_EXIT_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause between two queries of the backends.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Db {
    /// Applies all pending migrations. Several processes may call this at once.
    pub async fn migrate_up(&self) -> Result<(), DbErr> {
        self.with_migration_lock(|db| async move { Migrator::up(&db, None).await }).await
    }

    /// Reverts the last `steps` migrations. Call [`Self::ensure_no_servers`] first.
    pub async fn migrate_down(&self, steps: u32) -> Result<(), DbErr> {
        self.with_migration_lock(move |db| async move { Migrator::down(&db, Some(steps)).await }).await
    }

    /// Returns every migration by name, and true if applied. Writes nothing.
    pub async fn migration_status(&self) -> Result<Vec<(String, bool)>, DbErr> {
        let pending = Migrator::get_pending_migrations_read_only(self.0.reader.pool()).await.map_err(explain)?;
        let pending_names: Vec<_> = pending.iter().map(|migration| migration.name().to_string()).collect();
        let status = |name: String| {
            let applied = !pending_names.contains(&name);
            (name, applied)
        };
        Ok(Migrator::migrations().iter().map(|migration| status(migration.name().to_string())).collect())
    }

    /// Fails if servers use this PostgreSQL database, and names the first server: a schema must not
    /// be reverted under a running server. On SQLite the file lock excludes other processes.
    pub async fn ensure_no_servers(&self) -> Result<(), DbErr> {
        if self.0.backend != DbBackend::Postgres {
            return Ok(());
        }
        let deadline = Instant::now() + BACKEND_EXIT_TIMEOUT;
        loop {
            match self.find_server().await? {
                None => return Ok(()),
                Some(server) if Instant::now() >= deadline => {
                    let problem = format!("the database is in use by a server at {server}");
                    return Err(DbErr::Custom(problem));
                }
                Some(_) => sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Returns a readable description of the first server that uses this PostgreSQL database.
    async fn find_server(&self) -> Result<Option<String>, DbErr> {
        let sql = "SELECT pid, host(client_addr) AS host, backend_start::text AS since FROM pg_stat_activity \
            WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid() \
            ORDER BY backend_start LIMIT 1";
        let servers = Statement::from_sql_and_values(DbBackend::Postgres, sql, [APPLICATION_NAME.into()]);
        let Some(row) = self.0.reader.query_one_raw(servers).await? else {
            return Ok(None);
        };
        let pid: i32 = row.try_get("", "pid")?;
        let host: Option<String> = row.try_get("", "host")?;
        let since: String = row.try_get("", "since")?;
        let host = host.unwrap_or_else(|| "this machine".into());
        Ok(Some(format!("{host} (PostgreSQL backend {pid}, since {since})")))
    }

    /// Runs migrations under a lock for which other processes wait.
    async fn with_migration_lock<F>(&self, migrate: impl FnOnce(DatabaseConnection) -> F) -> Result<(), DbErr>
    where
        F: Future<Output = Result<(), DbErr>>,
    {
        if self.0.backend == DbBackend::Sqlite {
            return migrate(self.0.writer.clone()).await.map_err(explain);
        }
        // The lock has a separate connection, and is released with the connection in every case.
        let pool = self.0.writer.get_postgres_connection_pool();
        let mut connection = pool.acquire().await.map_err(to_db_err)?.detach();
        let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK);
        lock.execute(&mut connection).await.map_err(to_db_err)?;
        let result = migrate(self.0.writer.clone()).await;
        drop(connection);
        result.map_err(explain)
    }
}

/// Replaces the list of missing migrations that SeaORM gives for a database from before version 0.1.
fn explain(error: DbErr) -> DbErr {
    if let DbErr::Custom(missing) = &error
        && missing.contains(BEFORE_0_1)
    {
        let problem = "the database was made by a version before 0.1 and can't be upgraded; use a new database";
        return DbErr::Custom(problem.to_string());
    }
    error
}
