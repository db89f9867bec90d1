//! The checks of an ingest, and the rows that it will become, before any database is asked.

use std::{ops::RangeInclusive, time::Duration};

use chrono::{DateTime, Utc};
use prost::Message;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    entity::{
        self, Strings,
        detection::{self, MediaType},
        event::{self, RiskLevel},
    },
    error::{Error, Result},
    pb,
    rpc::{check, enums::FromProto, json, time},
};

/// How many detections an event may have.
const DETECTIONS: usize = 1_000;

/// The longest text that people or models write, in characters.
const LONG_TEXT: usize = 65_536;
const LONG_PROMPT: usize = 1_048_576;

/// The largest answer to an ingest, in bytes, without its alerts. Most clients take messages of 4 MiB.
const LARGEST_ANSWER: usize = 7 << 19;

/// What the answer has of a detection that the request need not have, at most: ids, the camera, and times.
const ADDED: usize = 128;

/// The largest enrichment of a detection, in bytes of JSON.
const LARGEST_ENRICHMENT: usize = 64 << 10;

/// An ingest that can be stored. The ids of its rows are still 0.
#[derive(Debug, Clone)]
pub(super) struct Ingest {
    pub event: event::Model,
    pub detections: Vec<detection::Model>,
    /// The client's id of the request.
    pub request_id: Option<String>,
    /// The client's id of the event; `None` if the server made one up.
    pub batch_id: Option<String>,
    /// Tells whether a repeated request is the same.
    pub fingerprint: Vec<u8>,
    /// Whether the caller wants to know what stopped the rules that do not match.
    pub explain: bool,
}

impl Ingest {
    /// Checks a request and lays out its rows.
    pub(super) fn parse(mut request: pb::IngestEventRequest) -> Result<Self> {
        let now = entity::now();
        let optional = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        let request_id = check::text("request_id", &request.request_id, 0..=128)?;
        let request_id = optional(&request_id);
        request.request_id.clear();
        // Who asks for more is told more of the same.
        let explain = std::mem::take(&mut request.explain);
        let fingerprint = Sha256::digest(request.encode_to_vec()).to_vec();

        refuse_large_answer(&request)?;
        let event = request
            .event
            .ok_or_else(|| Error::invalid("event", "is required"))?;
        if request.detections.len() > DETECTIONS {
            return Err(Error::invalid(
                "detections",
                format!("must have at most {DETECTIONS} entries"),
            ));
        }
        let camera_id = check::id("event.camera_id", &event.camera_id)?;
        let batch_id = optional(&check::text("event.batch_id", &event.batch_id, 0..=255)?);
        let started_at = event
            .started_at
            .map(|started_at| time::past("event.started_at", started_at, now))
            .transpose()?;

        let detection = |(at, detection)| {
            parse_detection(at, detection, &camera_id, started_at.unwrap_or(now), now)
        };
        let detections = request
            .detections
            .into_iter()
            .enumerate()
            .map(detection)
            .collect::<Result<Vec<_>>>()?;
        let earliest = detections
            .iter()
            .map(|detection| detection.detected_at)
            .min();
        let started_at = started_at.or(earliest).unwrap_or(now);
        let event = parse_event(
            event,
            batch_id.clone(),
            camera_id,
            started_at,
            object_types(&detections),
            now,
        )?;
        Ok(Self {
            event,
            detections,
            request_id,
            batch_id,
            fingerprint,
            explain,
        })
    }
}

/// Refuses an ingest whose answer, which repeats the event and its detections, would be too large for clients: it would
/// be stored, and could not be told.
fn refuse_large_answer(request: &pb::IngestEventRequest) -> Result<()> {
    let bytes = request.encoded_len() + request.detections.len() * ADDED;
    if bytes <= LARGEST_ANSWER {
        return Ok(());
    }
    let field = if request.detections.is_empty() {
        "event"
    } else {
        "detections"
    };
    let problem = format!("must have at most {LARGEST_ANSWER} bytes together, got {bytes}");
    Err(Error::invalid(field, problem))
}

fn parse_event(
    event: pb::Event,
    batch_id: Option<String>,
    camera_id: String,
    started_at: DateTime<Utc>,
    object_types: Option<String>,
    now: DateTime<Utc>,
) -> Result<event::Model> {
    let ended_at = event
        .ended_at
        .map(|ended_at| time::past("event.ended_at", ended_at, now))
        .transpose()?;
    if ended_at.is_some_and(|ended_at| ended_at < started_at) {
        return Err(Error::invalid(
            "event.ended_at",
            "must not be before started_at",
        ));
    }
    let risk_score = event
        .risk_score
        .map(|score| check::within("event.risk_score", score, 0..=100))
        .transpose()?;
    let risk_level = RiskLevel::from_proto("event.risk_level", event.risk_level)?;
    let text = |field: &str, text: Option<String>, longest| {
        check::optional_text(field, text.as_deref(), 0..=longest)
    };
    Ok(event::Model {
        id: 0,
        batch_id: batch_id.unwrap_or_else(|| Uuid::now_v7().to_string()),
        camera_id,
        started_at,
        ended_at,
        risk_score,
        risk_level: risk_level.or(risk_score.map(level)),
        summary: text("event.summary", event.summary, LONG_TEXT)?,
        reasoning: text("event.reasoning", event.reasoning, LONG_TEXT)?,
        llm_prompt: text("event.llm_prompt", event.llm_prompt, LONG_PROMPT)?,
        reviewed: false,
        notes: None,
        is_fast_path: event.is_fast_path,
        object_types,
        clip_path: text("event.clip_path", event.clip_path, 1024)?,
        deleted_at: None,
        snooze_until: event
            .snooze_until
            .map(|until| time::from_proto("event.snooze_until", until))
            .transpose()?,
    })
}

