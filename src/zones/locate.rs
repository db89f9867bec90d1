//! `LocateDetections`: the zones that contain detections, evaluated as for alert rules.

use std::collections::{HashMap, HashSet};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::{
    live::ZoneSet,
    placement::{Placement, PlacementError},
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

/// Largest number of detections in a request.
const MAX_DETECTIONS: usize = 1_000;

/// Number of detections from which the computation moves to a blocking thread. Cameras may have
/// many zones with many corners.
const MIN_DETECTIONS_OFF_RUNTIME: usize = 16;

impl CameraZones {
    /// Locates the detections of a request.
    pub(super) async fn locate(&self, request: pb::LocateDetectionsRequest) -> Result<Vec<pb::DetectionLocation>> {
        let ids = request.detection_ids;
        if ids.len() > MAX_DETECTIONS {
            let problem = format!("must have at most {MAX_DETECTIONS} entries");
            return Err(Error::invalid("detection_ids", problem));
        }
        if ids.len() + request.detections.len() > MAX_DETECTIONS {
            let problem = format!("must have at most {MAX_DETECTIONS} entries, together with detection_ids");
            return Err(Error::invalid("detections", problem));
        }
        let detections = ids.len() + request.detections.len();
        for (index, id) in ids.iter().enumerate() {
            check::row_id(&format!("detection_ids[{index}]"), *id)?;
        }
        let sent: Vec<_> = request
            .detections
            .iter()
            .enumerate()
            .map(|(index, detection)| parse(index, detection))
            .collect::<Result<_>>()?;
        self.refuse_unknown_cameras(&sent).await?;
        let stored_by_id = self.load_stored(&ids).await?;
        let zones = self.zones.current();
        let locating = move || {
            let stored_locations = ids.iter().map(|id| {
                let detection = row::require(stored_by_id.get(id), "detection", id)?;
                Ok(locate_detection(detection, &zones))
            });
            let sent_locations = sent.iter().map(|detection| Ok(locate_detection(detection, &zones)));
            stored_locations.chain(sent_locations).collect()
        };
        if detections < MIN_DETECTIONS_OFF_RUNTIME {
            return locating();
        }
        work::run_blocking(locating).await
    }

    async fn load_stored(&self, ids: &[i64]) -> Result<HashMap<i64, detection::Model>> {
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
        let known_ids: Vec<String> = camera::Entity::find()
            .select_only()
            .column(camera::Column::Id)
            .filter(camera::Column::Id.is_in(ids))
            .into_tuple()
            .all(self.db.reader())
            .await?;
        let known: HashSet<_> = known_ids.into_iter().collect();
        match sent.iter().position(|detection| !known.contains(&detection.camera_id)) {
            Some(index) => Err(Error::BrokenReference {
                field: format!("detections[{index}].camera_id"),
                problem: "names a camera that does not exist".into(),
            }),
            None => Ok(()),
        }
    }
}

/// Validates a detection of the request. Only camera and placement matter.
fn parse(index: usize, detection: &pb::Detection) -> Result<detection::Model> {
    let field = |name: &str| format!("detections[{index}].{name}");
    let required = |name: &str, value: Option<i32>, minimum: i32| {
        let present = value.ok_or_else(|| Error::invalid(field(name), "is required"))?;
        check::within(&field(name), present, minimum..=i32::MAX).map(Some)
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

fn locate_detection(detection: &detection::Model, zones: &ZoneSet) -> pb::DetectionLocation {
    let mut location = pb::DetectionLocation {
        detection_id: detection.id,
        camera_id: detection.camera_id.clone(),
        ..Default::default()
    };
    match Placement::of(detection) {
        Ok(placement) => {
            let zones = zones.of(&detection.camera_id).iter();
            let hits = zones.filter_map(|zone| Some(hit_to_proto(zone, zone.hit(&placement)?)));
            location.hits = hits.collect();
        }
        Err(error) => location.problem = pb::LocationProblem::from(error).into(),
    }
    location
}

fn hit_to_proto(zone: &Zone, hit: Hit) -> pb::ZoneHit {
    use pb::CameraZoneAnchor::{Center, Foot, Overlap};
    let (anchor, point, overlap) = match hit {
        Hit::Center(point) => (Center, Some(point), None),
        Hit::Foot(point) => (Foot, Some(point), None),
        Hit::Overlap(overlap) => (Overlap, None, Some(overlap)),
    };
    pb::ZoneHit {
        zone_id: zone.id.clone(),
        anchor: anchor.into(),
        point: point.map(|point| pb::Point { x: point.x, y: point.y }),
        overlap,
    }
}

impl From<PlacementError> for pb::LocationProblem {
    fn from(error: PlacementError) -> Self {
        match error {
            PlacementError::NoBox => Self::NoBox,
            PlacementError::NoSize => Self::NoSize,
            PlacementError::Outside => Self::Outside,
        }
    }
}
