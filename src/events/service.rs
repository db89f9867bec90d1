//! `EventService`.

use std::sync::Arc;

use prost::Message;
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, DatabaseTransaction, DbBackend, EntityTrait, Iterable, QueryFilter, QuerySelect, QueryTrait, Select,
    sea_query::{Expr, ExprTrait},
};
use tonic::{Request, Response};

use super::{
    check::{Ingest, object_type},
    ingest::{batch::event_announcement, committer::Committer},
};
use crate::{
    db::{Db, row},
    entity::{
        self, detection,
        event::{self, RiskLevel},
        event_detection,
    },
    error::{Error, Result},
    feed,
    gpu::Detections,
    pb::{self, ChangeKind, event_service_server::EventService},
    rpc::{Reply, check, enums::FromProto, page::Page, time, work},
};

/// Largest number of values in a list of a filter.
const MAX_LIST_VALUES: usize = 1_000;

/// Implementation of `EventService`.
#[derive(Debug, Clone)]
pub struct Events {
    /// Database of the events.
    pub db: Db,
    /// Group commit of ingests.
    pub committer: Arc<Committer>,
    /// Counter of ingested detections, for the GPU sampler.
    pub detections: Detections,
}

#[tonic::async_trait]
impl EventService for Events {
    async fn ingest_event(&self, request: Request<pb::IngestEventRequest>) -> Reply<pb::IngestEventResponse> {
        let request = request.into_inner();
        let detections = request.detections.len();
        let ingest = work::run_by_size(request.encoded_len(), || Ingest::parse(request));
        let response = self.committer.store(ingest.await?).await?;
        if !response.replayed {
            self.detections.count(detections);
        }
        Ok(Response::new(response))
    }

    async fn get_event(&self, request: Request<pb::GetEventRequest>) -> Reply<pb::Event> {
        let id = check::row_id("id", request.into_inner().id)?;
        let event = event::Entity::find_by_id(id).one(self.db.reader()).await.map_err(Error::from)?;
        Ok(Response::new(row::require(event.filter(is_present), "event", id)?.into()))
    }

    async fn list_events(&self, request: Request<pb::ListEventsRequest>) -> Reply<pb::ListEventsResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "events", &filter)?;
        let columns = (event::Column::StartedAt, event::Column::Id);
        let key = |event: &event::Model| (event.started_at, event.id);
        let select = filter.select(self.db.backend())?;
        let scan = self.db.scan_if(!filter.has_index()).await?;
        let (events, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
        Ok(Response::new(pb::ListEventsResponse { events, next_page_token }))
    }

    async fn list_detections(&self, request: Request<pb::ListDetectionsRequest>) -> Reply<pb::ListDetectionsResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "detections", &filter)?;
        let columns = (detection::Column::DetectedAt, detection::Column::Id);
        let key = |detection: &detection::Model| (detection.detected_at, detection.id);
        let select = filter.select(self.db.backend())?;
        let scan = self.db.scan_if(!filter.has_index()).await?;
        let (detections, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
        Ok(Response::new(pb::ListDetectionsResponse { detections, next_page_token }))
    }

    async fn review_event(&self, request: Request<pb::ReviewEventRequest>) -> Reply<pb::Event> {
        let request = request.into_inner();
        let id = check::row_id("id", request.id)?;
        let notes = check::optional_text("notes", request.notes.as_deref(), 0..=65_536)?;
        let event = self.db.write(async |tx| {
            let mut event: event::ActiveModel = find_present(tx, id).await?.into();
            event.reviewed = Set(request.reviewed.unwrap_or(true));
            if let Some(notes) = notes {
                event.notes = Set(Some(notes).filter(|notes| !notes.is_empty()));
            }
            announce(tx, ChangeKind::Updated, event.update(tx).await?).await
        });
        Ok(Response::new(event.await?))
    }

    async fn delete_event(&self, request: Request<pb::DeleteEventRequest>) -> Reply<()> {
        let id = check::row_id("id", request.into_inner().id)?;
        let deleted = self.db.write(async |tx| {
            let mut event: event::ActiveModel = find_present(tx, id).await?.into();
            event.deleted_at = Set(Some(entity::now()));
            announce(tx, ChangeKind::Deleted, event.update(tx).await?).await
        });
        deleted.await?;
        Ok(Response::new(()))
    }
}

fn is_present(event: &event::Model) -> bool {
    event.deleted_at.is_none()
}

/// Loads an event that is not deleted, and locks the row until the transaction ends.
async fn find_present(tx: &DatabaseTransaction, id: i64) -> Result<event::Model> {
    let event = event::Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    row::require(event.filter(is_present), "event", id)
}

async fn announce(tx: &DatabaseTransaction, kind: ChangeKind, event: event::Model) -> Result<pb::Event> {
    let event = pb::Event::from(event);
    feed::record(tx, [event_announcement(kind, event.clone())]).await?;
    Ok(event)
}

