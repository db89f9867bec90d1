//! Conversion of event and detection rows to messages.

use crate::{
    entity::{
        detection::{self, MediaType},
        event::{self, RiskLevel},
    },
    pb,
    rpc::{enums::proto_enum, json, time},
};

impl From<event::Model> for pb::Event {
    fn from(row: event::Model) -> Self {
        let object_types = row.object_types.unwrap_or_default();
        Self {
            id: row.id,
            batch_id: row.batch_id,
            camera_id: row.camera_id,
            started_at: Some(time::to_proto(row.started_at)),
            ended_at: row.ended_at.map(time::to_proto),
            risk_score: row.risk_score,
            risk_level: row.risk_level.map_or(pb::Severity::Unspecified, Into::into).into(),
            summary: row.summary,
            reasoning: row.reasoning,
            llm_prompt: row.llm_prompt,
            reviewed: row.reviewed,
            notes: row.notes,
            is_fast_path: row.is_fast_path,
            object_types: object_types.split(',').filter(|name| !name.is_empty()).map(Into::into).collect(),
            clip_path: row.clip_path,
            deleted_at: row.deleted_at.map(time::to_proto),
            snooze_until: row.snooze_until.map(time::to_proto),
        }
    }
}

impl From<detection::Model> for pb::Detection {
    fn from(row: detection::Model) -> Self {
        Self {
            id: row.id,
            camera_id: row.camera_id,
            file_path: row.file_path,
            file_type: row.file_type,
            detected_at: Some(time::to_proto(row.detected_at)),
            object_type: row.object_type,
            confidence: row.confidence,
            bbox_x: row.bbox_x,
            bbox_y: row.bbox_y,
            bbox_width: row.bbox_width,
            bbox_height: row.bbox_height,
            thumbnail_path: row.thumbnail_path,
            media_type: row.media_type.map_or(pb::MediaType::Unspecified, Into::into).into(),
            duration: row.duration.and_then(time::duration_from_seconds_f64),
            video_codec: row.video_codec,
            video_width: row.video_width,
            video_height: row.video_height,
            enrichment_data: row.enrichment_data.and_then(json::to_proto),
            labels: row.labels.unwrap_or_default().0,
        }
    }
}

proto_enum!(RiskLevel, pb::Severity { Low, Medium, High, Critical });
proto_enum!(MediaType, pb::MediaType { Image, Video });
