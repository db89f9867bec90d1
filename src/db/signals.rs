//! Signals between the processes on one PostgreSQL. They may be lost, and are not needed for anything to be right.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, sqlx::postgres::PgListener};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Db;

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// Hears the signals on a channel, of this process too. `None`: some may have been lost.
pub type Ear = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// Hears what is said on these channels until shutdown, over one connection. A lost one is made again.
pub async fn listen(db: Db, ears: Vec<(&'static str, Ear)>, shutdown: CancellationToken) {
    let listening = async {
        loop {
            let pool = db.reader().get_postgres_connection_pool();
            if let Ok(mut listener) = PgListener::connect_with(pool).await
                && listener
                    .listen_all(ears.iter().map(|(channel, _)| *channel))
                    .await
                    .is_ok()
            {
                // `None`: the connection was lost. It is made again by the next call.
                while let Ok(said) = listener.try_recv().await {
                    for (channel, ear) in &ears {
                        match &said {
                            Some(said) if said.channel() == *channel => ear(Some(said.payload())),
                            Some(_) => {}
                            None => ear(None),
                        }
                    }
                }
            }
            sleep(RETRY).await;
        }
    };
    shutdown.run_until_cancelled(listening).await;
}

/// Says something on a channel: less than 8,000 bytes. Not in the transaction that it is about, for
/// signals make commits wait for each other.
pub async fn say(db: &Db, channel: &str, payload: &str) -> Result<(), DbErr> {
    let sql = "SELECT pg_notify($1, $2)";
    let values = [channel.into(), payload.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    db.reader().execute_raw(statement).await?;
    Ok(())
}
