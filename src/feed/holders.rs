//! Transactions of the PostgreSQL cluster that hold the change feed back.
//!
//! Changes are delivered in the order of their transactions, so none is delivered while an older transaction that
//! writes is still open, in any database of the cluster: it may have changes of its own to commit.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use sea_orm::{DbBackend, FromQueryResult, Statement};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{db::Db, error::Result, reminder::Reminder};

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Age from which a transaction is named in the log.
const WARN_FROM: Duration = Duration::from_secs(10);

/// Age from which health reports that the feed is held back.
pub const UNHEALTHY_FROM: Duration = Duration::from_mins(1);

/// The open transactions that have written. Sessions of other roles hide since when they are open, but not their
/// transaction ids.
const OPEN: &str = "\
    SELECT 'pid ' || pid AS name, coalesce(datname::text, '') AS database, \
        coalesce(application_name, '') AS application, backend_xid::text AS xid, \
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds \
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
    UNION ALL \
    SELECT 'prepared transaction ' || gid, database::text, owner::text, transaction::text, \
        extract(epoch FROM clock_timestamp() - prepared)::float8 \
    FROM pg_prepared_xacts";

/// A transaction that is open and has written.
#[derive(Debug, Clone)]
pub struct Holder {
    name: String,
    database: String,
    application: String,
    /// Time for which the transaction has been open, as far as it can be known.
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

/// Watches the open transactions until shutdown, and calls `tell` with the oldest one that has been open for a while.
/// For PostgreSQL; returns at once on SQLite, which has one writer at a time.
pub async fn watch(db: Db, tell: impl Fn(Option<Holder>), shutdown: CancellationToken) {
    if db.backend() != DbBackend::Postgres {
        return;
    }
    let watching = async {
        let mut first_seen = HashMap::new();
        let mut reminder = Reminder::default();
        loop {
            // A database that is away has no open transactions, and is reported elsewhere.
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

/// The oldest open transaction. `first_seen` keeps when each was met first, by its id.
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