/// The level of a score; see `Severity` in the API.
fn level(score: i32) -> RiskLevel {
    match score {
        ..30 => RiskLevel::Low,
        30..60 => RiskLevel::Medium,
        60..85 => RiskLevel::High,
        85.. => RiskLevel::Critical,
    }
}

/// The types of all detections, each once, as the column has them.
fn object_types(detections: &[detection::Model]) -> Option<String> {
    let mut types: Vec<String> = Vec::new();
    for name in detections
        .iter()
        .filter_map(|detection| detection.object_type.as_ref())
    {
        let name = name.to_lowercase();
        if !types.contains(&name) {
            types.push(name);
        }
    }
    Some(types.join(",")).filter(|types| !types.is_empty())
}

/// What an object is, which is kept in lists that commas part.
pub(super) fn object_type(
    field: &str,
    name: &str,
    length: RangeInclusive<usize>,
) -> Result<String> {
    if name.contains(',') {
        return Err(Error::invalid(field, "must not contain a comma"));
    }
    check::name(field, name, length)
}

fn parse_detection(
    at: usize,
    detection: pb::Detection,
    camera_id: &str,
    seen_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<detection::Model> {
    let field = |name: &str| format!("detections[{at}].{name}");
    let text = |name: &str, text: Option<String>, longest| {
        check::optional_text(&field(name), text.as_deref(), 0..=longest)
    };
    if !detection.camera_id.is_empty() && detection.camera_id != camera_id {
        return Err(Error::invalid(
            field("camera_id"),
            "must be the camera of the event",
        ));
    }
    let object_type = detection
        .object_type
        .map(|name| object_type(&field("object_type"), &name, 1..=255));
    let boxed = [
        detection.bbox_x,
        detection.bbox_y,
        detection.bbox_width,
        detection.bbox_height,
    ];
    if let Some(missing) = boxed.iter().position(Option::is_none)
        && boxed.iter().any(Option::is_some)
    {
        let name = ["bbox_x", "bbox_y", "bbox_width", "bbox_height"][missing];
        return Err(Error::invalid(
            field(name),
            "is required where another part of the bounding box is set",
        ));
    }
    let size = |name: &str, size: Option<i32>, least: i32| {
        size.map(|size| check::within(&field(name), size, least..=i32::MAX))
            .transpose()
    };
    let confidence = detection
        .confidence
        .map(|sure| check::within(&field("confidence"), sure, 0.0..=1.0));
    let duration = detection.duration.map(|length| {
        time::duration(
            &field("duration"),
            length,
            &(Duration::ZERO..=time::MAX_DURATION),
        )
    });
    let detected_at = detection
        .detected_at
        .map(|seen_at| time::past(&field("detected_at"), seen_at, now));
    let labels = check::texts(&field("labels"), &detection.labels, 64, &(1..=255))?;
    let enrichment = detection
        .enrichment_data
        .map(|data| json::from_proto(&field("enrichment_data"), data, LARGEST_ENRICHMENT));
    Ok(detection::Model {
        id: 0,
        camera_id: camera_id.to_string(),
        file_path: check::text(&field("file_path"), &detection.file_path, 0..=1024)?,
        file_type: text("file_type", detection.file_type, 255)?,
        detected_at: detected_at.transpose()?.unwrap_or(seen_at),
        object_type: object_type.transpose()?,
        confidence: confidence.transpose()?,
        bbox_x: detection.bbox_x,
        bbox_y: detection.bbox_y,
        bbox_width: size("bbox_width", detection.bbox_width, 0)?,
        bbox_height: size("bbox_height", detection.bbox_height, 0)?,
        thumbnail_path: text("thumbnail_path", detection.thumbnail_path, 1024)?,
        media_type: MediaType::from_proto(&field("media_type"), detection.media_type)?
            .or(Some(MediaType::Image)),
        duration: duration.transpose()?.map(|length| length.as_secs_f64()),
        video_codec: text("video_codec", detection.video_codec, 64)?,
        video_width: size("video_width", detection.video_width, 1)?,
        video_height: size("video_height", detection.video_height, 1)?,
        enrichment_data: enrichment.transpose()?,
        labels: Some(Strings(labels)).filter(|labels| !labels.0.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_have_levels() {
        use RiskLevel::{Critical, High, Low, Medium};
        let levels = [
            (0, Low),
            (29, Low),
            (30, Medium),
            (59, Medium),
            (60, High),
            (84, High),
            (85, Critical),
        ];
        for (score, expected) in levels {
            assert_eq!(level(score), expected, "{score}");
        }
    }

    #[test]
    fn an_event_starts_with_its_first_detection() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let detection = |seconds| pb::Detection {
            detected_at: at(seconds),
            ..Default::default()
        };
        let event = pb::Event {
            camera_id: "door".into(),
            ..Default::default()
        };
        let request = pb::IngestEventRequest {
            event: Some(event),
            detections: vec![detection(20), detection(10)],
            ..Default::default()
        };
        assert_eq!(
            Ingest::parse(request).unwrap().event.started_at.timestamp(),
            10
        );
    }
}
