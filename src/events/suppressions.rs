//! Rows of `alert_suppressions`: matches of rules that raised no alert.

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use uuid::Uuid;

use super::batch::EvaluatedIngest;
use crate::{
    entity::alert_suppression::{ActiveModel, SuppressionReason},
    pb::RuleStop,
};

/// Builds the suppression rows of ingests with complete outcomes.
pub(super) fn suppression_rows(
    new: &[&mut EvaluatedIngest],
    now: DateTime<Utc>,
) -> Vec<ActiveModel> {
    let mut rows = Vec::new();
    for evaluated in new {
        for (dedup_key, outcome) in evaluated.dedup_keys_and_outcomes() {
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
            let parse_id =
                |id: &Option<String>| id.as_deref().and_then(|id| Uuid::try_parse(id).ok());
            rows.push(ActiveModel {
                id: NotSet,
                event_id: Set(evaluated.ingest.event.id),
                rule_id: Set(Uuid::try_parse(&outcome.rule_id).ok()),
                camera_id: Set(evaluated.ingest.event.camera_id.clone()),
                dedup_key: Set(dedup_key()),
                reason: Set(reason),
                silence_id: Set(parse_id(&outcome.silence_id)),
                alert_id: Set(parse_id(&outcome.alert_id)),
                created_at: Set(now),
            });
        }
    }
    rows
}
