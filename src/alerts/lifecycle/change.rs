//! Status changes of an alert after creation, with transitions and announcements.
//!
//! All changes of `alerts.status` go through this file, and only as [`AlertStatus::may_become`]
//! permits.

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DerivePartialModel, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Statement,
    sea_query::{CaseStatement, Expr, ExprTrait},
};
use uuid::Uuid;

use super::transition::{self, Cause};
use crate::{
    db::{bulk::Inserts, row},
    entity::{
        self,
        alert::{ActiveModel, AlertStatus, Column, Entity},
    },
    error::{Error, Result},
    feed::{self, Record},
    pb::{self, AlertChangeKind, watch_response::Update},
    topics,
};

/// Largest number of alerts that one statement moves.
const MAX_ALERTS_PER_STATEMENT: usize = 500;

/// Key of the PostgreSQL advisory lock: shared by transactions that move alerts, exclusive for bulk
/// transitions.
const TRANSITION_LOCK_KEY: i64 = 0x7761_7463_6872;

/// Columns needed to move an alert. The row is locked until the transaction ends.
#[derive(Debug, Clone, DerivePartialModel)]
#[sea_orm(entity = "Entity")]
pub(crate) struct LockedAlert {
    pub id: Uuid,
    pub status: AlertStatus,
    pub version_id: i32,
}

/// Moves an alert to `next` and announces the change. Fails with `STALE_VERSION` if `expected` is
/// set and is not the present version.
pub async fn advance(
    tx: &DatabaseTransaction,
    id: Uuid,
    next: AlertStatus,
    expected: Option<i32>,
    cause: &Cause,
) -> Result<pb::Alert> {
    lock_shared(tx).await?;
    let alert = row::require(lock(tx, &[id]).await?.pop(), "alert", id)?;
    if expected.is_some_and(|expected| expected != alert.version_id) {
        return Err(Error::StaleVersion { resource: "alert" });
    }
    if !alert.status.may_become(next) {
        let status = pb::AlertStatus::from(alert.status).as_str_name().trim_start_matches("ALERT_STATUS_").to_string();
        return Err(Error::WrongStatus { resource: "alert", status });
    }
    let moved = move_to(tx, vec![alert], next, cause).await?.pop();
    moved.ok_or_else(|| Error::internal("a locked alert was not updated"))
}

/// Moves the pending alerts among `ids` to delivered, announces them, and returns them by id. Other
/// alerts stay unchanged. `actor` has at most 100 characters.
///
/// On PostgreSQL, this must be the first write of the transaction, with ids that were read before.
/// The feed is ordered by the first write of each transaction, and must not show a delivery before
/// the creation of the alert.
///
/// Locks the alerts by id. Locking other rows before the alerts could deadlock with a transaction
/// that holds an alert and waits for the other rows.
pub async fn deliver(tx: &DatabaseTransaction, ids: &[Uuid], actor: &str) -> Result<Vec<pb::Alert>> {
    lock_shared(tx).await?;
    let (next, cause) = (AlertStatus::Delivered, Cause::new(actor));
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let mut delivered = Vec::with_capacity(ids.len());
    for ids in ids.chunks(MAX_ALERTS_PER_STATEMENT) {
        let mut alerts = lock(tx, ids).await?;
        alerts.retain(|alert| alert.status.may_become(next));
        delivered.extend(move_to(tx, alerts, next, &cause).await?);
    }
    Ok(delivered)
}

/// Permits the transaction to move one alert, or to make the first move of new alerts.
///
/// The feed shows the changes of an alert in commit order because each change locks the alert
/// first, and PostgreSQL assigns the transaction id at the first row lock. A bulk transition breaks
/// the order: while the transaction waits for a second alert, the id assigned at the first alert is
/// older than the id of a concurrent change. A transaction with later moves of several alerts must
/// therefore call [`lock_exclusive`]. An advisory lock assigns no transaction id.
async fn lock_shared(tx: &DatabaseTransaction) -> Result<()> {
    take_lock(tx, "SELECT pg_advisory_xact_lock_shared($1)").await
}

/// Permits the transaction to move many alerts, see [`lock_shared`].
pub(crate) async fn lock_exclusive(tx: &DatabaseTransaction) -> Result<()> {
    take_lock(tx, "SELECT pg_advisory_xact_lock($1)").await
}

