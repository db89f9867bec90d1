//! Reaper: ends expired leases, overdue attempts and overdue jobs.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect, sea_query::Expr};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock,
    db::Db,
    entity::job::{Column, Entity},
    error::Result,
    jobs::{
        state::Move,
        store::{apply::Task, writer::JobWriter},
    },
    log::retry,
};

/// Shortest interval between two scans.
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// The interval is at least this multiple of the duration of a scan, to bound the load.
const LOAD_FACTOR: u32 = 20;

/// Longest interval between two scans, however long a scan takes.
const MAX_INTERVAL: Duration = Duration::from_secs(2);

/// Grace period before expired leases are rescued, after a start or a database outage: workers could not send
/// heartbeats.
const RESCUE_GRACE: Duration = Duration::from_secs(4);

/// Maximum number of jobs per query of a scan.
const MAX_JOBS_PER_QUERY: u64 = 500;

/// Overdue jobs.
struct OverdueJobs {
    /// Running jobs with expired leases.
    leases: Vec<Uuid>,
    /// Jobs with an exceeded attempt timeout or job deadline.
    timeouts: Vec<Uuid>,
}

/// Ends overdue jobs until shutdown.
pub(crate) async fn run(db: Db, writer: JobWriter, shutdown: CancellationToken) {
    let reaping = async {
        let mut rescue_from = Instant::now() + RESCUE_GRACE;
        let mut interval = MIN_INTERVAL;
        loop {
            sleep(interval).await;
            let started = Instant::now();
            match find_overdue(&db, clock::now(), started >= rescue_from).await {
                Ok(overdue) => {
                    let duration = started.elapsed();
                    interval = (duration * LOAD_FACTOR).clamp(MIN_INTERVAL, MAX_INTERVAL);
                    let is_full = overdue.leases.len().max(overdue.timeouts.len()) as u64 >= MAX_JOBS_PER_QUERY;
                    if end_overdue(&writer, overdue).await && is_full {
                        interval = Duration::ZERO;
                    }
                }
                Err(error) => {
                    retry::retrying(&error, "failed to read overdue jobs; retrying");
                    rescue_from = Instant::now() + RESCUE_GRACE;
                    interval = MIN_INTERVAL;
                }
            }
        }
    };
    shutdown.run_until_cancelled(reaping).await;
}

/// Reads the overdue jobs; with `rescue`, expired leases too. Statuses are literals in the statement, because partial
/// indexes do not serve bound parameters.
async fn find_overdue(db: &Db, now: DateTime<Utc>, rescue: bool) -> Result<OverdueJobs> {
    let has_passed = |column: Column| column.lte(now);
    let select = |condition: Condition| {
        Entity::find().select_only().column(Column::Id).filter(condition).limit(MAX_JOBS_PER_QUERY).into_tuple::<Uuid>()
    };
    let running = Condition::all().add(Expr::cust("status = 'running'"));
    let overdue = Condition::any().add(has_passed(Column::AttemptDeadlineAt)).add(has_passed(Column::DeadlineAt));
    let mut timeouts = select(running.clone().add(overdue)).all(db.reader()).await?;
    let queued = Condition::all().add(Expr::cust("status = 'queued'")).add(has_passed(Column::DeadlineAt));
    timeouts.extend(select(queued).all(db.reader()).await?);
    let leases = if rescue {
        // Rows older than the lease columns have NULL.
        let expired = Condition::any().add(has_passed(Column::LeaseExpiresAt)).add(Column::LeaseExpiresAt.is_null());
        select(running.add(expired)).all(db.reader()).await?
    } else {
        Vec::new()
    };
    Ok(OverdueJobs { leases, timeouts })
}

/// Ends overdue jobs. Returns true if every job was ended.
async fn end_overdue(writer: &JobWriter, overdue: OverdueJobs) -> bool {
    let timeouts = overdue.timeouts.into_iter().map(|id| (id, Move::Expire));
    let rescue = |id| (id, Move::Rescue { disconnected_lease: None });
    let rescues = overdue.leases.into_iter().map(rescue);
    let mut has_ended_all = true;
    let mut writes = Vec::new();
    for (id, job_move) in timeouts.chain(rescues) {
        let writer = writer.clone();
        writes.push(async move { writer.apply_task(Task(vec![(id, job_move)])).await });
    }
    let writes = futures_util::future::join_all(writes);
    match timeout(Duration::from_secs(30), writes).await {
        Ok(results) => {
            for result in results {
                // A job deleted in the meantime needs no end.
                if let Err(error) = result
                    && !matches!(error, crate::error::Error::NotFound { .. })
                {
                    retry::retrying(&error, "failed to end an overdue job; retrying");
                    has_ended_all = false;
                }
            }
        }
        Err(_) => has_ended_all = false,
    }
    has_ended_all
}
