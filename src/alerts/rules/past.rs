//! Events that are stored, with their detections, as far as rules look at them.

use std::{cell::OnceCell, collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DerivePartialModel, EntityTrait, FromQueryResult,
    JoinType, QueryFilter, QueryOrder, QuerySelect,
};

use crate::{
    alerts::engine::judge::{Facts, Seen},
    entity::{detection, event, event_detection},
    error::Result,
    zones::{Place, ZoneSet},
};

/// How many events are read at a time. Each may have a thousand detections.
const PAGE: u64 = 200;

/// An event that is stored.
#[derive(Debug)]
pub(crate) struct PastEvent {
    pub event: Event,
    pub detections: Vec<Detection>,
}

/// What of an event matters.
#[derive(Debug, Clone, DerivePartialModel)]
#[sea_orm(entity = "event::Entity")]
pub(crate) struct Event {
    pub id: i64,
    pub camera_id: String,
    pub started_at: DateTime<Utc>,
    pub risk_score: Option<i32>,
}

/// What of a detection matters.
#[derive(Debug, Clone, FromQueryResult)]
pub(crate) struct Detection {
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

/// Which events are wanted.
#[derive(Debug)]
pub(crate) struct Range {
    pub start: DateTime<Utc>,
    /// Outside.
    pub end: DateTime<Utc>,
    /// Empty: any.
    pub camera_ids: Vec<String>,
}

impl PastEvent {
    /// The event of this id, unless it is deleted.
    pub(crate) async fn find(db: &impl ConnectionTrait, id: i64) -> Result<Option<Self>> {
        let event = event::Entity::find_by_id(id)
            .filter(event::Column::DeletedAt.is_null())
            .into_partial_model()
            .all(db)
            .await?;
        Ok(with_detections(db, event).await?.pop())
    }

    /// What rules look at.
    pub(crate) fn facts(&self, zones: Arc<ZoneSet>) -> Facts {
        let seen = self.detections.iter().map(|detection| {
            let Detection {
                bbox_x,
                bbox_y,
                bbox_width,
                bbox_height,
                video_width,
                video_height,
                ..
            } = *detection;
            let bbox = [bbox_x, bbox_y, bbox_width, bbox_height];
            let place = Place::new(bbox, [video_width, video_height]);
            let object_type = detection.object_type.as_deref();
            Seen::new(object_type, detection.confidence, place)
        });
        Facts {
            camera_id: self.event.camera_id.clone(),
            risk_score: self.event.risk_score,
            started_at: self.event.started_at,
            detections: seen.collect(),
            zones,
            types: OnceCell::new(),
        }
    }
}

impl Range {
    /// The next events after `last`, oldest first, and whether there may be more. Deleted ones are
    /// left out.
    pub(crate) async fn page(
        &self,
        db: &impl ConnectionTrait,
        last: Option<(DateTime<Utc>, i64)>,
    ) -> Result<(Vec<PastEvent>, bool)> {
        use event::Column::{CameraId, DeletedAt, Id, StartedAt};
        let mut select = event::Entity::find()
            .filter(DeletedAt.is_null())
            .filter(StartedAt.gte(self.start))
            .filter(StartedAt.lt(self.end));
        if !self.camera_ids.is_empty() {
            select = select.filter(CameraId.is_in(&self.camera_ids));
        }
        if let Some((started_at, id)) = last {
            let same_time = Condition::all()
                .add(StartedAt.eq(started_at))
                .add(Id.gt(id));
            let rest = Condition::any()
                .add(StartedAt.gt(started_at))
                .add(same_time);
            // The first bound is for the index.
            select = select.filter(StartedAt.gte(started_at)).filter(rest);
        }
        let events: Vec<Event> = select
            .order_by_asc(StartedAt)
            .order_by_asc(Id)
            .limit(PAGE)
            .into_partial_model()
            .all(db)
            .await?;
        let more = events.len() as u64 == PAGE;
        Ok((with_detections(db, events).await?, more))
    }
}

/// These events with their detections, in the order in which they were sent.
async fn with_detections(db: &impl ConnectionTrait, events: Vec<Event>) -> Result<Vec<PastEvent>> {
    use detection::Column;
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let ids = events.iter().map(|event| event.id);
    let rows: Vec<Detection> = detection::Entity::find()
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
    let mut detections: HashMap<i64, Vec<Detection>> = HashMap::with_capacity(events.len());
    for row in rows {
        detections.entry(row.event_id).or_default().push(row);
    }
    let past = events.into_iter().map(|event| PastEvent {
        detections: detections.remove(&event.id).unwrap_or_default(),
        event,
    });
    Ok(past.collect())
}
