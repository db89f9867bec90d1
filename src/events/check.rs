//! Validation of an ingest and conversion into rows, without the database.

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

/// Largest number of detections in an event.
const MAX_DETECTIONS: usize = 1_000;

/// Largest lengths of summaries and of prompts, in characters.
const MAX_TEXT_CHARS: usize = 65_536;
const MAX_PROMPT_CHARS: usize = 1_048_576;

/// Largest response to an ingest without alerts, in bytes: 3.5 MiB. Most clients accept messages of
/// 4 MiB.
const MAX_RESPONSE_BYTES: usize = 7 << 19;

/// Largest number of bytes that the response adds to a detection of the request: ids, camera and
/// times.
const RESPONSE_BYTES_PER_DETECTION: usize = 128;

/// Largest enrichment of a detection, in bytes of JSON.
const MAX_ENRICHMENT_BYTES: usize = 64 << 10;

/// Validated ingest. The ids of the rows are 0 until the ingest is stored.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    pub event: event::Model,
    pub detections: Vec<detection::Model>,
    /// Idempotency key of the request.
    pub request_id: Option<String>,
    /// Event id of the client. `None` if the server generated `event.batch_id`.
    pub batch_id: Option<String>,
    /// Hash of the request without `request_id` and `explain`. Equal for repetitions of a request.
    pub fingerprint: Vec<u8>,
    /// Asks for the outcomes of rules that do not match.
    pub explain: bool,
}

impl Ingest {
    /// Validates a request and builds the rows.
    pub(super) fn parse(mut request: pb::IngestEventRequest) -> Result<Self> {
        let now = entity::now();
        let optional = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        let request_id = optional(&check::text("request_id", &request.request_id, 0..=128)?);
        request.request_id.clear();
        // `explain` changes the response only, so that a repetition may differ in it.
        let explain = std::mem::take(&mut request.explain);
        let fingerprint = Sha256::digest(request.encode_to_vec()).to_vec();

        refuse_large_response(&request)?;
        let event = request.event.ok_or_else(|| Error::invalid("event", "is required"))?;
        if request.detections.len() > MAX_DETECTIONS {
            return Err(Error::invalid("detections", format!("must have at most {MAX_DETECTIONS} entries")));
        }
        let camera_id = check::id("event.camera_id", &event.camera_id)?;
        let batch_id = optional(&check::text("event.batch_id", &event.batch_id, 0..=255)?);
        let requested_start =
            event.started_at.map(|started_at| time::past("event.started_at", started_at, now)).transpose()?;

        let parse =
            |(index, detection)| parse_detection(index, detection, &camera_id, requested_start.unwrap_or(now), now);
        let detections = request.detections.into_iter().enumerate().map(parse).collect::<Result<Vec<_>>>()?;
        let earliest = detections.iter().map(|detection| detection.detected_at).min();
        let started_at = requested_start.or(earliest).unwrap_or(now);
        let event = parse_event(event, batch_id.clone(), camera_id, started_at, object_types(&detections), now)?;
        Ok(Self { event, detections, request_id, batch_id, fingerprint, explain })
    }
}

/// Refuses an ingest whose response would exceed the message limit of clients. The response repeats
/// the event and the detections.
fn refuse_large_response(request: &pb::IngestEventRequest) -> Result<()> {
    let bytes = request.encoded_len() + request.detections.len() * RESPONSE_BYTES_PER_DETECTION;
    if bytes <= MAX_RESPONSE_BYTES {
        return Ok(());
    }
    let field = if request.detections.is_empty() { "event" } else { "detections" };
    let problem = format!("must have at most {MAX_RESPONSE_BYTES} bytes together, got {bytes}");
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
    let ended_at = event.ended_at.map(|ended_at| time::past("event.ended_at", ended_at, now)).transpose()?;
    if ended_at.is_some_and(|ended_at| ended_at < started_at) {
        return Err(Error::invalid("event.ended_at", "must not be before started_at"));
    }
    let risk_score = event.risk_score.map(|score| check::within("event.risk_score", score, 0..=100)).transpose()?;
    let risk_level = RiskLevel::from_proto("event.risk_level", event.risk_level)?;
    let text =
        |field: &str, text: Option<String>, max_chars| check::optional_text(field, text.as_deref(), 0..=max_chars);
    Ok(event::Model {
        id: 0,
        batch_id: batch_id.unwrap_or_else(|| Uuid::now_v7().to_string()),
        camera_id,
        started_at,
        ended_at,
        risk_score,
        risk_level: risk_level.or(risk_score.map(risk_level_of)),
        summary: text("event.summary", event.summary, MAX_TEXT_CHARS)?,
        reasoning: text("event.reasoning", event.reasoning, MAX_TEXT_CHARS)?,
        llm_prompt: text("event.llm_prompt", event.llm_prompt, MAX_PROMPT_CHARS)?,
        reviewed: false,
        notes: None,
        is_fast_path: event.is_fast_path,
        object_types,
        clip_path: text("event.clip_path", event.clip_path, 1024)?,
        deleted_at: None,
        snooze_until: event.snooze_until.map(|until| time::from_proto("event.snooze_until", until)).transpose()?,
    })
}

