//! Open transactions of the PostgreSQL cluster that block the change feed.
//!
//! Changes are delivered in transaction order. An open transaction that has written, in any
//! database of the cluster, blocks all later changes, because it may still commit earlier changes.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use sea_orm::{DbBackend, FromQueryResult, Statement};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{db::Db, error::Result, reminder::Reminder};

/// Pause between two queries of the open transactions.
const INTERVAL: Duration = Duration::from_secs(2);

/// Age from which a transaction is logged.
const WARN_FROM: Duration = Duration::from_secs(10);

/// Age from which health reports a blocked feed.
pub const UNHEALTHY_FROM: Duration = Duration::from_mins(1);

/// Open transactions that have written. Sessions of other roles hide their start time, but not
/// their transaction id.
const OPEN: &str = "\
    SELECT 'pid ' || pid AS name, coalesce(datname::text, '') AS database, \
        coalesce(application_name, '') AS application, backend_xid::text AS xid, \
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds \
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
    UNION ALL \
    SELECT 'prepared transaction ' || gid, database::text, owner::text, transaction::text, \
        extract(epoch FROM clock_timestamp() - prepared)::float8 \
    FROM pg_prepared_xacts";

/// Open transaction that has written.
#[derive(Debug, Clone)]
pub struct Holder {
    name: String,
    database: String,
    application: String,
    /// Age of the transaction: the server's value or the time since first observed, whichever is
    /// longer.
    pub age: Duration,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            database,
            application,
            age,
        } = self;
        let seconds = age.as_secs();
        write!(
            f,
            "{name}, database `{database}`, application `{application}`, open for {seconds} s"
        )
    }
}

#[derive(Debug, FromQueryResult)]
struct Open {
    name: String,
    database: String,
    application: String,
    xid: String,
    seconds: Option<f64>,
}

/// Watches open transactions until shutdown, and calls `report` with the oldest above ten seconds.
/// Returns at once on SQLite, which has a single writer.
pub async fn watch(db: Db, tell: impl Fn(Option<Holder>), shutdown: CancellationToken) {
    if db.backend() != DbBackend::Postgres {
        return;
    }
    let watching = async {
        let mut first_seen = HashMap::new();
        let mut reminder = Reminder::default();
        loop {
            // An unreachable database has no open transactions, and is reported elsewhere.
            let found = look(&db, &mut first_seen).await.unwrap_or_default();
            let holder = found.filter(|holder| holder.age >= WARN_FROM);
            match &holder {
                Some(holder) if reminder.is_due() => tracing::warn!(
                    transaction = %holder,
                    "an open transaction holds the change feed back: no change is delivered until it ends"
                ),
                None if reminder.ended() => {
                    tracing::info!("the change feed is no longer held back");
                }
                _ => {}
            }
            tell(holder);
            sleep(INTERVAL).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

/// Returns the oldest open transaction. `first_seen` maps transaction ids to the time of the first
/// observation.
async fn look(db: &Db, first_seen: &mut HashMap<String, Instant>) -> Result<Option<Holder>> {
    let open = Statement::from_string(DbBackend::Postgres, OPEN);
    let open = Open::find_by_statement(open).all(db.reader()).await?;
    first_seen.retain(|xid, _| open.iter().any(|open| open.xid == *xid));
    let now = Instant::now();
    let holder = |open: Open| {
        let seen = now - *first_seen.entry(open.xid).or_insert(now);
        let told = open
            .seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Holder {
            name: open.name,
            database: open.database,
            application: open.application,
            age: told.unwrap_or_default().max(seen),
        }
    };
    Ok(open.into_iter().map(holder).max_by_key(|holder| holder.age))
}
