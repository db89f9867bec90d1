//! Signals between the processes on one PostgreSQL. They may be lost, and are not needed for anything to be right.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, sqlx::postgres::PgListener};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Db;

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// Handles a signal on a channel, given its payload. `None` after a lost connection: signals may have been missed.
/// Signals of this process arrive too.
pub type SignalHandler = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// Listens on these channels over one connection until shutdown. A lost connection is opened again.
pub async fn listen(
    db: Db,
    handlers: Vec<(&'static str, SignalHandler)>,
    shutdown: CancellationToken,
) {
    let listening = async {
        loop {
            let pool = db.reader().get_postgres_connection_pool();
            if let Ok(mut listener) = PgListener::connect_with(pool).await
                && listener
                    .listen_all(handlers.iter().map(|(channel, _)| *channel))
                    .await
                    .is_ok()
            {
                // `None`: the connection was lost. It is made again by the next call.
                while let Ok(signal) = listener.try_recv().await {
                    for (channel, handler) in &handlers {
                        match &signal {
                            Some(signal) if signal.channel() == *channel => {
                                handler(Some(signal.payload()))
                            }
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

/// Sends a signal on a channel: less than 8,000 bytes. Not in the transaction that the signal is about, because signals
/// make commits wait for each other.
pub async fn notify(db: &Db, channel: &str, payload: &str) -> Result<(), DbErr> {
    let sql = "SELECT pg_notify($1, $2)";
    let values = [channel.into(), payload.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    db.reader().execute_raw(statement).await?;
    Ok(())
}
