//! Cameras of ingests: existence and `last_seen_at`.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    sea_query::{Expr, ExprTrait},
};

use super::stages::{Answer, EvaluatedIngest};
use crate::{
    entity::camera,
    error::{Error, Result},
    events::check::Ingest,
};

/// Permitted lag of `cameras.last_seen_at`. Avoids a write of the camera row for every ingest.
const MAX_LAST_SEEN_LAG: TimeDelta = TimeDelta::seconds(10);

/// Columns of a camera that ingests need.
#[derive(Debug)]
pub(crate) struct CameraState {
    pub deleted: bool,
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// Cameras of a batch by id.
pub(crate) type CameraStates = HashMap<String, CameraState>;

/// Refuses the ingests of deleted and unknown cameras.
pub(crate) fn refuse_absent_cameras(cameras: &CameraStates, batch: &[EvaluatedIngest], answers: &mut [Option<Answer>]) {
    for (evaluated, answer) in batch.iter().zip(answers) {
        let problem = match cameras.get(&evaluated.ingest.event.camera_id) {
            Some(camera) if !camera.deleted => continue,
            Some(_) => "names a camera that is deleted",
            None => "names a camera that does not exist",
        };
        let field = "event.camera_id".to_string();
        let refusal = || Err(Error::BrokenReference { field, problem: problem.into() });
        answer.get_or_insert_with(refusal);
    }
}

/// Updates `last_seen_at` of the cameras, where the lag is larger than permitted.
pub(crate) async fn mark_seen(
    tx: &DatabaseTransaction,
    ingests: impl Iterator<Item = &Ingest>,
    cameras: &CameraStates,
) -> Result<()> {
    // Sorted by id to avoid deadlocks.
    let mut last_seen: BTreeMap<&str, DateTime<Utc>> = BTreeMap::new();
    for ingest in ingests {
        for detection in &ingest.detections {
            let newest = last_seen.entry(&ingest.event.camera_id).or_insert(detection.detected_at);
            *newest = Ord::max(detection.detected_at, *newest);
        }
    }
    for (id, newest) in last_seen {
        let known = cameras.get(id).and_then(|camera| camera.last_seen_at);
        if known.is_some_and(|known| newest < known + MAX_LAST_SEEN_LAG) {
            continue;
        }
        // Another process may have stored a later time.
        let is_behind = camera::Column::LastSeenAt.is_null().or(camera::Column::LastSeenAt.lt(newest));
        camera::Entity::update_many()
            .col_expr(camera::Column::LastSeenAt, Expr::value(newest))
            .filter(camera::Column::Id.eq(id))
            .filter(is_behind)
            .exec(tx)
            .await?;
    }
    Ok(())
}
