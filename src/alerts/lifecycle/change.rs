//! The life of an alert after it was raised, and what subscribers are told of it.
//!
//! Every move is made here, and only where [`AlertStatus::may_become`] lets it.

use prost::Message;
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DerivePartialModel, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect, Statement,
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
    feed::{self, Record, Topic},
    pb::{self, AlertChangeKind, watch_response::Update},
};

/// How many alerts one statement moves.
const ROWS: usize = 500;

/// The lock on PostgreSQL that those who move alerts share, and that one who moves many has alone.
const LOCK: i64 = 0x7761_7463_6872;

/// What must be known of an alert to move it. Nobody else changes it before the transaction ends.
#[derive(Debug, Clone, DerivePartialModel)]
#[sea_orm(entity = "Entity")]
pub(crate) struct Locked {
    pub id: Uuid,
    pub status: AlertStatus,
    pub version_id: i32,
}

/// Moves an alert to `next` and announces it. With `expected`, only if it is still at that version.
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
        let status = pb::AlertStatus::from(alert.status)
            .as_str_name()
            .trim_start_matches("ALERT_STATUS_")
            .to_string();
        return Err(Error::WrongStatus {
            resource: "alert",
            status,
        });
    }
    let moved = move_to(tx, vec![alert], next, cause).await?.pop();
    moved.ok_or_else(|| Error::internal("an alert that is locked was not moved"))
}

/// Moves those of the alerts that are pending to delivered, announces them, and returns them in
/// the order of their ids. The others are left alone. `actor` has at most 100 characters.
///
/// On PostgreSQL it must be the first that the transaction writes, with ids that were known before: the feed is in the
/// order in which transactions began to write, and an alert must not be delivered in it before it was raised.
/// It also locks the alerts, in their order: whoever locks other rows before can wait for somebody who has
/// an alert and wants those.
pub async fn deliver(
    tx: &DatabaseTransaction,
    ids: &[Uuid],
    actor: &str,
) -> Result<Vec<pb::Alert>> {
    lock_shared(tx).await?;
    let (next, cause) = (AlertStatus::Delivered, Cause::new(actor));
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let mut delivered = Vec::with_capacity(ids.len());
    for ids in ids.chunks(ROWS) {
        let mut alerts = lock(tx, ids).await?;
        alerts.retain(|alert| alert.status.may_become(next));
        delivered.extend(move_to(tx, alerts, next, &cause).await?);
    }
    Ok(delivered)
}

/// Lets the transaction move one alert, or make the first move of many.
///
/// In the feed the changes of an alert follow each other because whoever changes it locks it first, and
/// gets the number of its transaction with that lock. A transaction that waits for the second
/// alert has its number from the first one already, while a later one moves the second. So whoever makes
/// moves that come after others' and locks several has to be [`alone`]. This lock gives no number.
async fn lock_shared(tx: &DatabaseTransaction) -> Result<()> {
    take_lock(tx, "SELECT pg_advisory_xact_lock_shared($1)").await
}

/// Lets the transaction move many alerts. See [`lock_shared`].
pub(crate) async fn lock_exclusive(tx: &DatabaseTransaction) -> Result<()> {
    take_lock(tx, "SELECT pg_advisory_xact_lock($1)").await
}

async fn take_lock(tx: &DatabaseTransaction, sql: &str) -> Result<()> {
    let backend = tx.get_database_backend();
    // SQLite has one writer.
    if backend == DbBackend::Postgres {
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, [LOCK.into()]))
            .await?;
    }
    Ok(())
}

/// Locks those of the alerts that there are, in the order of their ids, so that nobody waits in a circle.
pub(crate) async fn lock(tx: &DatabaseTransaction, ids: &[Uuid]) -> Result<Vec<Locked>> {
    Ok(Entity::find()
        .filter(Column::Id.is_in(ids.iter().copied()))
        .order_by_asc(Column::Id)
        .lock_exclusive()
        .into_partial_model()
        .all(tx)
        .await?)
}

/// Moves locked alerts, all of which may become `next`, and announces them in the order of their ids.
pub(crate) async fn move_to(
    tx: &DatabaseTransaction,
    alerts: Vec<Locked>,
    next: AlertStatus,
    cause: &Cause,
) -> Result<Vec<pb::Alert>> {
    if alerts.is_empty() {
        return Ok(Vec::new());
    }
    let now = entity::now();
    // Clocks are set back; the order of the versions is not.
    let updated_at = CaseStatement::new()
        .case(
            Expr::col(Column::UpdatedAt).gt(now),
            Expr::col(Column::UpdatedAt),
        )
        .finally(now);
    let mut moved = Entity::update_many()
        .set(columns(next, now, cause))
        .col_expr(Column::UpdatedAt, updated_at.into())
        .col_expr(Column::VersionId, Expr::col(Column::VersionId).add(1))
        .filter(Column::Id.is_in(alerts.iter().map(|alert| alert.id)))
        .exec_with_returning(tx)
        .await?;
    if moved.len() != alerts.len() {
        return Err(Error::internal("alerts that are locked were not moved"));
    }
    if matches!(next, AlertStatus::Acknowledged | AlertStatus::Dismissed) {
        let ids: Vec<_> = alerts.iter().map(|alert| alert.id).collect();
        super::deliveries::cancel(tx, &ids, now).await?;
    }
    moved.sort_unstable_by_key(|alert| alert.id);
    // Both in the order of the ids.
    let transitions = moved.iter().zip(&alerts);
    let transitions = transitions
        .map(|(alert, before)| transition::moved(alert, Some(before.status), cause.clone()));
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(transitions.collect())?;
    let moved: Vec<_> = moved.into_iter().map(pb::Alert::from).collect();
    let announcements = moved
        .iter()
        .map(|alert| announcement(kind(next), alert.clone()));
    inserts.add(feed::rows(tx, announcements).await?)?;
    inserts.run(tx).await?;
    Ok(moved)
}

/// What a move sets, but for what depends on the alert.
fn columns(next: AlertStatus, now: chrono::DateTime<chrono::Utc>, cause: &Cause) -> ActiveModel {
    let mut columns = ActiveModel {
        status: Set(next),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    match next {
        AlertStatus::Pending => {}
        AlertStatus::Delivered => columns.delivered_at = Set(Some(now)),
        AlertStatus::Acknowledged => {
            columns.acknowledged_at = Set(Some(now));
            columns.acknowledged_by = Set(Some(cause.actor.clone()));
        }
        AlertStatus::Dismissed => {
            columns.dismissed_at = Set(Some(now));
            columns.dismissed_by = Set(Some(cause.actor.clone()));
        }
    }
    columns
}

fn kind(next: AlertStatus) -> AlertChangeKind {
    match next {
        AlertStatus::Pending => AlertChangeKind::Created,
        AlertStatus::Delivered => AlertChangeKind::Delivered,
        AlertStatus::Acknowledged => AlertChangeKind::Acknowledged,
        AlertStatus::Dismissed => AlertChangeKind::Dismissed,
    }
}

/// What subscribers are sent of a change of an alert.
pub fn announcement(kind: AlertChangeKind, alert: pb::Alert) -> Record {
    let key = alert.id.clone();
    let change = pb::AlertChange {
        kind: kind.into(),
        alert: Some(alert),
    };
    let message = pb::WatchResponse {
        update: Some(Update::Alert(change)),
        ..Default::default()
    };
    Record {
        topic: Topic::Alerts,
        key,
        message: message.encode_to_vec(),
    }
}