/// Returns the risk level of a score, see `Severity` in the API.
fn risk_level_of(score: i32) -> RiskLevel {
    match score {
        ..30 => RiskLevel::Low,
        30..60 => RiskLevel::Medium,
        60..85 => RiskLevel::High,
        85.. => RiskLevel::Critical,
    }
}

/// Returns the distinct object types in lower case, separated by commas.
fn object_types(detections: &[detection::Model]) -> Option<String> {
    let mut types: Vec<String> = Vec::new();
    for name in detections.iter().filter_map(|detection| detection.object_type.as_ref()) {
        let name = name.to_lowercase();
        if !types.contains(&name) {
            types.push(name);
        }
    }
    Some(types.join(",")).filter(|types| !types.is_empty())
}

/// Validates an object type. Commas are refused, because the column separates types by commas.
pub(super) fn object_type(field: &str, name: &str, length: RangeInclusive<usize>) -> Result<String> {
    if name.contains(',') {
        return Err(Error::invalid(field, "must not contain a comma"));
    }
    check::name(field, name, length)
}

fn parse_detection(
    index: usize,
    detection: pb::Detection,
    camera_id: &str,
    default_time: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<detection::Model> {
    let field = |name: &str| format!("detections[{index}].{name}");
    let text = |name: &str, text: Option<String>, max_chars| {
        check::optional_text(&field(name), text.as_deref(), 0..=max_chars)
    };
    if !detection.camera_id.is_empty() && detection.camera_id != camera_id {
        return Err(Error::invalid(field("camera_id"), "must be the camera of the event"));
    }
    let object_type = detection.object_type.map(|name| object_type(&field("object_type"), &name, 1..=255));
    let bbox = [detection.bbox_x, detection.bbox_y, detection.bbox_width, detection.bbox_height];
    if let Some(missing) = bbox.iter().position(Option::is_none)
        && bbox.iter().any(Option::is_some)
    {
        let name = ["bbox_x", "bbox_y", "bbox_width", "bbox_height"][missing];
        return Err(Error::invalid(field(name), "is required where another part of the bounding box is set"));
    }
    let size = |name: &str, size: Option<i32>, minimum: i32| {
        size.map(|size| check::within(&field(name), size, minimum..=i32::MAX)).transpose()
    };
    let confidence = detection.confidence.map(|confidence| check::within(&field("confidence"), confidence, 0.0..=1.0));
    let duration = detection.duration.map(|duration| {
        let bounds = Duration::ZERO..=time::MAX_DURATION;
        time::duration(&field("duration"), duration, &bounds)
    });
    let detected_at = detection.detected_at.map(|detected_at| time::past(&field("detected_at"), detected_at, now));
    let labels = check::texts(&field("labels"), &detection.labels, 64, &(1..=255))?;
    let enrichment =
        detection.enrichment_data.map(|data| json::from_proto(&field("enrichment_data"), data, MAX_ENRICHMENT_BYTES));
    Ok(detection::Model {
        id: 0,
        camera_id: camera_id.to_string(),
        file_path: check::text(&field("file_path"), &detection.file_path, 0..=1024)?,
        file_type: text("file_type", detection.file_type, 255)?,
        detected_at: detected_at.transpose()?.unwrap_or(default_time),
        object_type: object_type.transpose()?,
        confidence: confidence.transpose()?,
        bbox_x: detection.bbox_x,
        bbox_y: detection.bbox_y,
        bbox_width: size("bbox_width", detection.bbox_width, 0)?,
        bbox_height: size("bbox_height", detection.bbox_height, 0)?,
        thumbnail_path: text("thumbnail_path", detection.thumbnail_path, 1024)?,
        media_type: MediaType::from_proto(&field("media_type"), detection.media_type)?.or(Some(MediaType::Image)),
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
        let levels = [(0, Low), (29, Low), (30, Medium), (59, Medium), (60, High), (84, High), (85, Critical)];
        for (score, expected) in levels {
            assert_eq!(risk_level_of(score), expected, "{score}");
        }
    }

    #[test]
    fn an_event_starts_with_its_first_detection() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let detection = |seconds| pb::Detection { detected_at: at(seconds), ..Default::default() };
        let event = pb::Event { camera_id: "door".into(), ..Default::default() };
        let request = pb::IngestEventRequest {
            event: Some(event),
            detections: vec![detection(20), detection(10)],
            ..Default::default()
        };
        assert_eq!(Ingest::parse(request).unwrap().event.started_at.timestamp(), 10);
    }
}
