//! The cameras that ingests come from: whether they are there, and when they were last seen.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    sea_query::{Expr, ExprTrait},
};

use super::{
    batch::{Answer, Judged},
    check::Ingest,
};
use crate::{
    entity::camera,
    error::{Error, Result},
};

/// How far behind `cameras.last_seen_at` may be, so that not every ingest writes the camera's row.
const SEEN_EVERY: TimeDelta = TimeDelta::seconds(10);

/// What an ingest has to know of a camera.
#[derive(Debug)]
pub(super) struct Source {
    pub deleted: bool,
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// The cameras of a batch by id.
pub(super) type Cameras = HashMap<String, Source>;

/// Answers the ingests whose camera does not exist, or not any more.
pub(super) fn check(cameras: &Cameras, batch: &[Judged], answers: &mut [Option<Answer>]) {
    for (judged, answer) in batch.iter().zip(answers) {
        let problem = match cameras.get(&judged.ingest.event.camera_id) {
            Some(camera) if !camera.deleted => continue,
            Some(_) => "names a camera that is deleted",
            None => "names a camera that does not exist",
        };
        let field = "event.camera_id".to_string();
        let refused = || {
            Err(Error::BrokenReference {
                field,
                problem: problem.into(),
            })
        };
        answer.get_or_insert_with(refused);
    }
}

/// Brings `last_seen_at` of the cameras up to date where it is behind.
pub(super) async fn mark_seen(
    tx: &DatabaseTransaction,
    ingests: impl Iterator<Item = &Ingest>,
    cameras: &Cameras,
) -> Result<()> {
    // In the order of the ids: two transactions that write the same rows must not wait for each other.
    let mut seen: BTreeMap<&str, DateTime<Utc>> = BTreeMap::new();
    for ingest in ingests {
        for detection in &ingest.detections {
            let newest = seen
                .entry(&ingest.event.camera_id)
                .or_insert(detection.detected_at);
            *newest = Ord::max(detection.detected_at, *newest);
        }
    }
    for (id, newest) in seen {
        let known = cameras.get(id).and_then(|camera| camera.last_seen_at);
        if known.is_some_and(|known| newest < known + SEEN_EVERY) {
            continue;
        }
        // Another process may have seen more meanwhile.
        let behind = camera::Column::LastSeenAt
            .is_null()
            .or(camera::Column::LastSeenAt.lt(newest));
        camera::Entity::update_many()
            .col_expr(camera::Column::LastSeenAt, Expr::value(newest))
            .filter(camera::Column::Id.eq(id))
            .filter(behind)
            .exec(tx)
            .await?;
    }
    Ok(())
}
