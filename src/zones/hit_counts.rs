//! `CountZoneHits`: detections per zone, in time buckets.

use std::{ops::RangeInclusive, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, Condition, DerivePartialModel, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{
    placement::{Placement, PlacementError},
    service::CameraZones,
    shape::Zone,
};
use crate::{
    db::row,
    entity::{camera, detection},
    error::{Error, Result},
    pb,
    rpc::{check, time, work},
};

/// Largest number of buckets in a response.
const MAX_BUCKETS: usize = 10_000;

/// Largest number of counts in a response: buckets × zones.
const MAX_COUNTS: usize = 400_000;

/// Largest number of detections per request, and per query.
const MAX_DETECTIONS: usize = 1_000_000;
const DETECTIONS_PER_QUERY: usize = 10_000;

/// Permitted bucket widths in seconds.
const BUCKET_WIDTHS_SECONDS: RangeInclusive<i64> = 1..=86_400;

/// Columns of a detection that the count needs.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "detection::Entity")]
struct DetectionColumns {
    id: i64,
    detected_at: DateTime<Utc>,
    object_type: Option<String>,
    confidence: Option<f64>,
    bbox_x: Option<i32>,
    bbox_y: Option<i32>,
    bbox_width: Option<i32>,
    bbox_height: Option<i32>,
    video_width: Option<i32>,
    video_height: Option<i32>,
}

/// Validated request.
struct HitQuery {
    camera_id: String,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
    /// Bucket width in seconds.
    width: i64,
    /// Object types in lower case. Empty matches any type.
    object_types: Vec<String>,
    min_confidence: Option<f64>,
}

/// Counts of one bucket.
#[derive(Clone)]
struct BucketCounts {
    detections: i64,
    unplaced: i64,
    /// Number of detections in each zone of the camera.
    hits: Vec<i64>,
}

impl CameraZones {
    /// Counts the detections of a request.
    pub(super) async fn count(&self, request: &pb::CountZoneHitsRequest) -> Result<Vec<pb::ZoneHitBucket>> {
        let query = Arc::new(HitQuery::parse(request)?);
        let id = &query.camera_id;
        let camera = camera::Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(camera, "camera", id)?;
        let zone_set = self.zones.current();
        let zones = zone_set.of(id);
        if query.buckets() * zones.len() > MAX_COUNTS {
            let problem = format!(
                "must be larger: {} buckets of {} zones are more than {MAX_COUNTS} numbers",
                query.buckets(),
                zones.len()
            );
            return Err(Error::invalid("bucket_width", problem));
        }
        let empty = BucketCounts { detections: 0, unplaced: 0, hits: vec![0; zones.len()] };
        let mut buckets = vec![empty; query.buckets()];
        let (mut total, mut last) = (0, None);
        loop {
            let page = self.page(&query, last).await?;
            total += page.len();
            if total > MAX_DETECTIONS {
                let problem = format!("must be nearer: {MAX_DETECTIONS} detections at most");
                return Err(Error::invalid("range.end", problem));
            }
            let is_last = page.len() < DETECTIONS_PER_QUERY;
            last = page.last().map(|detection| (detection.detected_at, detection.id));
            let (zone_set, query) = (zone_set.clone(), query.clone());
            // A page for a camera with many zones may take seconds.
            let counting = move || {
                let zones = zone_set.of(&query.camera_id);
                for detection in page.iter().filter(|detection| query.is_counted(detection)) {
                    buckets[query.bucket(detection.detected_at)].add(detection, zones);
                }
                Ok(buckets)
            };
            buckets = work::run_blocking(counting).await?;
            if is_last {
                break;
            }
        }
        Ok(buckets
            .into_iter()
            .enumerate()
            .map(|(bucket, counts)| counts.into_proto(query.bucket_start(bucket), zones))
            .collect())
    }

    /// Reads the next detections of the range after `last`.
    async fn page(&self, query: &HitQuery, last: Option<(DateTime<Utc>, i64)>) -> Result<Vec<DetectionColumns>> {
        use detection::Column::{CameraId, DetectedAt, Id};
        // Each page takes its own scan permit, so that other scans can run in between.
        let scan = self.db.scan().await?;
        let mut select = detection::Entity::find()
            .filter(CameraId.eq(&query.camera_id))
            .filter(DetectedAt.gte(query.start))
            .filter(DetectedAt.lt(query.end));
        if let Some((detected_at, id)) = last {
            let same_time = Condition::all().add(DetectedAt.eq(detected_at)).add(Id.gt(id));
            let after_last = Condition::any().add(DetectedAt.gt(detected_at)).add(same_time);
            // The redundant bound lets the database use the index.
            select = select.filter(DetectedAt.gte(detected_at)).filter(after_last);
        }
        Ok(select
            .order_by_asc(DetectedAt)
            .order_by_asc(Id)
            .limit(DETECTIONS_PER_QUERY as u64)
            .into_partial_model()
            .all(scan.reader())
            .await?)
    }
}

impl HitQuery {
    fn parse(request: &pb::CountZoneHitsRequest) -> Result<Self> {
        let camera_id = check::id("camera_id", &request.camera_id)?;
        let (start, end) = time::bounds("range", request.range)?;
        let start = start.ok_or_else(|| Error::invalid("range.start", "is required"))?;
        let end = end.ok_or_else(|| Error::invalid("range.end", "is required"))?;
        if start == end {
            return Err(Error::invalid("range.end", "must be after the start"));
        }
        let width = request.bucket_width.ok_or_else(|| Error::invalid("bucket_width", "is required"))?;
        if width.nanos != 0 || !BUCKET_WIDTHS_SECONDS.contains(&width.seconds) {
            let problem = "must be whole seconds from 1 s to 86400 s";
            return Err(Error::invalid("bucket_width", problem));
        }
        let types = check::texts("object_types", &request.object_types, 100, &(1..=255))?;
        let min_confidence = request.min_confidence.map(|minimum| check::within("min_confidence", minimum, 0.0..=1.0));
        let query = Self {
            camera_id,
            start,
            end,
            width: width.seconds,
            object_types: types.iter().map(|name| name.to_lowercase()).collect(),
            min_confidence: min_confidence.transpose()?,
        };
        let buckets = query.buckets();
        if buckets > MAX_BUCKETS {
            let problem = format!("must be larger: {buckets} buckets are more than {MAX_BUCKETS}");
            return Err(Error::invalid("bucket_width", problem));
        }
        Ok(query)
    }

    /// Returns the bucket of a time, which must not be before the start.
    fn bucket(&self, time: DateTime<Utc>) -> usize {
        let number = time.timestamp().div_euclid(self.width) - self.start.timestamp().div_euclid(self.width);
        usize::try_from(number).unwrap_or_default()
    }

    /// Number of buckets. The end is exclusive.
    fn buckets(&self) -> usize {
        let last = self.end - chrono::TimeDelta::microseconds(1);
        self.bucket(last) + 1
    }

    fn bucket_start(&self, bucket: usize) -> Option<DateTime<Utc>> {
        let bucket = i64::try_from(bucket).ok()?;
        let number = self.start.timestamp().div_euclid(self.width) + bucket;
        DateTime::from_timestamp(number * self.width, 0)
    }

    /// Returns true if the detection meets the conditions on object type and confidence.
    fn is_counted(&self, detection: &DetectionColumns) -> bool {
        let object_type = detection.object_type.as_ref().map(|name| name.to_lowercase());
        let has_type = object_type.is_some_and(|name| self.object_types.contains(&name));
        let is_confident = |minimum| detection.confidence.is_some_and(|value| value >= minimum);
        (self.object_types.is_empty() || has_type) && self.min_confidence.is_none_or(is_confident)
    }
}

impl BucketCounts {
    fn add(&mut self, detection: &DetectionColumns, zones: &[Zone]) {
        self.detections += 1;
        let bbox = [detection.bbox_x, detection.bbox_y, detection.bbox_width, detection.bbox_height];
        match Placement::new(bbox, [detection.video_width, detection.video_height]) {
            Ok(placement) => {
                for (hits, zone) in self.hits.iter_mut().zip(zones) {
                    *hits += i64::from(zone.hit(&placement).is_some());
                }
            }
            Err(PlacementError::NoBox | PlacementError::NoSize) => self.unplaced += 1,
            Err(PlacementError::Outside) => {}
        }
    }

    fn into_proto(self, start: Option<DateTime<Utc>>, zones: &[Zone]) -> pb::ZoneHitBucket {
        let hits = self.hits.into_iter().zip(zones).filter(|(detections, _)| *detections > 0);
        pb::ZoneHitBucket {
            start_time: start.map(time::to_proto),
            detections: self.detections,
            unplaced: self.unplaced,
            zone_hits: hits
                .map(|(detections, zone)| pb::ZoneHitCount { zone_id: zone.id.clone(), detections })
                .collect(),
        }
    }
}
