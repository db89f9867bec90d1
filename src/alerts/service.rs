//! `AlertService`.

use std::{collections::HashMap, sync::Arc};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, Select};
use tonic::{Request, Response};
use uuid::Uuid;

use super::change;
use crate::{
    db::Db,
    entity::alert::{self, AlertSeverity, AlertStatus},
    error::Result,
    pb::{self, alert_service_server::AlertService},
    rpc::{
        Reply, check,
        enums::{FromProto, proto_enum},
        json,
        loader::Loader,
        page::Page,
        row, time,
    },
};

/// How many queries look up alerts at the same time.
const LOOKUPS: usize = 2;

/// How many values a list of a filter may have.
const MOST: usize = 1_000;

/// The alerts.
#[derive(Debug, Clone)]
pub struct Alerts {
    db: Db,
    by_id: Arc<Loader<Uuid, alert::Model>>,
}

impl Alerts {
    /// The alerts of this database.
    pub fn new(db: Db) -> Self {
        let reader = db.clone();
        let by_id = Loader::start(LOOKUPS, move |ids: Vec<Uuid>| {
            let db = reader.clone();
            async move {
                let alerts = alert::Entity::find()
                    .filter(alert::Column::Id.is_in(ids))
                    .all(db.reader())
                    .await?;
                Ok(alerts
                    .into_iter()
                    .map(|alert| (alert.id, alert))
                    .collect::<HashMap<_, _>>())
            }
        });
        Self {
            db,
            by_id: Arc::new(by_id),
        }
    }
}

#[tonic::async_trait]
impl AlertService for Alerts {
    async fn get_alert(&self, request: Request<pb::GetAlertRequest>) -> Reply<pb::Alert> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let alert = self.by_id.load(id).await?;
        Ok(Response::new(row::found(alert, "alert", id)?.into()))
    }

    async fn list_alerts(
        &self,
        request: Request<pb::ListAlertsRequest>,
    ) -> Reply<pb::ListAlertsResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "alerts", &filter)?;
        let columns = (alert::Column::CreatedAt, alert::Column::Id);
        let key = |alert: &alert::Model| (alert.created_at, alert.id);
        let (alerts, next_page_token) = page
            .newest_first(self.db.reader(), filter.select()?, columns, key)
            .await?;
        Ok(Response::new(pb::ListAlertsResponse {
            alerts,
            next_page_token,
        }))
    }

    async fn acknowledge_alert(
        &self,
        request: Request<pb::AcknowledgeAlertRequest>,
    ) -> Reply<pb::Alert> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let (next, expected) = (AlertStatus::Acknowledged, request.expected_version_id);
        let alert = self
            .db
            .write(async |tx| change::advance(tx, id, next, expected).await)
            .await?;
        Ok(Response::new(alert))
    }

    async fn dismiss_alert(&self, request: Request<pb::DismissAlertRequest>) -> Reply<pb::Alert> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let (next, expected) = (AlertStatus::Dismissed, request.expected_version_id);
        let alert = self
            .db
            .write(async |tx| change::advance(tx, id, next, expected).await)
            .await?;
        Ok(Response::new(alert))
    }
}

impl pb::AlertFilter {
    fn select(&self) -> Result<Select<alert::Entity>> {
        use alert::Column;
        let statuses = AlertStatus::all_from_proto("filter.statuses", &self.statuses)?;
        let severities = AlertSeverity::all_from_proto("filter.severities", &self.severities)?;
        let rule_ids = check::uuids("filter.rule_ids", &self.rule_ids)?;
        let camera_ids = check::texts("filter.camera_ids", &self.camera_ids, MOST, &(1..=64))?;
        let dedup_key = check::text("filter.dedup_key", &self.dedup_key, 0..=255)?;
        let (start, end) = time::bounds("filter.created_at", self.created_at)?;
        let mut select = alert::Entity::find();
        if !statuses.is_empty() {
            select = select.filter(Column::Status.is_in(statuses));
        }
        if !severities.is_empty() {
            select = select.filter(Column::Severity.is_in(severities));
        }
        if !rule_ids.is_empty() {
            select = select.filter(Column::RuleId.is_in(rule_ids));
        }
        if !camera_ids.is_empty() {
            select = select.filter(Column::CameraId.is_in(camera_ids));
        }
        if let Some(event_id) = self.event_id {
            select = select.filter(Column::EventId.eq(check::row_id("filter.event_id", event_id)?));
        }
        if !dedup_key.is_empty() {
            select = select.filter(Column::DedupKey.eq(dedup_key));
        }
        if let Some(start) = start {
            select = select.filter(Column::CreatedAt.gte(start));
        }
        if let Some(end) = end {
            select = select.filter(Column::CreatedAt.lt(end));
        }
        Ok(select)
    }
}

impl From<alert::Model> for pb::Alert {
    fn from(row: alert::Model) -> Self {
        Self {
            id: row.id.to_string(),
            event_id: row.event_id,
            rule_id: row.rule_id.map(|id| id.to_string()),
            severity: pb::Severity::from(row.severity).into(),
            status: pb::AlertStatus::from(row.status).into(),
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            delivered_at: row.delivered_at.map(time::to_proto),
            channels: row.channels.unwrap_or_default().0,
            dedup_key: row.dedup_key,
            metadata: row.metadata.and_then(json::to_proto),
            version_id: row.version_id,
            camera_id: row.camera_id,
        }
    }
}

proto_enum!(
    AlertSeverity,
    pb::Severity {
        Low,
        Medium,
        High,
        Critical
    }
);
proto_enum!(
    AlertStatus,
    pb::AlertStatus {
        Pending,
        Delivered,
        Acknowledged,
        Dismissed
    }
);
