//! Implementation of `DeliveryService`.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DbBackend, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    Select, sea_query::Expr,
};
use tonic::{Request, Response};
use uuid::Uuid;

use crate::{
    alerts::lifecycle::deliveries::DeliveryWakeup,
    db::{Db, row},
    entity::{
        self,
        delivery::{self, ActiveModel, Column, DeliveryStatus, Entity},
    },
    error::{Error, Result},
    pb::{self, delivery_service_server::DeliveryService},
    rpc::{
        Reply, check,
        enums::{FromProto, proto_enum},
        page::Page,
        time,
    },
};

/// Maximum number of deliveries queued again by one transaction.
const MAX_DELIVERIES_PER_TRANSACTION: u64 = 1_000;

/// Implementation of `DeliveryService`. Clones share the state.
#[derive(Debug, Clone)]
pub struct Deliveries {
    db: Db,
    /// Notified of deliveries queued again.
    wakeup: DeliveryWakeup,
}

#[tonic::async_trait]
impl DeliveryService for Deliveries {
    async fn get_delivery(&self, request: Request<pb::GetDeliveryRequest>) -> Reply<pb::Delivery> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let delivery = Entity::find_by_id(id).one(self.db.reader()).await.map_err(Error::from)?;
        Ok(Response::new(row::require(delivery, "delivery", id)?.into()))
    }

    async fn list_deliveries(&self, request: Request<pb::ListDeliveriesRequest>) -> Reply<pb::ListDeliveriesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "deliveries", &filter)?;
        let columns = (Column::CreatedAt, Column::Id);
        let key = |delivery: &delivery::Model| (delivery.created_at, delivery.id);
        let select = filter.select(self.db.backend())?;
        let scan = self.db.scan_if(!filter.has_index()).await?;
        let (deliveries, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
        Ok(Response::new(pb::ListDeliveriesResponse { deliveries, next_page_token }))
    }

    async fn retry_delivery(&self, request: Request<pb::RetryDeliveryRequest>) -> Reply<pb::Delivery> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let delivery = self.db.write_unannounced(async |tx| {
            let delivery = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
            if row::require(delivery, "delivery", id)?.channel_id.is_none() {
                return Err(Error::BrokenReference {
                    field: "id".into(),
                    problem: "is of a delivery whose notification channel was deleted".into(),
                });
            }
            let queued = Entity::update_many()
                .set(queued_columns(entity::now()))
                .filter(Column::Id.eq(id))
                .exec_with_returning(tx)
                .await?;
            row::require(queued.into_iter().next(), "delivery", id)
        });
        let delivery = delivery.await?;
        self.wakeup.notify();
        Ok(Response::new(delivery.into()))
    }

    async fn replay_deliveries(
        &self,
        request: Request<pb::ReplayDeliveriesRequest>,
    ) -> Reply<pb::ReplayDeliveriesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        if filter == pb::DeliveryFilter::default() && !request.all {
            return Err(Error::invalid("filter", "is required, unless all is set").into());
        }
        let now = entity::now();
        let matching = filter
            .select(self.db.backend())?
            .filter(Column::Status.ne(DeliveryStatus::Queued))
            .filter(Column::ChannelId.is_not_null())
            .filter(Column::CreatedAt.lte(now));
        if request.dry_run {
            let scan = self.db.scan().await?;
            let count = matching.count(scan.reader()).await.map_err(Error::from)?;
            let queued = i64::try_from(count).unwrap_or(i64::MAX);
            return Ok(Response::new(pb::ReplayDeliveriesResponse { queued }));
        }
        let mut queued = 0;
        let mut last = Uuid::nil();
        loop {
            let (count, end) = self.replay_chunk(matching.clone(), last).await?;
            queued += count;
            self.wakeup.notify();
            match end {
                Some(end) => last = end,
                None => break,
            }
        }
        Ok(Response::new(pb::ReplayDeliveriesResponse { queued }))
    }
}

impl Deliveries {
    /// Creates the service of a database.
    pub fn new(db: Db, wakeup: DeliveryWakeup) -> Self {
        Self { db, wakeup }
    }

