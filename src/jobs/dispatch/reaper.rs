//! Ends what has taken too long: leases whose workers are not heard of any more, attempts and jobs that are
//! late.

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
        store::{apply::Task, writer::Desk},
    },
};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// It looks no more often than this many times as long as it takes.
const SHARE: u32 = 20;

/// But it looks as often as this, whatever it takes.
const AT_LEAST_EVERY: Duration = Duration::from_secs(2);

/// How long workers have to come back after the server has started, or its database has been away: they could not be
/// heard of.
const PATIENCE: Duration = Duration::from_secs(4);

/// How many jobs it ends at a time.
const CHUNK: u64 = 500;

/// What is late.
struct Late {
    /// Running jobs whose leases have expired.
    leases: Vec<Uuid>,
    /// Jobs whose attempt, or which themselves, have taken too long.
    times: Vec<Uuid>,
}

/// Ends what has taken too long until shutdown.
pub(crate) async fn run(db: Db, desk: Desk, shutdown: CancellationToken) {
    let reaping = async {
        let mut patient_until = Instant::now() + PATIENCE;
        let mut every = EVERY;
        loop {
            sleep(every).await;
            let begun = Instant::now();
            match look(&db, clock::now(), begun >= patient_until).await {
                Ok(late) => {
                    let took = begun.elapsed();
                    every = (took * SHARE).clamp(EVERY, AT_LEAST_EVERY);
                    let full = late.leases.len().max(late.times.len()) as u64 >= CHUNK;
                    if end(&desk, late).await && full {
                        every = Duration::ZERO;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "late jobs cannot be looked for");
                    patient_until = Instant::now() + PATIENCE;
                    every = EVERY;
                }
            }
        }
    };
    shutdown.run_until_cancelled(reaping).await;
}

/// Statuses are written out, for otherwise their partial indexes do not serve.
async fn look(db: &Db, now: DateTime<Utc>, rescue: bool) -> Result<Late> {
    let has_passed = |column: Column| column.lte(now);
    let select = |condition: Condition| {
        Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(condition)
            .limit(CHUNK)
            .into_tuple::<Uuid>()
    };
    let running = Condition::all().add(Expr::cust("status = 'running'"));
    let late = Condition::any()
        .add(has_passed(Column::AttemptDeadlineAt))
        .add(has_passed(Column::DeadlineAt));
    let mut times = select(running.clone().add(late)).all(db.reader()).await?;
    let queued = Condition::all()
        .add(Expr::cust("status = 'queued'"))
        .add(has_passed(Column::DeadlineAt));
    times.extend(select(queued).all(db.reader()).await?);
    let leases = if rescue {
        // NULL: of before there were leases.
        let expired = Condition::any()
            .add(has_passed(Column::LeaseExpiresAt))
            .add(Column::LeaseExpiresAt.is_null());
        select(running.add(expired)).all(db.reader()).await?
    } else {
        Vec::new()
    };
    Ok(Late { leases, times })
}

/// Returns whether all of it could be ended.
async fn end(desk: &Desk, late: Late) -> bool {
    let times = late.times.into_iter().map(|id| (id, Move::Expire));
    let leases = late.leases.into_iter();
    let leases = leases.map(|id| (id, Move::Rescue { gone: None }));
    let mut all = true;
    let mut ending = Vec::new();
    for (id, what) in times.chain(leases) {
        let desk = desk.clone();
        ending.push(async move { desk.carry_out_all(Task(vec![(id, what)])).await });
    }
    let ending = futures_util::future::join_all(ending);
    match timeout(Duration::from_secs(30), ending).await {
        Ok(ended) => {
            for ended in ended {
                // One that was deleted meanwhile is not late any more.
                if let Err(error) = ended
                    && !matches!(error, crate::error::Error::NotFound { .. })
                {
                    tracing::debug!(%error, "a late job could not be ended");
                    all = false;
                }
            }
        }
        Err(_) => all = false,
    }
    all
}