impl pb::EventFilter {
    /// Returns true if an index serves the filter: at most one risk level, optionally in a time
    /// range.
    fn has_index(&self) -> bool {
        let served = Self { started_at: self.started_at, risk_levels: self.risk_levels.clone(), ..Self::default() };
        *self == served && self.risk_levels.len() <= 1
    }

    fn select(&self, backend: DbBackend) -> Result<Select<event::Entity>> {
        use event::Column;
        let camera_ids = check::texts("filter.camera_ids", &self.camera_ids, MAX_LIST_VALUES, &(1..=64))?;
        let (start, end) = time::bounds("filter.started_at", self.started_at)?;
        let score =
            |field: &str, score: Option<i32>| score.map(|score| check::within(field, score, 0..=100)).transpose();
        let min_score = score("filter.min_risk_score", self.min_risk_score)?;
        let max_score = score("filter.max_risk_score", self.max_risk_score)?;
        if let (Some(min_score), Some(max_score)) = (min_score, max_score)
            && max_score < min_score
        {
            return Err(Error::invalid("filter.max_risk_score", "must not be below min_risk_score"));
        }
        let levels = RiskLevel::all_from_proto("filter.risk_levels", &self.risk_levels)?;
        let object_type = object_type("filter.object_type", &self.object_type, 0..=255)?;
        let text = check::text("filter.text", &self.text, 0..=255)?;
        let mut select = event::Entity::find()
            .filter(Column::DeletedAt.is_null())
            .apply_if(start, |select, start| select.filter(Column::StartedAt.gte(start)))
            .apply_if(end, |select, end| select.filter(Column::StartedAt.lt(end)))
            .apply_if(min_score, |select, min_score| select.filter(Column::RiskScore.gte(min_score)))
            .apply_if(max_score, |select, max_score| select.filter(Column::RiskScore.lte(max_score)))
            .apply_if(self.reviewed, |select, reviewed| select.filter(Column::Reviewed.eq(reviewed)));
        if !camera_ids.is_empty() {
            select = select.filter(Column::CameraId.is_in(camera_ids));
        }
        if !levels.is_empty() {
            select = select.filter(Column::RiskLevel.is_in(levels));
        }
        if !object_type.is_empty() {
            let column = Expr::col(Column::ObjectTypes);
            select = select.filter(row::list_contains(column, backend, &object_type.to_lowercase()));
        }
        for word in text.split_whitespace() {
            let columns = [Column::Summary, Column::Reasoning, Column::Notes, Column::ObjectTypes];
            let contains_word = |column| row::contains(Expr::col(column), backend, word);
            let any = columns.into_iter().map(contains_word).reduce(ExprTrait::or);
            select = select.apply_if(any, QueryFilter::filter);
        }
        // Prompts are long and not part of lists.
        let listed = Column::iter().filter(|column| !matches!(column, Column::LlmPrompt));
        Ok(select.select_only().columns(listed).expr_as(Expr::cust("NULL"), Column::LlmPrompt))
    }
}

impl pb::DetectionFilter {
    /// Returns true if an index serves the filter: one event, or at most one camera, optionally in
    /// a time range.
    fn has_index(&self) -> bool {
        let served = Self { camera_ids: self.camera_ids.clone(), detected_at: self.detected_at, ..Self::default() };
        self.event_id.is_some() || (*self == served && self.camera_ids.len() <= 1)
    }

    fn select(&self, backend: DbBackend) -> Result<Select<detection::Entity>> {
        use detection::Column;
        let camera_ids = check::texts("filter.camera_ids", &self.camera_ids, MAX_LIST_VALUES, &(1..=64))?;
        let (start, end) = time::bounds("filter.detected_at", self.detected_at)?;
        let object_type = object_type("filter.object_type", &self.object_type, 0..=255)?;
        let confidence =
            self.min_confidence.map(|confidence| check::within("filter.min_confidence", confidence, 0.0..=1.0));
        let mut select = detection::Entity::find()
            .apply_if(start, |select, start| select.filter(Column::DetectedAt.gte(start)))
            .apply_if(end, |select, end| select.filter(Column::DetectedAt.lt(end)))
            .apply_if(confidence.transpose()?, |select, confidence| select.filter(Column::Confidence.gte(confidence)));
        if let Some(event_id) = self.event_id {
            let event_detections = event_detection::Entity::find()
                .select_only()
                .column(event_detection::Column::DetectionId)
                .filter(event_detection::Column::EventId.eq(check::row_id("filter.event_id", event_id)?))
                .into_query();
            select = select.filter(Column::Id.in_subquery(event_detections));
        }
        if !camera_ids.is_empty() {
            select = select.filter(Column::CameraId.is_in(camera_ids));
        }
        if !object_type.is_empty() {
            select = select.filter(row::equals(Expr::col(Column::ObjectType), backend, &object_type));
        }
        Ok(select)
    }
}
