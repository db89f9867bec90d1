//! `AlertService`.

use std::{collections::HashMap, sync::Arc};

use prost::Message;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use tonic::{Request, Response};
use uuid::Uuid;

use super::{bulk::BulkTransition, change, create::NewAlert, deliveries::DeliveryWakeup, stats, transition::Cause};
use crate::{
    batch::loader::Loader,
    db::{Db, row},
    entity::{
        alert::{self, AlertSeverity, AlertStatus},
        alert_transition,
    },
    error::Error,
    pb::{self, alert_service_server::AlertService},
    rpc::{Reply, check, enums::proto_enum, json, page::Page, time, work},
};

/// Number of concurrent queries that look up alerts by id.
const CONCURRENT_LOOKUPS: usize = 2;

/// Implementation of `AlertService`.
#[derive(Debug, Clone)]
pub struct Alerts {
    db: Db,
    by_id: Arc<Loader<Uuid, alert::Model>>,
    /// Wakes the delivery loop after `CreateAlert`.
    wakeup: DeliveryWakeup,
}

impl Alerts {
    /// Creates the service for a database.
    pub fn new(db: Db, wakeup: DeliveryWakeup) -> Self {
        let reader = db.clone();
        let by_id = Loader::start(CONCURRENT_LOOKUPS, move |ids: Vec<Uuid>| {
            let db = reader.clone();
            async move {
                let alerts = alert::Entity::find().filter(alert::Column::Id.is_in(ids)).all(db.reader()).await?;
                Ok(alerts.into_iter().map(|alert| (alert.id, alert)).collect::<HashMap<_, _>>())
            }
        });
        Self { db, by_id: Arc::new(by_id), wakeup }
    }
}

#[tonic::async_trait]
impl AlertService for Alerts {
    async fn get_alert(&self, request: Request<pb::GetAlertRequest>) -> Reply<pb::Alert> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let alert = self.by_id.load(id).await?;
        Ok(Response::new(row::require(alert, "alert", id)?.into()))
    }

    async fn list_alerts(&self, request: Request<pb::ListAlertsRequest>) -> Reply<pb::ListAlertsResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "alerts", &filter)?;
        let columns = (alert::Column::CreatedAt, alert::Column::Id);
        let key = |alert: &alert::Model| (alert.created_at, alert.id);
        let select = alert::Entity::find().filter(filter.condition(self.db.backend())?);
        let scan = self.db.scan_if(!filter.has_index()).await?;
        let (alerts, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
        Ok(Response::new(pb::ListAlertsResponse { alerts, next_page_token }))
    }

    async fn create_alert(&self, request: Request<pb::CreateAlertRequest>) -> Reply<pb::CreateAlertResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let new_alert = work::run_by_size(request.encoded_len(), move || NewAlert::parse(request, peer)).await?;
        let create = || self.db.write(async |tx| new_alert.create(tx).await);
        let created = match create().await {
            // A concurrent call stored the same request first. The second attempt returns its
            // response.
            Err(Error::AlreadyExists { .. }) => create().await?,
            created => created?,
        };
        if created.created {
            self.wakeup.notify();
        }
        Ok(Response::new(created))
    }

    async fn acknowledge_alert(&self, request: Request<pb::AcknowledgeAlertRequest>) -> Reply<pb::Alert> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let cause = Cause::parse(peer, &request.actor, &request.reason)?;
        let (next, expected) = (AlertStatus::Acknowledged, request.expected_version_id);
        let alert = self.db.write(async |tx| change::advance(tx, id, next, expected, &cause).await).await?;
        Ok(Response::new(alert))
    }

    async fn dismiss_alert(&self, request: Request<pb::DismissAlertRequest>) -> Reply<pb::Alert> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let cause = Cause::parse(peer, &request.actor, &request.reason)?;
        let (next, expected) = (AlertStatus::Dismissed, request.expected_version_id);
        let alert = self.db.write(async |tx| change::advance(tx, id, next, expected, &cause).await).await?;
        Ok(Response::new(alert))
    }

    async fn acknowledge_alerts(
        &self,
        request: Request<pb::AcknowledgeAlertsRequest>,
    ) -> Reply<pb::MoveAlertsResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let cause = Cause::parse(peer, &request.actor, &request.reason)?;
        let (next, all) = (AlertStatus::Acknowledged, request.all);
        let bulk = BulkTransition::parse(request.filter, all, next, cause, &self.db)?;
        Ok(Response::new(bulk.run(&self.db, request.dry_run).await?))
    }

    async fn dismiss_alerts(&self, request: Request<pb::DismissAlertsRequest>) -> Reply<pb::MoveAlertsResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let cause = Cause::parse(peer, &request.actor, &request.reason)?;
        let (next, all) = (AlertStatus::Dismissed, request.all);
        let bulk = BulkTransition::parse(request.filter, all, next, cause, &self.db)?;
        Ok(Response::new(bulk.run(&self.db, request.dry_run).await?))
    }

    async fn list_alert_transitions(
        &self,
        request: Request<pb::ListAlertTransitionsRequest>,
    ) -> Reply<pb::ListAlertTransitionsResponse> {
        use alert_transition::{Column, Model};
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "alert_transitions", &filter)?;
        let select = filter.select()?;
        let scan = self.db.scan_if(!filter.has_index()).await?;
        let db = scan.reader();
        let (alert_transitions, next_page_token) = if filter.alert_id.is_empty() {
            let key = |row: &Model| (row.created_at, row.id);
            page.newest_first(db, select, (Column::CreatedAt, Column::Id), key).await?
        } else {
            let key = |row: &Model| row.version_id.into();
            page.lowest_first(db, select, Column::VersionId, key).await?
        };
        Ok(Response::new(pb::ListAlertTransitionsResponse { alert_transitions, next_page_token }))
    }

    async fn get_alert_stats(&self, request: Request<pb::GetAlertStatsRequest>) -> Reply<pb::AlertStats> {
        let stats = stats::stats(&self.db, request.into_inner()).await?;
        Ok(Response::new(stats))
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
            suppressed_count: row.suppressed_count,
            last_suppressed_at: row.last_suppressed_at.map(time::to_proto),
            acknowledged_at: row.acknowledged_at.map(time::to_proto),
            acknowledged_by: row.acknowledged_by,
            dismissed_at: row.dismissed_at.map(time::to_proto),
            dismissed_by: row.dismissed_by,
        }
    }
}

proto_enum!(AlertSeverity, pb::Severity { Low, Medium, High, Critical });
proto_enum!(AlertStatus, pb::AlertStatus { Pending, Delivered, Acknowledged, Dismissed });
