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

use crate::{db::Db, error::Result, log::reminder::Reminder};

/// Pause between two queries of the open transactions.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Age from which a transaction is logged.
const WARN_AGE: Duration = Duration::from_secs(10);

/// Age from which health reports a blocked feed.
pub const UNHEALTHY_AGE: Duration = Duration::from_mins(1);

/// Open transactions that have written. Sessions of other roles hide their start time, but not
/// their transaction id.
const OPEN_TRANSACTIONS: &str = "\
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
pub struct Blocker {
    name: String,
    database: String,
    application: String,
    /// Age of the transaction: the server's value or the time since first observed, whichever is
    /// longer.
    pub age: Duration,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, database, application, age } = self;
        let seconds = age.as_secs();
        write!(f, "{name}, database `{database}`, application `{application}`, open for {seconds} s")
    }
}

#[derive(Debug, FromQueryResult)]
struct OpenTransaction {
    name: String,
    database: String,
    application: String,
    xid: String,
    seconds: Option<f64>,
}

/// Watches open transactions until shutdown, and calls `report` with the oldest above ten seconds.
/// Returns at once on SQLite, which has a single writer.
pub async fn watch(db: Db, report: impl Fn(Option<Blocker>), shutdown: CancellationToken) {
    if db.backend() != DbBackend::Postgres {
        return;
    }
    let watching = async {
        let mut first_seen = HashMap::new();
        let mut reminder = Reminder::default();
        loop {
            // An unreachable database has no open transactions, and is reported elsewhere.
            let oldest = find_oldest(&db, &mut first_seen).await.unwrap_or_default();
            let blocker = oldest.filter(|blocker| blocker.age >= WARN_AGE);
            match &blocker {
                Some(blocker) if reminder.is_due() => tracing::warn!(
                    transaction = %blocker,
                    "an open transaction blocks the change feed; no change is delivered until the transaction ends"
                ),
                None if reminder.ended() => {
                    tracing::info!("the change feed is no longer blocked");
                }
                _ => {}
            }
            report(blocker);
            sleep(CHECK_INTERVAL).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

/// Returns the oldest open transaction. `first_seen` maps transaction ids to the time of the first
/// observation.
async fn find_oldest(db: &Db, first_seen: &mut HashMap<String, Instant>) -> Result<Option<Blocker>> {
    let statement = Statement::from_string(DbBackend::Postgres, OPEN_TRANSACTIONS);
    let open = OpenTransaction::find_by_statement(statement).all(db.reader()).await?;
    first_seen.retain(|xid, _| open.iter().any(|transaction| transaction.xid == *xid));
    let now = Instant::now();
    let blocker = |transaction: OpenTransaction| {
        let observed_age = now - *first_seen.entry(transaction.xid).or_insert(now);
        let reported_age = transaction.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Blocker {
            name: transaction.name,
            database: transaction.database,
            application: transaction.application,
            age: reported_age.unwrap_or_default().max(observed_age),
        }
    };
    Ok(open.into_iter().map(blocker).max_by_key(|blocker| blocker.age))
}
