//! Repairs times stored by a clock that was ahead.
//!
//! Every row holds the time of its last write. If that time lies in the future, times derived from
//! it are moved back by the same amount.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::Expr,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    alerts::silences::LiveSilences,
    clock::{self, now},
    db::Db,
    entity::{delivery, job, notification_channel},
    error::Result,
};

/// Maximum number of rows per query.
const MAX_ROWS_PER_QUERY: u64 = 500;

/// Tolerance: smaller differences are not repaired.
const TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// Repairs stored times at the start and after every clock step, until shutdown.
pub(super) async fn follow(db: Db, silences: LiveSilences, shutdown: CancellationToken) {
    let mut changes = clock::changes();
    let following = async {
        loop {
            match repair_all(&db).await {
                Ok(0) => {}
                Ok(repaired) => tracing::warn!(
                    mended = repaired,
                    "times that a wrong clock had stored in the future were moved back"
                ),
                Err(error) => {
                    tracing::warn!(%error, "times in the future could not be moved back");
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
            // Silences that had ended by the wrong clock are in force again.
            if let Err(error) = silences.reload().await {
                tracing::warn!(%error, "silences could not be reloaded");
            }
        }
    };
    shutdown.run_until_cancelled(following).await;
}

/// Repairs all tables. Returns the number of changed rows.
async fn repair_all(db: &Db) -> Result<u64> {
    Ok(repair_queued_jobs(db).await? + repair_running_jobs(db).await? + repair_deliveries(db).await?)
}

/// Repairs jobs queued in the future, for immediate start or for a retry. A start time set by a
/// client is kept.
async fn repair_queued_jobs(db: &Db) -> Result<u64> {
    let (mut repaired, mut last) = (0, Uuid::nil());
    loop {
        let limit = now() + TOLERANCE;
        let rows = job::Entity::find()
            .filter(job::Column::Id.gt(last))
            .filter(Expr::cust("status = 'queued'"))
            .filter(job::Column::ScheduledAt.gt(limit))
            .filter(
                Condition::any()
                    .add(
                        Condition::all()
                            .add(job::Column::TransitionedAt.gt(limit))
                            .add(job::Column::NextRetryAt.is_not_null()),
                    )
                    .add(Expr::cust("scheduled_at <= coalesce(transitioned_at, created_at)")),
            )
            .order_by_asc(job::Column::Id)
            .limit(MAX_ROWS_PER_QUERY)
            .all(db.reader())
            .await?;
        for job in &rows {
            last = job.id;
            let origin = job.transitioned_at.unwrap_or(job.created_at);
            let Some(scheduled_at) = job.scheduled_at else {
                continue;
            };
            let shifted = shift(scheduled_at, origin);
            let update = job::Entity::update_many()
                .col_expr(job::Column::ScheduledAt, shifted.into())
                .col_expr(job::Column::TransitionedAt, job.transitioned_at.map(|at| at.min(now())).into())
                .col_expr(job::Column::NextRetryAt, job.next_retry_at.map(|_| shifted).into())
                .filter(job::Column::Id.eq(job.id))
                .filter(job::Column::ScheduledAt.eq(scheduled_at))
                .filter(Expr::cust("status = 'queued'"));
            repaired += db.write(async |tx| Ok(update.clone().exec(tx).await?.rows_affected)).await?;
        }
        if (rows.len() as u64) < MAX_ROWS_PER_QUERY {
            return Ok(repaired);
        }
    }
}

/// Repairs jobs assigned to workers in the future.
async fn repair_running_jobs(db: &Db) -> Result<u64> {
    let mut repaired = 0;
    loop {
        let limit = now() + TOLERANCE;
        let rows = job::Entity::find()
            .filter(Expr::cust("status = 'running'"))
            .filter(job::Column::HeartbeatAt.gt(limit))
            .order_by_asc(job::Column::Id)
            .limit(MAX_ROWS_PER_QUERY)
            .all(db.reader())
            .await?;
        for job in &rows {
            let Some(heartbeat_at) = job.heartbeat_at else {
                continue;
            };
            let expires_at = job.lease_expires_at.map(|at| shift(at, heartbeat_at));
            let started_at = job.started_at.unwrap_or(heartbeat_at);
            let deadline_at = job.attempt_deadline_at.map(|at| shift(at, started_at));
            let update = job::Entity::update_many()
                .col_expr(job::Column::LeaseExpiresAt, expires_at.into())
                .col_expr(job::Column::AttemptDeadlineAt, deadline_at.into())
                .col_expr(job::Column::HeartbeatAt, now().into())
                .filter(job::Column::Id.eq(job.id))
                .filter(job::Column::HeartbeatAt.eq(heartbeat_at));
            repaired += db.write(async |tx| Ok(update.clone().exec(tx).await?.rows_affected)).await?;
        }
        if (rows.len() as u64) < MAX_ROWS_PER_QUERY {
            return Ok(repaired);
        }
    }
}

/// Repairs deliveries that were queued, begun or failed in the future, and the throttles of their
/// channels.
async fn repair_deliveries(db: &Db) -> Result<u64> {
    use delivery::Column;

    let (mut repaired, mut channels) = (0, HashSet::new());
    loop {
        let limit = now() + TOLERANCE;
        let rows = delivery::Entity::find()
            .filter(Expr::cust("status = 'queued'"))
            .filter(
                Condition::any()
                    .add(Column::UpdatedAt.gt(limit))
                    .add(Condition::all().add(Column::LastAttemptAt.gt(limit)).add(Column::LeaseId.is_not_null())),
            )
            .filter(Column::NextAttemptAt.gt(limit))
            .order_by_asc(Column::Id)
            .limit(MAX_ROWS_PER_QUERY)
            .all(db.reader())
            .await?;
        for delivery in &rows {
            let started_at = delivery.last_attempt_at.filter(|_| delivery.lease_id.is_some());
            let origin = started_at.unwrap_or(delivery.updated_at);
            let next = delivery.next_attempt_at.map(|at| shift(at, origin));
            // Once per channel, because the throttle was derived from the time of the refused
            // delivery.
            let throttled = delivery.channel_id.filter(|id| channels.insert(*id));
            repaired += db.write_unannounced(async |tx| repair_delivery(tx, delivery, next, throttled).await).await?;
        }
        if (rows.len() as u64) < MAX_ROWS_PER_QUERY {
            return Ok(repaired);
        }
    }
}

/// Moves a delivery and the throttle of its channel by the same amount.
async fn repair_delivery(
    tx: &sea_orm::DatabaseTransaction,
    delivery: &delivery::Model,
    next: Option<DateTime<Utc>>,
    throttled: Option<Uuid>,
) -> Result<u64> {
    let now = now();
    let written = delivery::Entity::update_many()
        .set(delivery::ActiveModel {
            next_attempt_at: Set(next),
            updated_at: Set(delivery.updated_at.min(now)),
            last_attempt_at: Set(delivery.last_attempt_at.map(|at| at.min(now))),
            ..Default::default()
        })
        .filter(delivery::Column::Id.eq(delivery.id))
        .filter(delivery::Column::NextAttemptAt.eq(delivery.next_attempt_at))
        .exec(tx)
        .await?
        .rows_affected;
    let Some(channel_id) = throttled else {
        return Ok(written);
    };
    let channel = notification_channel::Entity::find_by_id(channel_id).one(tx).await?;
    let throttled = channel.and_then(|channel| Some((channel.id, channel.throttled_until?)));
    if let Some((id, until)) = throttled.filter(|(_, until)| *until > now) {
        let ends = shift(until, delivery.updated_at);
        let throttle = notification_channel::ActiveModel {
            throttled_until: Set(Some(ends)),
            ..<notification_channel::ActiveModel as ActiveModelTrait>::default()
        };
        notification_channel::Entity::update_many()
            .set(throttle)
            .filter(notification_channel::Column::Id.eq(id))
            .exec(tx)
            .await?;
    }
    Ok(written)
}

/// Shifts a time by the distance of its origin from now, if the origin lies in the future.
fn shift(time: DateTime<Utc>, origin: DateTime<Utc>) -> DateTime<Utc> {
    let ahead = (origin - now()).max(TimeDelta::zero());
    time - ahead
}