async fn take_lock(tx: &DatabaseTransaction, sql: &str) -> Result<()> {
    let backend = tx.get_database_backend();
    // SQLite has one writer, so that no lock is needed.
    if backend == DbBackend::Postgres {
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, [TRANSITION_LOCK_KEY.into()])).await?;
    }
    Ok(())
}

/// Locks the existing alerts among `ids`, in id order to avoid deadlocks.
pub(crate) async fn lock(tx: &DatabaseTransaction, ids: &[Uuid]) -> Result<Vec<LockedAlert>> {
    Ok(Entity::find()
        .filter(Column::Id.is_in(ids.iter().copied()))
        .order_by_asc(Column::Id)
        .lock_exclusive()
        .into_partial_model()
        .all(tx)
        .await?)
}

/// Moves locked alerts to `next` and announces them by id. `next` must be permitted for every
/// alert.
pub(crate) async fn move_to(
    tx: &DatabaseTransaction,
    alerts: Vec<LockedAlert>,
    next: AlertStatus,
    cause: &Cause,
) -> Result<Vec<pb::Alert>> {
    if alerts.is_empty() {
        return Ok(Vec::new());
    }
    let now = entity::now();
    // `updated_at` never decreases, even if the clock is set back.
    let updated_at =
        CaseStatement::new().case(Expr::col(Column::UpdatedAt).gt(now), Expr::col(Column::UpdatedAt)).finally(now);
    let mut moved = Entity::update_many()
        .set(status_columns(next, now, cause))
        .col_expr(Column::UpdatedAt, updated_at.into())
        .col_expr(Column::VersionId, Expr::col(Column::VersionId).add(1))
        .filter(Column::Id.is_in(alerts.iter().map(|alert| alert.id)))
        .exec_with_returning(tx)
        .await?;
    if moved.len() != alerts.len() {
        return Err(Error::internal("locked alerts were not updated"));
    }
    if matches!(next, AlertStatus::Acknowledged | AlertStatus::Dismissed) {
        let ids: Vec<_> = alerts.iter().map(|alert| alert.id).collect();
        super::deliveries::cancel(tx, &ids, now).await?;
    }
    moved.sort_unstable_by_key(|alert| alert.id);
    // Both lists are sorted by id.
    let transitions = moved
        .iter()
        .zip(&alerts)
        .map(|(alert, before)| transition::status_change(alert, Some(before.status), cause.clone()));
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(transitions.collect())?;
    let messages: Vec<_> = moved.into_iter().map(pb::Alert::from).collect();
    let announcements = messages.iter().map(|alert| announcement(change_kind(next), alert.clone()));
    inserts.add(feed::rows(tx, announcements).await?)?;
    inserts.run(tx).await?;
    Ok(messages)
}

/// Columns that depend on the new status but not on the alert.
fn status_columns(next: AlertStatus, now: chrono::DateTime<chrono::Utc>, cause: &Cause) -> ActiveModel {
    let mut status_columns = ActiveModel { status: Set(next), ..<ActiveModel as ActiveModelTrait>::default() };
    match next {
        AlertStatus::Pending => {}
        AlertStatus::Delivered => status_columns.delivered_at = Set(Some(now)),
        AlertStatus::Acknowledged => {
            status_columns.acknowledged_at = Set(Some(now));
            status_columns.acknowledged_by = Set(Some(cause.actor.clone()));
        }
        AlertStatus::Dismissed => {
            status_columns.dismissed_at = Set(Some(now));
            status_columns.dismissed_by = Set(Some(cause.actor.clone()));
        }
    }
    status_columns
}

fn change_kind(next: AlertStatus) -> AlertChangeKind {
    match next {
        AlertStatus::Pending => AlertChangeKind::Created,
        AlertStatus::Delivered => AlertChangeKind::Delivered,
        AlertStatus::Acknowledged => AlertChangeKind::Acknowledged,
        AlertStatus::Dismissed => AlertChangeKind::Dismissed,
    }
}

/// Builds the feed record of a change of an alert.
pub fn announcement(kind: AlertChangeKind, alert: pb::Alert) -> Record {
    let key = alert.id.clone();
    let change = pb::AlertChange { kind: kind.into(), alert: Some(alert) };
    topics::record(key, Update::Alert(change))
}
