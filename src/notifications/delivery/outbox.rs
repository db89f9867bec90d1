//! The ledger: which process makes which delivery, and what came of it.
//!
//! A delivery is begun under a lease: `next_attempt_at` is set to when the lease ends, so that it is due again if
//! nothing is heard of it. Who writes down what came of an attempt names the lease and the attempt,
//! and is not heard if another one has been begun since, unless the receiver has the message.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect, Statement, Value,
    sea_query::{Expr, ExprTrait},
};
use uuid::Uuid;

use super::{
    attempt::{Attempted, Outcome},
    backoff::Backoff,
};
use crate::{
    alerts::lifecycle::change,
    db::Db,
    entity::{
        self, Severity,
        delivery::{self, ActiveModel, Column, DeliveryStatus, Entity},
        notification_channel::{self, ChannelKind},
    },
    error::Result,
    notifications::channels::service::announce,
    pb::ChangeKind,
};

/// What is due, as the index of it has it: the planner must see the status.
fn due(now: DateTime<Utc>) -> Condition {
    Condition::all()
        .add(Expr::cust("status = 'queued'"))
        .add(Column::NextAttemptAt.lte(now))
}

/// The channels for which something is due, and that may deliver now.
pub(crate) async fn due_channels(db: &Db, now: DateTime<Utc>) -> Result<Vec<Uuid>> {
    let sql = "SELECT id FROM notification_channels AS c WHERE enabled \
        AND (throttled_until IS NULL OR throttled_until <= $1) \
        AND EXISTS (SELECT 1 FROM deliveries AS d WHERE d.channel_id = c.id \
        AND d.status = 'queued' AND d.next_attempt_at <= $1)";
    let backend = db.backend();
    let (sql, values) = if backend == DbBackend::Postgres {
        (sql.to_string(), vec![Value::from(now)])
    } else {
        (sql.replace("$1", "?"), vec![now.into(), now.into()])
    };
    let rows = db
        .reader()
        .query_all_raw(Statement::from_sql_and_values(backend, sql, values))
        .await?;
    let ids = rows.iter().map(|row| row.try_get("", "id"));
    Ok(ids.collect::<Result<_, _>>()?)
}

/// A channel, as it is now.
pub(crate) async fn channel(db: &Db, id: Uuid) -> Result<Option<notification_channel::Model>> {
    let channel = notification_channel::Entity::find_by_id(id);
    Ok(channel.one(db.reader()).await?)
}

/// Begins up to `most` deliveries of a channel that are due, of these severities if there are any named.
pub(crate) async fn claim(
    db: &Db,
    channel_id: Uuid,
    severities: Option<&[Severity]>,
    most: u64,
    lease: (Uuid, Duration),
) -> Result<Vec<delivery::Model>> {
    let now = entity::now();
    let mut select = Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(Column::ChannelId.eq(channel_id))
        .filter(due(now))
        .order_by_asc(Column::NextAttemptAt)
        .limit(most);
    if let Some(severities) = severities {
        select = select.filter(Column::Severity.is_in(severities.iter().copied()));
    }
    if db.backend() == DbBackend::Postgres {
        select = select.lock_with_behavior(
            sea_orm::sea_query::LockType::Update,
            sea_orm::sea_query::LockBehavior::SkipLocked,
        );
    }
    let (lease_id, length) = lease;
    // Nobody follows the ledger, so that nobody is woken.
    db.write_unannounced(async |tx| {
        let ids: Vec<Uuid> = select.into_tuple().all(tx).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Entity::update_many()
            .set(ActiveModel {
                lease_id: Set(Some(lease_id)),
                next_attempt_at: Set(Some(now + length)),
                last_attempt_at: Set(Some(now)),
                ..Default::default()
            })
            .col_expr(Column::Attempts, Expr::col(Column::Attempts).add(1))
            .filter(Column::Id.is_in(ids))
            .exec_with_returning(tx)
            .await?;
        Ok(begun)
    })
    .await
}

/// How long a delivery must be due before it is said why it waits: another process may have the key of its channel.
const WAITS: TimeDelta = TimeDelta::seconds(3);

/// Says why the deliveries of a channel that are due wait.
pub(crate) async fn explain_wait(db: &Db, channel_id: Uuid, problem: &str) -> Result<()> {
    let now = entity::now();
    let unexplained = Condition::all()
        .add(Column::ChannelId.eq(channel_id))
        .add(due(now - WAITS))
        .add(
            Condition::any()
                .add(Column::LastError.is_null())
                .add(Column::LastError.ne(problem)),
        );
    let any: Option<Uuid> = Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(unexplained.clone())
        .limit(1)
        .into_tuple()
        .one(db.reader())
        .await?;
    if any.is_none() {
        return Ok(());
    }
    db.write_unannounced(async |tx| {
        Entity::update_many()
            .set(ActiveModel {
                last_error: Set(Some(problem.to_string())),
                updated_at: Set(now),
                ..Default::default()
            })
            .filter(unexplained.clone())
            .exec(tx)
            .await?;
        Ok(())
    })
    .await
}

