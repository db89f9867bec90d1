//! What rules wanted to raise and was held back, for the record.

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use uuid::Uuid;

use super::batch::Judged;
use crate::{
    entity::alert_suppression::{ActiveModel, SuppressionReason},
    pb::RuleStop,
};

/// The rows of what was held back of ingests whose outcomes are complete.
pub(super) fn rows(new: &[&mut Judged], now: DateTime<Utc>) -> Vec<ActiveModel> {
    let mut rows = Vec::new();
    for judged in new {
        for (dedup_key, outcome) in judged.keys_and_outcomes() {
            let reason = match outcome.stopped_by() {
                RuleStop::Silenced => SuppressionReason::Silenced,
                RuleStop::Snoozed => SuppressionReason::Snoozed,
                RuleStop::Flapping => SuppressionReason::Flapping,
                RuleStop::Cooldown => SuppressionReason::Cooldown,
                RuleStop::Unspecified
                | RuleStop::RiskThreshold
                | RuleStop::CameraIds
                | RuleStop::ObjectTypes
                | RuleStop::MinConfidence
                | RuleStop::ZoneIds
                | RuleStop::Schedule => continue,
            };
            let id = |id: &Option<String>| id.as_deref().and_then(|id| Uuid::try_parse(id).ok());
            rows.push(ActiveModel {
                id: NotSet,
                event_id: Set(judged.ingest.event.id),
                rule_id: Set(Uuid::try_parse(&outcome.rule_id).ok()),
                camera_id: Set(judged.ingest.event.camera_id.clone()),
                dedup_key: Set(dedup_key()),
                reason: Set(reason),
                silence_id: Set(id(&outcome.silence_id)),
                alert_id: Set(id(&outcome.alert_id)),
                created_at: Set(now),
            });
        }
    }
    rows
}
