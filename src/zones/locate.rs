//! `LocateDetections`: which zones detections are in, by the zones as alert rules see them.

use std::collections::{HashMap, HashSet};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::{
    live::ZoneSet,
    place::{Place, Unplaced},
    service::CameraZones,
    shape::{Hit, Zone},
};
use crate::{
    db::row,
    entity::{
        self, camera,
        detection::{self, MediaType},
    },
    error::{Error, Result},
    pb,
    rpc::{check, work},
};

/// How many detections one request may ask for.
const MOST: usize = 1_000;

/// Detections from which locating them is done on a thread of its own: there may be many zones of many corners.
const FEW: usize = 16;

impl CameraZones {
    /// Where each of the detections of a request is.
    pub(super) async fn locate(
        &self,
        request: pb::LocateDetectionsRequest,
    ) -> Result<Vec<pb::DetectionLocation>> {
        let ids = request.detection_ids;
        if ids.len() > MOST {
            let problem = format!("must have at most {MOST} entries");
            return Err(Error::invalid("detection_ids", problem));
        }
        if ids.len() + request.detections.len() > MOST {
            let problem = format!("must have at most {MOST} entries, together with detection_ids");
            return Err(Error::invalid("detections", problem));
        }
        let detections = ids.len() + request.detections.len();
        for (at, id) in ids.iter().enumerate() {
            check::row_id(&format!("detection_ids[{at}]"), *id)?;
        }
        let sent = request.detections.iter().enumerate();
        let sent: Vec<_> = sent
            .map(|(at, detection)| parse(at, detection))
            .collect::<Result<_>>()?;
        self.refuse_unknown_cameras(&sent).await?;
        let stored = self.stored(&ids).await?;
        let zones = self.zones.current();
        let locating = move || {
            let stored = ids.iter().map(|id| {
                let detection = row::require(stored.get(id), "detection", id)?;
                Ok(location(detection, &zones))
            });
            let sent = sent.iter().map(|detection| Ok(location(detection, &zones)));
            stored.chain(sent).collect()
        };
        if detections < FEW {
            return locating();
        }
        work::run_blocking(locating).await
    }

    async fn stored(&self, ids: &[i64]) -> Result<HashMap<i64, detection::Model>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = detection::Entity::find()
            .filter(detection::Column::Id.is_in(ids.iter().copied()))
            .all(self.db.reader())
            .await?;
        Ok(rows.into_iter().map(|row| (row.id, row)).collect())
    }

    async fn refuse_unknown_cameras(&self, sent: &[detection::Model]) -> Result<()> {
        if sent.is_empty() {
            return Ok(());
        }
        let ids: HashSet<_> = sent.iter().map(|detection| &*detection.camera_id).collect();
        let known: Vec<String> = camera::Entity::find()
            .select_only()
            .column(camera::Column::Id)
            .filter(camera::Column::Id.is_in(ids))
            .into_tuple()
            .all(self.db.reader())
            .await?;
        let known: HashSet<_> = known.into_iter().collect();
        match sent
            .iter()
            .position(|detection| !known.contains(&detection.camera_id))
        {
            Some(at) => Err(Error::BrokenReference {
                field: format!("detections[{at}].camera_id"),
                problem: "names a camera that does not exist".into(),
            }),
            None => Ok(()),
        }
    }
}

/// A detection of a request, of which only the place matters.
fn parse(at: usize, detection: &pb::Detection) -> Result<detection::Model> {
    let field = |name: &str| format!("detections[{at}].{name}");
    let required = |name: &str, value: Option<i32>, least: i32| {
        let value = value.ok_or_else(|| Error::invalid(field(name), "is required"))?;
        check::within(&field(name), value, least..=i32::MAX).map(Some)
    };
    Ok(detection::Model {
        id: 0,
        camera_id: check::id(&field("camera_id"), &detection.camera_id)?,
        file_path: String::new(),
        file_type: None,
        detected_at: entity::now(),
        object_type: None,
        confidence: None,
        bbox_x: required("bbox_x", detection.bbox_x, i32::MIN)?,
        bbox_y: required("bbox_y", detection.bbox_y, i32::MIN)?,
        bbox_width: required("bbox_width", detection.bbox_width, 0)?,
        bbox_height: required("bbox_height", detection.bbox_height, 0)?,
        thumbnail_path: None,
        media_type: Some(MediaType::Image),
        duration: None,
        video_codec: None,
        video_width: required("video_width", detection.video_width, 1)?,
        video_height: required("video_height", detection.video_height, 1)?,
        enrichment_data: None,
        labels: None,
    })
}

fn location(detection: &detection::Model, zones: &ZoneSet) -> pb::DetectionLocation {
    let mut location = pb::DetectionLocation {
        detection_id: detection.id,
        camera_id: detection.camera_id.clone(),
        ..Default::default()
    };
    match Place::of(detection) {
        Ok(place) => {
            let zones = zones.of(&detection.camera_id).iter();
            let hits = zones.filter_map(|zone| Some(hit(zone, zone.hit(&place)?)));
            location.hits = hits.collect();
        }
        Err(unplaced) => location.problem = pb::LocationProblem::from(unplaced).into(),
    }
    location
}

fn hit(zone: &Zone, hit: Hit) -> pb::ZoneHit {
    use pb::CameraZoneAnchor::{Center, Foot, Overlap};
    let (anchor, point, overlap) = match hit {
        Hit::Center(point) => (Center, Some(point), None),
        Hit::Foot(point) => (Foot, Some(point), None),
        Hit::Overlap(overlap) => (Overlap, None, Some(overlap)),
    };
    pb::ZoneHit {
        zone_id: zone.id.clone(),
        anchor: anchor.into(),
        point: point.map(|point| pb::Point {
            x: point.x,
            y: point.y,
        }),
        overlap,
    }
}

impl From<Unplaced> for pb::LocationProblem {
    fn from(unplaced: Unplaced) -> Self {
        match unplaced {
            Unplaced::NoBox => Self::NoBox,
            Unplaced::NoSize => Self::NoSize,
            Unplaced::Outside => Self::Outside,
        }
    }
}