    /// Queues the next matching deliveries again, in the order of their ids, so none is replayed twice. Returns the
    /// count, and the last id if more may follow.
    async fn replay_chunk(&self, matching: Select<Entity>, last: Uuid) -> Result<(i64, Option<Uuid>)> {
        self.db
            .write_unannounced(async |tx| {
                let ids: Vec<Uuid> = matching
                    .select_only()
                    .column(Column::Id)
                    .filter(Column::Id.gt(last))
                    .order_by_asc(Column::Id)
                    .limit(MAX_DELIVERIES_PER_TRANSACTION)
                    .lock_exclusive()
                    .into_tuple()
                    .all(tx)
                    .await?;
                let count = i64::try_from(ids.len()).unwrap_or(i64::MAX);
                let is_full = ids.len() as u64 == MAX_DELIVERIES_PER_TRANSACTION;
                let end = ids.last().copied().filter(|_| is_full);
                if !ids.is_empty() {
                    Entity::update_many()
                        .set(queued_columns(entity::now()))
                        .filter(Column::Id.is_in(ids))
                        .exec(tx)
                        .await?;
                }
                Ok((count, end))
            })
            .await
    }
}

/// Columns of a delivery due now, with all attempts left.
fn queued_columns(now: DateTime<Utc>) -> ActiveModel {
    ActiveModel {
        status: Set(DeliveryStatus::Queued),
        failures: Set(0),
        next_attempt_at: Set(Some(now)),
        lease_id: Set(None),
        updated_at: Set(now),
        ..Default::default()
    }
}

impl pb::DeliveryFilter {
    /// Returns true if an index serves the filter in creation order: deliveries of one alert, all deliveries, or
    /// deliveries in one status.
    fn has_index(&self) -> bool {
        let served = Self { statuses: self.statuses.clone(), created_at: self.created_at, ..Self::default() };
        self.alert_ids.len() == 1 || (*self == served && self.statuses.len() <= 1)
    }

    fn select(&self, backend: DbBackend) -> Result<Select<Entity>> {
        let alert_ids = check::uuids("filter.alert_ids", &self.alert_ids)?;
        let channel_ids = check::uuids("filter.channel_ids", &self.channel_ids)?;
        let statuses = DeliveryStatus::all_from_proto("filter.statuses", &self.statuses)?;
        let (start, end) = time::bounds("filter.created_at", self.created_at)?;
        let error = check::text("filter.error", &self.error, 0..=255)?;
        let mut select = Entity::find();
        if !alert_ids.is_empty() {
            select = select.filter(Column::AlertId.is_in(alert_ids));
        }
        if !channel_ids.is_empty() {
            select = select.filter(Column::ChannelId.is_in(channel_ids));
        }
        if !statuses.is_empty() {
            select = select.filter(Column::Status.is_in(statuses));
        }
        if let Some(start) = start {
            select = select.filter(Column::CreatedAt.gte(start));
        }
        if let Some(end) = end {
            select = select.filter(Column::CreatedAt.lt(end));
        }
        if let Some(escalation) = self.escalation {
            select =
                select.filter(if escalation { Column::EscalationStep.gt(0) } else { Column::EscalationStep.eq(0) });
        }
        if !error.is_empty() {
            let column = Expr::col(Column::LastError);
            select = select.filter(row::contains(column, backend, &error));
        }
        Ok(select)
    }
}

impl From<delivery::Model> for pb::Delivery {
    fn from(row: delivery::Model) -> Self {
        Self {
            id: row.id.to_string(),
            alert_id: row.alert_id.to_string(),
            channel_id: row.channel_id.map(|id| id.to_string()),
            channel_name: row.channel_name,
            escalation_step: row.escalation_step,
            status: pb::DeliveryStatus::from(row.status).into(),
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at.map(time::to_proto),
            last_attempt_at: row.last_attempt_at.map(time::to_proto),
            last_error: row.last_error,
            last_status_code: row.last_status_code,
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            delivered_at: row.delivered_at.map(time::to_proto),
            severity: pb::Severity::from(row.severity).into(),
        }
    }
}

proto_enum!(DeliveryStatus, pb::DeliveryStatus { Queued, Delivered, Dead, Cancelled });
