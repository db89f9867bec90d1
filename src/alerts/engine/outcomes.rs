//! Compact encoding of the outcomes of matching rules, stored with every ingest.

use prost::Message;
use uuid::Uuid;

use super::rule_set::RuleSet;
use crate::pb::{self, RuleStop};

/// Stored form. Fixed-width arrays keep rows small with many rules.
#[derive(Clone, PartialEq, Message)]
struct Outcomes {
    /// Rule ids, 16 bytes each.
    #[prost(bytes = "vec", tag = "1")]
    rule_ids: Vec<u8>,
    /// `RuleStop` of each rule, one byte each.
    #[prost(bytes = "vec", tag = "2")]
    stops: Vec<u8>,
    /// Alert id of each rule, 16 bytes each, all zero without an alert. Rows of earlier versions
    /// omit missing alerts.
    #[prost(bytes = "vec", tag = "3")]
    alert_ids: Vec<u8>,
    /// Silence ids of the silenced rules only, 16 bytes each.
    #[prost(bytes = "vec", tag = "4")]
    silence_ids: Vec<u8>,
}

/// Returns true if the value is a suppression, not a failed condition: the rule did match.
pub fn is_match(stopped_by: i32) -> bool {
    use RuleStop::{CameraIds, MinConfidence, ObjectTypes, RiskThreshold, Schedule, ZoneIds};
    let conditions = [RiskThreshold, CameraIds, ObjectTypes, MinConfidence, ZoneIds, Schedule];
    !conditions.iter().any(|stop| i32::from(*stop) == stopped_by)
}

/// Encodes outcomes for storage.
pub fn encode<'a>(outcomes: impl Iterator<Item = &'a pb::RuleOutcome>) -> Vec<u8> {
    let mut stored = Outcomes::default();
    let bytes = |id: &str| Uuid::parse_str(id).unwrap_or_default().into_bytes();
    for outcome in outcomes {
        stored.rule_ids.extend(bytes(&outcome.rule_id));
        stored.stops.push(u8::try_from(outcome.stopped_by).unwrap_or_default());
        let alert_id = outcome.alert_id.as_deref().unwrap_or_default();
        stored.alert_ids.extend(bytes(alert_id));
        let silence_id = outcome.silence_id.as_deref();
        stored.silence_ids.extend(silence_id.map(bytes).into_iter().flatten());
    }
    stored.encode_to_vec()
}

/// Decodes stored outcomes. Rule names are the present names.
pub fn decode(bytes: &[u8], rules: &RuleSet) -> Vec<pb::RuleOutcome> {
    let stored = Outcomes::decode(bytes).unwrap_or_default();
    let (rule_ids, _) = stored.rule_ids.as_chunks::<16>();
    let (alert_ids, _) = stored.alert_ids.as_chunks::<16>();
    let has_id_per_rule = alert_ids.len() == rule_ids.len();
    let mut alert_ids = alert_ids.iter();
    let (silence_ids, _) = stored.silence_ids.as_chunks::<16>();
    let mut silence_ids = silence_ids.iter();
    let outcome = |(rule_id, stop): (&[u8; 16], &u8)| {
        let rule_id = Uuid::from_bytes(*rule_id);
        let stopped_by = i32::from(*stop);
        let cooldown = i32::from(RuleStop::Cooldown);
        let has_alert = has_id_per_rule || stopped_by == 0 || stopped_by == cooldown;
        let alert_id = if has_alert { alert_ids.next() } else { None };
        let alert_id = alert_id.map(|id| Uuid::from_bytes(*id));
        let silenced = stopped_by == i32::from(RuleStop::Silenced);
        let silence_id = if silenced { silence_ids.next() } else { None };
        pb::RuleOutcome {
            rule_id: rule_id.to_string(),
            rule_name: rules.get(rule_id).map(|rule| rule.name.clone()).unwrap_or_default(),
            fired: stopped_by == 0,
            stopped_by,
            alert_id: alert_id.filter(|id| !id.is_nil()).map(|id| id.to_string()),
            silence_id: silence_id.map(|id| Uuid::from_bytes(*id).to_string()),
            detail: String::new(),
        }
    };
    let outcomes = rule_ids.iter().zip(&stored.stops).map(outcome);
    outcomes.filter(|outcome| is_match(outcome.stopped_by)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matched_is_kept_whoever_wrote_it() {
        let outcome = |stopped_by: RuleStop, alert_id: Option<u128>| pb::RuleOutcome {
            rule_id: Uuid::now_v7().to_string(),
            fired: stopped_by == RuleStop::Unspecified,
            stopped_by: stopped_by.into(),
            alert_id: alert_id.map(|id| Uuid::from_u128(id).to_string()),
            ..Default::default()
        };
        let all = [
            outcome(RuleStop::ZoneIds, None),
            outcome(RuleStop::Unspecified, Some(1)),
            outcome(RuleStop::Snoozed, None),
            outcome(RuleStop::Cooldown, Some(2)),
            pb::RuleOutcome { silence_id: Some(Uuid::from_u128(3).to_string()), ..outcome(RuleStop::Silenced, None) },
        ];
        let flapping = [all[4].clone(), outcome(RuleStop::Flapping, Some(4)), all[4].clone()];
        assert_eq!(decode(&encode(flapping.iter()), &RuleSet::default()), flapping);
        let matching = &all[1..];
        assert_eq!(decode(&encode(matching.iter()), &RuleSet::default()), matching);
        // Earlier versions stored all rules, and the ids of existing alerts only.
        let mut kept = Outcomes::decode(&*encode(all.iter())).unwrap();
        let (ids, _) = kept.alert_ids.as_chunks::<16>();
        kept.alert_ids = ids.iter().filter(|id| **id != [0; 16]).flatten().copied().collect();
        assert_eq!(decode(&kept.encode_to_vec(), &RuleSet::default()), matching);
    }
}
