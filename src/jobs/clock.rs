//! The time by which leases and jobs are judged: that of the database, for several processes share it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    db::Db,
    entity,
    error::{Error, Result},
};

/// How often the clocks are compared.
const EVERY: Duration = Duration::from_secs(10);

/// Differences up to this are those of the comparison.
const NOISE: i64 = 2_000; // µs

/// A clock that goes as that of the database does. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<AtomicI64>);

impl Clock {
    /// The time, in whole microseconds.
    pub(super) fn now(&self) -> DateTime<Utc> {
        entity::now() + TimeDelta::microseconds(self.0.load(Ordering::Relaxed))
    }

    /// Compares this process' clock with that of the database. On SQLite they are the same.
    pub(super) async fn set(&self, db: &Db) -> Result<()> {
        if db.backend() != DbBackend::Postgres {
            return Ok(());
        }
        let sql = "SELECT clock_timestamp() AS now";
        let before = entity::now();
        let row = db
            .reader()
            .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
            .await?
            .ok_or_else(|| Error::internal("a query without a row"))?;
        let after = entity::now();
        let there: DateTime<Utc> = row.try_get("", "now")?;
        let here = before + (after - before) / 2;
        let ahead = (there - here).num_microseconds().unwrap_or_default();
        let noise = NOISE.max((after - before).num_microseconds().unwrap_or_default());
        let last = self.0.load(Ordering::Relaxed);
        if (ahead - last).abs() > noise {
            self.0.store(ahead, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Compares them now and then, until shutdown.
    pub(super) async fn follow(self, db: Db, shutdown: CancellationToken) {
        let following = async {
            loop {
                sleep(EVERY).await;
                if let Err(error) = self.set(&db).await {
                    tracing::debug!(%error, "the clock of the database cannot be read");
                }
            }
        };
        shutdown.run_until_cancelled(following).await;
    }
}
