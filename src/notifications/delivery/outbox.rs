//! Outbox: assigns deliveries to processes, and stores the outcomes of attempts.
//!
//! An attempt runs under a lease: `next_attempt_at` is set to the end of the lease, so the delivery becomes due again if
//! the process dies. An outcome names the lease and the attempt number. A failure is ignored if a later attempt has
//! started; a success always counts, because the receiver has the message.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
    sea_query::{Expr, ExprTrait},
};
use uuid::Uuid;

use super::{
    backoff::Backoff,
    outcome::{AttemptResult, Outcome},
};
use crate::{
    alerts::lifecycle::change,
    db::{Db, dialect::statement},
    entity::{
        self, Severity,
        delivery::{self, ActiveModel, Column, DeliveryStatus, Entity},
        notification_channel::{self, ChannelKind},
    },
    error::Result,
    notifications::channels::change_record::record_change,
    pb::ChangeKind,
};

/// Condition for due deliveries. The status is a literal, so the planner can use the partial index.
fn is_due(now: DateTime<Utc>) -> Condition {
    Condition::all().add(Expr::cust("status = 'queued'")).add(Column::NextAttemptAt.lte(now))
}

/// Enabled, unthrottled channels with due deliveries.
pub(crate) async fn due_channels(db: &Db, now: DateTime<Utc>) -> Result<Vec<Uuid>> {
    let sql = "\
        SELECT id FROM notification_channels AS c WHERE enabled \
        AND (throttled_until IS NULL OR throttled_until <= $1) \
        AND EXISTS (SELECT 1 FROM deliveries AS d WHERE d.channel_id = c.id \
        AND d.status = 'queued' AND d.next_attempt_at <= $1)";
    let rows = db.reader().query_all_raw(statement(db.reader(), sql, [now.into()])).await?;
    let ids = rows.iter().map(|row| row.try_get("", "id"));
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Reads a channel.
pub(crate) async fn read_channel(db: &Db, id: Uuid) -> Result<Option<notification_channel::Model>> {
    let channel = notification_channel::Entity::find_by_id(id);
    Ok(channel.one(db.reader()).await?)
}

/// Starts up to `limit` due deliveries of a channel, of the given severities if named. `lease` is the id and the
/// duration.
pub(crate) async fn claim(
    db: &Db,
    channel_id: Uuid,
    severities: Option<&[Severity]>,
    limit: u64,
    lease: (Uuid, Duration),
) -> Result<Vec<delivery::Model>> {
    let now = entity::now();
    let mut select = Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(Column::ChannelId.eq(channel_id))
        .filter(is_due(now))
        .order_by_asc(Column::NextAttemptAt)
        .limit(limit);
    if let Some(severities) = severities {
        select = select.filter(Column::Severity.is_in(severities.iter().copied()));
    }
    if db.backend() == DbBackend::Postgres {
        select = select
            .lock_with_behavior(sea_orm::sea_query::LockType::Update, sea_orm::sea_query::LockBehavior::SkipLocked);
    }
    let (lease_id, duration) = lease;
    // The outbox has no feed, so no watcher is notified.
    db.write_unannounced(async |tx| {
        let ids: Vec<Uuid> = select.into_tuple().all(tx).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let started = Entity::update_many()
            .set(ActiveModel {
                lease_id: Set(Some(lease_id)),
                next_attempt_at: Set(Some(now + duration)),
                last_attempt_at: Set(Some(now)),
                ..Default::default()
            })
            .col_expr(Column::Attempts, Expr::col(Column::Attempts).add(1))
            .filter(Column::Id.is_in(ids))
            .exec_with_returning(tx)
            .await?;
        Ok(started)
    })
    .await
}

/// Delay before a waiting delivery gets a reason: another process may have the key of the channel.
const EXPLAIN_WAIT_AFTER: TimeDelta = TimeDelta::seconds(3);

/// Stores the reason why due deliveries of a channel wait.
pub(crate) async fn record_wait_reason(db: &Db, channel_id: Uuid, problem: &str) -> Result<()> {
    let now = entity::now();
    let unexplained = Condition::all()
        .add(Column::ChannelId.eq(channel_id))
        .add(is_due(now - EXPLAIN_WAIT_AFTER))
        .add(Condition::any().add(Column::LastError.is_null()).add(Column::LastError.ne(problem)));
    let unexplained_id: Option<Uuid> = Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(unexplained.clone())
        .limit(1)
        .into_tuple()
        .one(db.reader())
        .await?;
    if unexplained_id.is_none() {
        return Ok(());
    }
    db.write_unannounced(async |tx| {
        Entity::update_many()
            .set(ActiveModel { last_error: Set(Some(problem.to_string())), updated_at: Set(now), ..Default::default() })
            .filter(unexplained.clone())
            .exec(tx)
            .await?;
        Ok(())
    })
    .await
}

/// Releases all deliveries under a lease, or under any lease. Released deliveries are due at once.
pub(crate) async fn release_leases(db: &Db, lease_id: Option<Uuid>) -> Result<()> {
    let leased = match lease_id {
        Some(lease_id) => Column::LeaseId.eq(lease_id),
        None => Column::LeaseId.is_not_null(),
    };
    db.write_unannounced(async |tx| {
        Entity::update_many()
            .set(ActiveModel { lease_id: Set(None), next_attempt_at: Set(Some(entity::now())), ..Default::default() })
            .filter(Expr::cust("status = 'queued'"))
            .filter(leased)
            .exec(tx)
            .await?;
        Ok(())
    })
    .await
}

/// Attempt with its outcome.
#[derive(Debug)]
pub(crate) struct FinishedAttempt {
    pub delivery: delivery::Model,
    pub outcome: Outcome,
}

/// Stores the outcomes of attempts. Returns the shortest delay before a further attempt.
pub(crate) async fn store_attempts(
    db: &Db,
    attempts: &[FinishedAttempt],
    backoff: Backoff,
) -> Result<Option<Duration>> {
    db.write(async |tx| {
        let now = entity::now();
        store_delivered(tx, attempts, now).await?;
        let mut soonest: Option<Duration> = None;
        for attempt in attempts {
            if let Some(delay) = store_failed(tx, attempt, backoff, now).await? {
                soonest = Some(soonest.map_or(delay, |soonest| soonest.min(delay)));
            }
        }
        throttle_channels(tx, attempts, backoff, now).await?;
        Ok(soonest)
    })
    .await
}

/// Stores delivered messages and marks their alerts, whatever happened to the deliveries in the meantime.
async fn store_delivered(tx: &DatabaseTransaction, attempts: &[FinishedAttempt], now: DateTime<Utc>) -> Result<()> {
    let mut by_channel: BTreeMap<Option<Uuid>, BTreeSet<Uuid>> = BTreeMap::new();
    let mut by_code: BTreeMap<Option<i32>, Vec<Uuid>> = BTreeMap::new();
    for FinishedAttempt { delivery, outcome } in attempts {
        if outcome.result == AttemptResult::Delivered {
            let alerts = by_channel.entry(delivery.channel_id).or_default();
            alerts.insert(delivery.alert_id);
            let ids = by_code.entry(outcome.status_code).or_default();
            ids.push(delivery.id);
        }
    }
    // Alerts are locked before deliveries, in the same order as by an acknowledgement.
    for (id, alerts) in by_channel {
        let alerts: Vec<_> = alerts.into_iter().collect();
        let id = id.unwrap_or_default();
        change::deliver(tx, &alerts, &format!("channel:{id}")).await?;
    }
    for (code, mut ids) in by_code {
        ids.sort_unstable();
        Entity::update_many()
            .set(ActiveModel {
                status: Set(DeliveryStatus::Delivered),
                next_attempt_at: Set(None),
                lease_id: Set(None),
                last_error: Set(None),
                last_status_code: Set(code),
                updated_at: Set(now),
                ..Default::default()
            })
            // A replay keeps the first delivery time.
            .col_expr(Column::DeliveredAt, Expr::col(Column::DeliveredAt).if_null(now))
            .filter(Column::Id.is_in(ids))
            .exec(tx)
            .await?;
    }
    Ok(())
}

/// Stores a failed attempt. Returns the delay before the next attempt.
async fn store_failed(
    tx: &DatabaseTransaction,
    FinishedAttempt { delivery, outcome }: &FinishedAttempt,
    backoff: Backoff,
    now: DateTime<Utc>,
) -> Result<Option<Duration>> {
    let Some(error) = outcome.error() else {
        return Ok(None);
    };
    let failures = delivery.failures + 1;
    let delay = match &outcome.result {
        AttemptResult::Refused(_) => None,
        // The channel is at fault, not the message.
        AttemptResult::Gone(_) => Some(Duration::ZERO),
        AttemptResult::Throttled(_, after) => {
            backoff.delay_after(failures, fastrand::f64()).map(|delay| after.unwrap_or_default().max(delay))
        }
        AttemptResult::Failed(_) | AttemptResult::Delivered => backoff.delay_after(failures, fastrand::f64()),
    };
    let status = if delay.is_some() { DeliveryStatus::Queued } else { DeliveryStatus::Dead };
    let update = Entity::update_many()
        .set(ActiveModel {
            status: Set(status),
            failures: Set(failures),
            next_attempt_at: Set(delay.map(|delay| later(now, delay))),
            lease_id: Set(None),
            last_error: Set(Some(error.to_string())),
            last_status_code: Set(outcome.status_code),
            updated_at: Set(now),
            ..Default::default()
        })
        .filter(Column::Id.eq(delivery.id))
        .filter(Column::LeaseId.eq(delivery.lease_id))
        .filter(Column::Attempts.eq(delivery.attempts))
        .filter(Column::Status.eq(DeliveryStatus::Queued))
        .exec(tx)
        .await?;
    Ok(delay.filter(|_| update.rows_affected > 0))
}

/// Throttles channels of overloaded receivers, and disables channels refused by their receivers.
async fn throttle_channels(
    tx: &DatabaseTransaction,
    attempts: &[FinishedAttempt],
    backoff: Backoff,
    now: DateTime<Utc>,
) -> Result<()> {
    use notification_channel::{ActiveModel, Column, Entity};

    let mut throttled_until: BTreeMap<Uuid, DateTime<Utc>> = BTreeMap::new();
    let mut disabled: BTreeMap<Uuid, &str> = BTreeMap::new();
    for FinishedAttempt { delivery, outcome } in attempts {
        let Some(channel_id) = delivery.channel_id else {
            continue;
        };
        if let AttemptResult::Throttled(_, after) = &outcome.result {
            let delay = after.or_else(|| backoff.delay_after(delivery.failures + 1, fastrand::f64()));
            let end = later(now, delay.unwrap_or(backoff.first));
            let latest = throttled_until.entry(channel_id).or_insert(end);
            *latest = Ord::max(end, *latest);
        }
        if let AttemptResult::Gone(error) = &outcome.result {
            disabled.insert(channel_id, error);
        }
    }
    for (id, until) in throttled_until {
        Entity::update_many()
            .set(ActiveModel { throttled_until: Set(Some(until)), ..<ActiveModel as ActiveModelTrait>::default() })
            .filter(Column::Id.eq(id))
            .exec(tx)
            .await?;
    }
    for (id, reason) in disabled {
        let channels = Entity::update_many()
            .set(ActiveModel {
                enabled: Set(false),
                disabled_reason: Set(Some(reason.to_string())),
                updated_at: Set(now),
                ..<ActiveModel as ActiveModelTrait>::default()
            })
            .col_expr(Column::VersionId, Expr::col(Column::VersionId).add(1))
            .filter(Column::Id.eq(id))
            .filter(Column::Enabled.eq(true))
            .filter(Column::Kind.eq(ChannelKind::Webhook))
            .exec_with_returning(tx)
            .await?;
        for channel in channels {
            tracing::warn!(channel = %channel.name, reason, "disabled a notification channel at the request of its receiver");
            record_change(tx, ChangeKind::Updated, channel).await?;
        }
    }
    Ok(())
}

/// Adds a delay, with the microsecond precision of the databases.
fn later(now: DateTime<Utc>, delay: Duration) -> DateTime<Utc> {
    (now + delay).trunc_subsecs(6)
}
