//! Stored events with detections, reduced to the columns that rules evaluate.

use std::{cell::OnceCell, collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DerivePartialModel, EntityTrait, FromQueryResult, JoinType, QueryFilter,
    QueryOrder, QuerySelect,
};

use crate::{
    alerts::engine::evaluate::{DetectionFacts, EventFacts},
    entity::{detection, event, event_detection},
    error::Result,
    zones::{Placement, ZoneSet},
};

/// Number of events per query. Each event may have 1,000 detections.
const EVENTS_PER_PAGE: u64 = 200;

/// Stored event with detections.
#[derive(Debug)]
pub(crate) struct StoredEvent {
    pub event: EventColumns,
    pub detections: Vec<DetectionColumns>,
}

/// Columns of an event that rules evaluate.
#[derive(Debug, Clone, DerivePartialModel)]
#[sea_orm(entity = "event::Entity")]
pub(crate) struct EventColumns {
    pub id: i64,
    pub camera_id: String,
    pub started_at: DateTime<Utc>,
    pub risk_score: Option<i32>,
}

/// Columns of a detection that rules evaluate.
#[derive(Debug, Clone, FromQueryResult)]
pub(crate) struct DetectionColumns {
    pub id: i64,
    event_id: i64,
    object_type: Option<String>,
    confidence: Option<f64>,
    bbox_x: Option<i32>,
    bbox_y: Option<i32>,
    bbox_width: Option<i32>,
    bbox_height: Option<i32>,
    video_width: Option<i32>,
    video_height: Option<i32>,
}

/// Selection of events by start time and camera.
#[derive(Debug)]
pub(crate) struct EventRange {
    pub start: DateTime<Utc>,
    /// Exclusive.
    pub end: DateTime<Utc>,
    /// Empty selects all cameras.
    pub camera_ids: Vec<String>,
}

impl StoredEvent {
    /// Loads an event. `None` if the event does not exist or is deleted.
    pub(crate) async fn find(db: &impl ConnectionTrait, id: i64) -> Result<Option<Self>> {
        let event = event::Entity::find_by_id(id)
            .filter(event::Column::DeletedAt.is_null())
            .into_partial_model()
            .all(db)
            .await?;
        Ok(with_detections(db, event).await?.pop())
    }

    /// Returns the facts that rules evaluate.
    pub(crate) fn facts(&self, zones: Arc<ZoneSet>) -> EventFacts {
        let detections = self.detections.iter().map(|detection| {
            let DetectionColumns { bbox_x, bbox_y, bbox_width, bbox_height, video_width, video_height, .. } =
                *detection;
            let bbox = [bbox_x, bbox_y, bbox_width, bbox_height];
            let placement = Placement::new(bbox, [video_width, video_height]);
            let object_type = detection.object_type.as_deref();
            DetectionFacts::new(object_type, detection.confidence, placement)
        });
        EventFacts {
            camera_id: self.event.camera_id.clone(),
            risk_score: self.event.risk_score,
            started_at: self.event.started_at,
            detections: detections.collect(),
            zones,
            types: OnceCell::new(),
        }
    }
}

impl EventRange {
    /// Returns the next events after `last`, oldest first, and whether more events may follow.
    /// Deleted events are skipped.
    pub(crate) async fn page(
        &self,
        db: &impl ConnectionTrait,
        last: Option<(DateTime<Utc>, i64)>,
    ) -> Result<(Vec<StoredEvent>, bool)> {
        use event::Column::{CameraId, DeletedAt, Id, StartedAt};
        let mut select = event::Entity::find()
            .filter(DeletedAt.is_null())
            .filter(StartedAt.gte(self.start))
            .filter(StartedAt.lt(self.end));
        if !self.camera_ids.is_empty() {
            select = select.filter(CameraId.is_in(&self.camera_ids));
        }
        if let Some((started_at, id)) = last {
            let same_time = Condition::all().add(StartedAt.eq(started_at)).add(Id.gt(id));
            let after_last = Condition::any().add(StartedAt.gt(started_at)).add(same_time);
            // The redundant bound lets the database use the index.
            select = select.filter(StartedAt.gte(started_at)).filter(after_last);
        }
        let events: Vec<EventColumns> =
            select.order_by_asc(StartedAt).order_by_asc(Id).limit(EVENTS_PER_PAGE).into_partial_model().all(db).await?;
        let has_more = events.len() as u64 == EVENTS_PER_PAGE;
        Ok((with_detections(db, events).await?, has_more))
    }
}

/// Loads the detections of events, in ingest order.
async fn with_detections(db: &impl ConnectionTrait, events: Vec<EventColumns>) -> Result<Vec<StoredEvent>> {
    use detection::Column;
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let ids = events.iter().map(|event| event.id);
    let rows: Vec<DetectionColumns> = detection::Entity::find()
        .select_only()
        .column(event_detection::Column::EventId)
        .columns([
            Column::Id,
            Column::ObjectType,
            Column::Confidence,
            Column::BboxX,
            Column::BboxY,
            Column::BboxWidth,
            Column::BboxHeight,
            Column::VideoWidth,
            Column::VideoHeight,
        ])
        .join_rev(
            JoinType::InnerJoin,
            event_detection::Entity::belongs_to(detection::Entity)
                .from(event_detection::Column::DetectionId)
                .to(Column::Id)
                .into(),
        )
        .filter(event_detection::Column::EventId.is_in(ids))
        .order_by_asc(Column::Id)
        .into_model()
        .all(db)
        .await?;
    let mut detections: HashMap<i64, Vec<DetectionColumns>> = HashMap::with_capacity(events.len());
    for row in rows {
        detections.entry(row.event_id).or_default().push(row);
    }
    let stored_events = events
        .into_iter()
        .map(|event| StoredEvent { detections: detections.remove(&event.id).unwrap_or_default(), event });
    Ok(stored_events.collect())
}
