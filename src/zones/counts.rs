//! `CountZoneHits`: how many detections were in each zone, in buckets of time.

use std::{ops::RangeInclusive, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, DerivePartialModel, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::{
    place::{Place, Unplaced},
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

/// How many buckets an answer may have.
const MOST_BUCKETS: usize = 10_000;

/// How many numbers it may have, buckets × zones.
const MOST_COUNTS: usize = 400_000;

/// How many detections are read at most, and how many at a time.
const MOST_DETECTIONS: usize = 1_000_000;
const PAGE: usize = 10_000;

/// How wide a bucket may be, in seconds.
const WIDTHS: RangeInclusive<i64> = 1..=86_400;

/// What of a detection matters.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "detection::Entity")]
struct Seen {
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

/// What is to be counted.
struct Wanted {
    camera_id: String,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
    /// Of a bucket, in seconds.
    width: i64,
    /// Lower case. Empty: any.
    object_types: Vec<String>,
    min_confidence: Option<f64>,
}

/// What was counted in a bucket.
#[derive(Clone)]
struct Counts {
    detections: i64,
    unplaced: i64,
    /// For every zone of the camera, in their order.
    hits: Vec<i64>,
}

impl CameraZones {
    /// The buckets that a request asks for.
    pub(super) async fn count(
        &self,
        request: &pb::CountZoneHitsRequest,
    ) -> Result<Vec<pb::ZoneHitBucket>> {
        let wanted = Arc::new(Wanted::parse(request)?);
        let id = &wanted.camera_id;
        let camera = camera::Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(camera, "camera", id)?;
        let all = self.zones.current();
        let zones = all.of(id);
        if wanted.buckets() * zones.len() > MOST_COUNTS {
            let problem = format!(
                "must be larger: {} buckets of {} zones are more than {MOST_COUNTS} numbers",
                wanted.buckets(),
                zones.len()
            );
            return Err(Error::invalid("bucket_width", problem));
        }
        let empty = Counts {
            detections: 0,
            unplaced: 0,
            hits: vec![0; zones.len()],
        };
        let mut buckets = vec![empty; wanted.buckets()];
        let (mut read, mut last) = (0, None);
        loop {
            let page = self.page(&wanted, last).await?;
            read += page.len();
            if read > MOST_DETECTIONS {
                let problem = format!("must be nearer: {MOST_DETECTIONS} detections at most");
                return Err(Error::invalid("range.end", problem));
            }
            let is_last = page.len() < PAGE;
            last = page.last().map(|seen| (seen.detected_at, seen.id));
            let (all, wanted) = (all.clone(), wanted.clone());
            // A page of a camera of many zones takes seconds.
            let counting = move || {
                let zones = all.of(&wanted.camera_id);
                for seen in page.iter().filter(|seen| wanted.meets(seen)) {
                    buckets[wanted.bucket(seen.detected_at)].add(seen, zones);
                }
                Ok(buckets)
            };
            buckets = work::run_blocking(counting).await?;
            if is_last {
                break;
            }
        }
        let buckets = buckets.into_iter().enumerate();
        Ok(buckets
            .map(|(at, counts)| counts.told(wanted.bucket_start(at), zones))
            .collect())
    }

    /// The detections of the range after the last one that was read.
    async fn page(&self, wanted: &Wanted, last: Option<(DateTime<Utc>, i64)>) -> Result<Vec<Seen>> {
        use detection::Column::{CameraId, DetectedAt, Id};
        // A turn for each page: others take turns too.
        let scan = self.db.scan().await?;
        let mut select = detection::Entity::find()
            .filter(CameraId.eq(&wanted.camera_id))
            .filter(DetectedAt.gte(wanted.start))
            .filter(DetectedAt.lt(wanted.end));
        if let Some((detected_at, id)) = last {
            let same_time = Condition::all()
                .add(DetectedAt.eq(detected_at))
                .add(Id.gt(id));
            let rest = Condition::any()
                .add(DetectedAt.gt(detected_at))
                .add(same_time);
            // The first bound is for the index.
            select = select.filter(DetectedAt.gte(detected_at)).filter(rest);
        }
        Ok(select
            .order_by_asc(DetectedAt)
            .order_by_asc(Id)
            .limit(PAGE as u64)
            .into_partial_model()
            .all(scan.reader())
            .await?)
    }
}

impl Wanted {
    fn parse(request: &pb::CountZoneHitsRequest) -> Result<Self> {
        let camera_id = check::id("camera_id", &request.camera_id)?;
        let (start, end) = time::bounds("range", request.range)?;
        let start = start.ok_or_else(|| Error::invalid("range.start", "is required"))?;
        let end = end.ok_or_else(|| Error::invalid("range.end", "is required"))?;
        if start == end {
            return Err(Error::invalid("range.end", "must be after the start"));
        }
        let width = request.bucket_width;
        let width = width.ok_or_else(|| Error::invalid("bucket_width", "is required"))?;
        if width.nanos != 0 || !WIDTHS.contains(&width.seconds) {
            let problem = "must be whole seconds from 1 s to 86400 s";
            return Err(Error::invalid("bucket_width", problem));
        }
        let types = check::texts("object_types", &request.object_types, 100, &(1..=255))?;
        let min_confidence = request
            .min_confidence
            .map(|least| check::within("min_confidence", least, 0.0..=1.0));
        let wanted = Self {
            camera_id,
            start,
            end,
            width: width.seconds,
            object_types: types.iter().map(|name| name.to_lowercase()).collect(),
            min_confidence: min_confidence.transpose()?,
        };
        let buckets = wanted.buckets();
        if buckets > MOST_BUCKETS {
            let problem = format!("must be larger: {buckets} buckets are more than {MOST_BUCKETS}");
            return Err(Error::invalid("bucket_width", problem));
        }
        Ok(wanted)
    }

    /// In which bucket a time lies that is not before the start.
    fn bucket(&self, at: DateTime<Utc>) -> usize {
        let number =
            at.timestamp().div_euclid(self.width) - self.start.timestamp().div_euclid(self.width);
        usize::try_from(number).unwrap_or_default()
    }

    /// How many buckets there are. The end itself is outside.
    fn buckets(&self) -> usize {
        let last = self.end - chrono::TimeDelta::microseconds(1);
        self.bucket(last) + 1
    }

    fn bucket_start(&self, bucket: usize) -> Option<DateTime<Utc>> {
        let bucket = i64::try_from(bucket).ok()?;
        let number = self.start.timestamp().div_euclid(self.width) + bucket;
        DateTime::from_timestamp(number * self.width, 0)
    }

    /// Whether a detection meets the conditions that rules have, too.
    fn meets(&self, seen: &Seen) -> bool {
        let name = seen.object_type.as_ref().map(|name| name.to_lowercase());
        let typed = name.is_some_and(|name| self.object_types.contains(&name));
        let sure = |least| seen.confidence.is_some_and(|is| is >= least);
        (self.object_types.is_empty() || typed) && self.min_confidence.is_none_or(sure)
    }
}

impl Counts {
    fn add(&mut self, seen: &Seen, zones: &[Zone]) {
        self.detections += 1;
        let bbox = [seen.bbox_x, seen.bbox_y, seen.bbox_width, seen.bbox_height];
        match Place::new(bbox, [seen.video_width, seen.video_height]) {
            Ok(place) => {
                for (hits, zone) in self.hits.iter_mut().zip(zones) {
                    *hits += i64::from(zone.hit(&place).is_some());
                }
            }
            Err(Unplaced::NoBox | Unplaced::NoSize) => self.unplaced += 1,
            Err(Unplaced::Outside) => {}
        }
    }

    fn told(self, start: Option<DateTime<Utc>>, zones: &[Zone]) -> pb::ZoneHitBucket {
        let hits = self.hits.into_iter().zip(zones);
        let hits = hits.filter(|(detections, _)| *detections > 0);
        pb::ZoneHitBucket {
            start_time: start.map(time::to_proto),
            detections: self.detections,
            unplaced: self.unplaced,
            zone_hits: hits
                .map(|(detections, zone)| pb::ZoneHitCount {
                    zone_id: zone.id.clone(),
                    detections,
                })
                .collect(),
        }
    }
}
