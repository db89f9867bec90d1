//! The life of an alert after it was raised, and what subscribers are told of it.

use prost::Message;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QuerySelect,
};
use uuid::Uuid;

use crate::{
    entity::{
        self,
        alert::{self, ActiveModel, AlertStatus, Entity},
    },
    error::{Error, Result},
    feed::{self, Record, Topic},
    pb::{self, AlertChangeKind, watch_response::Update},
    rpc::row,
};

/// Moves an alert to `next` and announces it. With `expected`, only if it is still at that version.
pub async fn advance(
    tx: &DatabaseTransaction,
    id: Uuid,
    next: AlertStatus,
    expected: Option<i32>,
) -> Result<pb::Alert> {
    let alert = row::found(
        Entity::find_by_id(id).lock_exclusive().one(tx).await?,
        "alert",
        id,
    )?;
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
    let now = entity::now();
    let moved = Entity::update_many()
        .set(ActiveModel {
            status: Set(next),
            // Clocks are set back; the order of the versions is not.
            updated_at: Set(now.max(alert.updated_at)),
            version_id: Set(alert.version_id + 1),
            delivered_at: if next == AlertStatus::Delivered {
                Set(Some(now))
            } else {
                sea_orm::NotSet
            },
            ..<ActiveModel as ActiveModelTrait>::default()
        })
        .filter(alert::Column::Id.eq(id))
        .filter(alert::Column::VersionId.eq(alert.version_id))
        .exec_with_returning(tx)
        .await?;
    let Some(alert) = moved.into_iter().next() else {
        return Err(Error::StaleVersion { resource: "alert" });
    };
    if matches!(next, AlertStatus::Acknowledged | AlertStatus::Dismissed) {
        super::deliveries::cancel(tx, &[id], now).await?;
    }
    let alert = pb::Alert::from(alert);
    let kind = match next {
        AlertStatus::Pending => AlertChangeKind::Created,
        AlertStatus::Delivered => AlertChangeKind::Delivered,
        AlertStatus::Acknowledged => AlertChangeKind::Acknowledged,
        AlertStatus::Dismissed => AlertChangeKind::Dismissed,
    };
    feed::record(tx, [announcement(kind, alert.clone())]).await?;
    Ok(alert)
}

/// Temporary.
pub async fn deliver(tx: &DatabaseTransaction, ids: &[Uuid], _: &str) -> Result<Vec<pb::Alert>> {
    let mut alerts = Vec::new();
    for id in ids {
        match advance(tx, *id, AlertStatus::Delivered, None).await {
            Ok(alert) => alerts.push(alert),
            Err(Error::WrongStatus { .. } | Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(alerts)
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