/// Gives back everything that is under this lease, to be begun at once. `None`: under any lease.
pub(crate) async fn give_back(db: &Db, lease_id: Option<Uuid>) -> Result<()> {
    let leased = match lease_id {
        Some(lease_id) => Column::LeaseId.eq(lease_id),
        None => Column::LeaseId.is_not_null(),
    };
    db.write_unannounced(async |tx| {
        Entity::update_many()
            .set(ActiveModel {
                lease_id: Set(None),
                next_attempt_at: Set(Some(entity::now())),
                ..Default::default()
            })
            .filter(Expr::cust("status = 'queued'"))
            .filter(leased)
            .exec(tx)
            .await?;
        Ok(())
    })
    .await
}

/// An attempt, and what came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub delivery: delivery::Model,
    pub outcome: Outcome,
}

/// Writes down what came of attempts. Gives the shortest time after which one is tried again.
pub(crate) async fn finish(db: &Db, done: &[Done], backoff: Backoff) -> Result<Option<Duration>> {
    db.write(async |tx| {
        let now = entity::now();
        delivered(tx, done, now).await?;
        let mut soonest: Option<Duration> = None;
        for done in done {
            if let Some(delay) = failed(tx, done, backoff, now).await? {
                soonest = Some(soonest.map_or(delay, |soonest| soonest.min(delay)));
            }
        }
        slow_down(tx, done, backoff, now).await?;
        Ok(soonest)
    })
    .await
}

/// Those that the receiver has, whatever became of them meanwhile, and their alerts.
async fn delivered(tx: &DatabaseTransaction, done: &[Done], now: DateTime<Utc>) -> Result<()> {
    let mut by_channel: BTreeMap<Option<Uuid>, BTreeSet<Uuid>> = BTreeMap::new();
    let mut by_code: BTreeMap<Option<i32>, Vec<Uuid>> = BTreeMap::new();
    for Done { delivery, outcome } in done {
        if outcome.result == Attempted::Delivered {
            let alerts = by_channel.entry(delivery.channel_id).or_default();
            alerts.insert(delivery.alert_id);
            let ids = by_code.entry(outcome.status_code).or_default();
            ids.push(delivery.id);
        }
    }
    // Alerts before deliveries, as whoever acknowledges one does.
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
            // Of a replay the first time stays.
            .col_expr(
                Column::DeliveredAt,
                Expr::col(Column::DeliveredAt).if_null(now),
            )
            .filter(Column::Id.is_in(ids))
            .exec(tx)
            .await?;
    }
    Ok(())
}

/// One that the receiver does not have. Gives after what time it is tried again.
async fn failed(
    tx: &DatabaseTransaction,
    Done { delivery, outcome }: &Done,
    backoff: Backoff,
    now: DateTime<Utc>,
) -> Result<Option<Duration>> {
    let Some(error) = outcome.error() else {
        return Ok(None);
    };
    let failures = delivery.failures + 1;
    let delay = match &outcome.result {
        Attempted::Refused(_) => None,
        // It is not the message that is wrong.
        Attempted::Gone(_) => Some(Duration::ZERO),
        Attempted::Throttled(_, after) => backoff
            .after(failures, fastrand::f64())
            .map(|delay| after.unwrap_or_default().max(delay)),
        Attempted::Failed(_) | Attempted::Delivered => backoff.after(failures, fastrand::f64()),
    };
    let status = if delay.is_some() {
        DeliveryStatus::Queued
    } else {
        DeliveryStatus::Dead
    };
    let written = Entity::update_many()
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
    Ok(delay.filter(|_| written.rows_affected > 0))
}

/// Channels whose receivers want less, or nothing.
async fn slow_down(
    tx: &DatabaseTransaction,
    done: &[Done],
    backoff: Backoff,
    now: DateTime<Utc>,
) -> Result<()> {
    use notification_channel::{ActiveModel, Column, Entity};

    let mut until: BTreeMap<Uuid, DateTime<Utc>> = BTreeMap::new();
    let mut gone: BTreeMap<Uuid, &str> = BTreeMap::new();
    for Done { delivery, outcome } in done {
        let Some(channel_id) = delivery.channel_id else {
            continue;
        };
        if let Attempted::Throttled(_, after) = &outcome.result {
            let delay = after.or_else(|| backoff.after(delivery.failures + 1, fastrand::f64()));
            let end = later(now, delay.unwrap_or(backoff.first));
            let latest = until.entry(channel_id).or_insert(end);
            *latest = Ord::max(end, *latest);
        }
        if let Attempted::Gone(error) = &outcome.result {
            gone.insert(channel_id, error);
        }
    }
    for (id, until) in until {
        Entity::update_many()
            .set(ActiveModel {
                throttled_until: Set(Some(until)),
                ..<ActiveModel as ActiveModelTrait>::default()
            })
            .filter(Column::Id.eq(id))
            .exec(tx)
            .await?;
    }
    for (id, reason) in gone {
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
            tracing::warn!(channel = %channel.name, reason, "a notification channel is disabled");
            announce(tx, ChangeKind::Updated, channel).await?;
        }
    }
    Ok(())
}

/// A time as databases keep it.
fn later(now: DateTime<Utc>, delay: Duration) -> DateTime<Utc> {
    (now + delay).trunc_subsecs(6)
}
