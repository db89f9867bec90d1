//! Signals between processes on one PostgreSQL. Signals may be lost, and correctness never depends
//! on them.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, sqlx::postgres::PgListener};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::handle::Db;

/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// Handler of signals on a channel, called with the payload. `None` after a lost connection means
/// that signals may be missing. Signals of this process arrive too.
pub type SignalHandler = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// Listens on these channels over one connection until shutdown, and reconnects after a loss.
pub async fn listen(db: Db, handlers: Vec<(&'static str, SignalHandler)>, shutdown: CancellationToken) {
    let listening = async {
        loop {
            let pool = db.reader().get_postgres_connection_pool();
            if let Ok(mut listener) = PgListener::connect_with(pool).await
                && listener.listen_all(handlers.iter().map(|(channel, _)| *channel)).await.is_ok()
            {
                // `None` means a lost connection. The next call reconnects.
                while let Ok(signal) = listener.try_recv().await {
                    for (channel, handler) in &handlers {
                        match &signal {
                            Some(signal) if signal.channel() == *channel => handler(Some(signal.payload())),
                            Some(_) => {}
                            None => handler(None),
                        }
                    }
                }
            }
            sleep(RETRY).await;
        }
    };
    shutdown.run_until_cancelled(listening).await;
}

/// Sends a signal with a payload of less than 8,000 bytes. Call this after the commit, because a
/// signal within a transaction serializes commits.
pub async fn notify(db: &Db, channel: &str, payload: &str) -> Result<(), DbErr> {
    let sql = "SELECT pg_notify($1, $2)";
    let values = [channel.into(), payload.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    db.reader().execute_raw(statement).await?;
    Ok(())
}
