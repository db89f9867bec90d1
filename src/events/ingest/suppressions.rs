//! Rows of `alert_suppressions`: matches of rules that raised no alert.

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use uuid::Uuid;

use super::stages::{MatchResults, NewIngest};
use crate::{
    entity::alert_suppression::{ActiveModel, SuppressionReason},
    pb::RuleStop,
};

/// Builds the suppression rows of new ingests. `results` has the results of each ingest.
pub(crate) fn suppression_rows(
    new: &[NewIngest<'_>],
    results: &[MatchResults],
    now: DateTime<Utc>,
) -> Vec<ActiveModel> {
    let mut rows = Vec::new();
    for (ingest, results) in new.iter().zip(results) {
        for (matched, outcome) in ingest.evaluated.matches.iter().zip(&results.outcomes) {
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
            let parse_id = |id: &Option<String>| id.as_deref().and_then(|id| Uuid::try_parse(id).ok());
            rows.push(ActiveModel {
                id: NotSet,
                event_id: Set(ingest.event_id),
                rule_id: Set(Uuid::try_parse(&outcome.rule_id).ok()),
                camera_id: Set(ingest.evaluated.ingest.event.camera_id.clone()),
                dedup_key: Set(ingest.dedup_key(matched)),
                reason: Set(reason),
                silence_id: Set(parse_id(&outcome.silence_id)),
                alert_id: Set(parse_id(&outcome.alert_id)),
                created_at: Set(now),
            });
        }
    }
    rows
}
