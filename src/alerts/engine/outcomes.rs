//! What is kept of the outcomes of an ingest: those of the rules that matched.

use prost::Message;
use uuid::Uuid;

use super::live::RuleSet;
use crate::pb::{self, RuleStop};

/// Close together, as there may be many.
#[derive(Clone, PartialEq, Message)]
struct Outcomes {
    /// The ids of the rules, 16 bytes each.
    #[prost(bytes = "vec", tag = "1")]
    rule_ids: Vec<u8>,
    /// What stopped each of them, a byte each, see `RuleStop`.
    #[prost(bytes = "vec", tag = "2")]
    stops: Vec<u8>,
    /// The alert of each of them, 16 bytes each, all zero without one. In rows of earlier versions those without
    /// one are left out.
    #[prost(bytes = "vec", tag = "3")]
    alert_ids: Vec<u8>,
    /// The silences of those that were silenced, 16 bytes each.
    #[prost(bytes = "vec", tag = "4")]
    silence_ids: Vec<u8>,
}

/// Whether a rule that this stopped had matched: what held it back is none of its conditions.
pub fn matched(stopped_by: i32) -> bool {
    use RuleStop::{CameraIds, MinConfidence, ObjectTypes, RiskThreshold, Schedule, ZoneIds};
    let conditions = [
        RiskThreshold,
        CameraIds,
        ObjectTypes,
        MinConfidence,
        ZoneIds,
        Schedule,
    ];
    !conditions.iter().any(|stop| i32::from(*stop) == stopped_by)
}

/// The outcomes as they are kept.
pub fn encode<'a>(outcomes: impl Iterator<Item = &'a pb::RuleOutcome>) -> Vec<u8> {
    let mut kept = Outcomes::default();
    let bytes = |id: &str| Uuid::parse_str(id).unwrap_or_default().into_bytes();
    for outcome in outcomes {
        kept.rule_ids.extend(bytes(&outcome.rule_id));
        kept.stops
            .push(u8::try_from(outcome.stopped_by).unwrap_or_default());
        let alert_id = outcome.alert_id.as_deref().unwrap_or_default();
        kept.alert_ids.extend(bytes(alert_id));
        let silence_id = outcome.silence_id.as_deref();
        kept.silence_ids
            .extend(silence_id.map(bytes).into_iter().flatten());
    }
    kept.encode_to_vec()
}

/// The outcomes that were kept, with the present names of the rules.
pub fn decode(kept: &[u8], rules: &RuleSet) -> Vec<pb::RuleOutcome> {
    let kept = Outcomes::decode(kept).unwrap_or_default();
    let (rule_ids, _) = kept.rule_ids.as_chunks::<16>();
    let (alert_ids, _) = kept.alert_ids.as_chunks::<16>();
    let each_has_one = alert_ids.len() == rule_ids.len();
    let mut alert_ids = alert_ids.iter();
    let (silence_ids, _) = kept.silence_ids.as_chunks::<16>();
    let mut silence_ids = silence_ids.iter();
    let outcome = |(rule_id, stop): (&[u8; 16], &u8)| {
        let rule_id = Uuid::from_bytes(*rule_id);
        let stopped_by = i32::from(*stop);
        let cooldown = i32::from(RuleStop::Cooldown);
        let has_alert = each_has_one || stopped_by == 0 || stopped_by == cooldown;
        let alert_id = if has_alert { alert_ids.next() } else { None };
        let alert_id = alert_id.map(|id| Uuid::from_bytes(*id));
        let silenced = stopped_by == i32::from(RuleStop::Silenced);
        let silence_id = if silenced { silence_ids.next() } else { None };
        pb::RuleOutcome {
            rule_id: rule_id.to_string(),
            rule_name: rules
                .get(rule_id)
                .map(|rule| rule.name.clone())
                .unwrap_or_default(),
            fired: stopped_by == 0,
            stopped_by,
            alert_id: alert_id.filter(|id| !id.is_nil()).map(|id| id.to_string()),
            silence_id: silence_id.map(|id| Uuid::from_bytes(*id).to_string()),
            detail: String::new(),
        }
    };
    let outcomes = rule_ids.iter().zip(&kept.stops).map(outcome);
    outcomes
        .filter(|outcome| matched(outcome.stopped_by))
        .collect()
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
            pb::RuleOutcome {
                silence_id: Some(Uuid::from_u128(3).to_string()),
                ..outcome(RuleStop::Silenced, None)
            },
        ];
        let flapping = [
            all[4].clone(),
            outcome(RuleStop::Flapping, Some(4)),
            all[4].clone(),
        ];
        assert_eq!(
            decode(&encode(flapping.iter()), &RuleSet::default()),
            flapping
        );
        let matched = &all[1..];
        assert_eq!(
            decode(&encode(matched.iter()), &RuleSet::default()),
            matched
        );
        // As an earlier version kept them: all rules, and the ids of the alerts that there are.
        let mut kept = Outcomes::decode(&*encode(all.iter())).unwrap();
        let (ids, _) = kept.alert_ids.as_chunks::<16>();
        kept.alert_ids = ids
            .iter()
            .filter(|id| **id != [0; 16])
            .flatten()
            .copied()
            .collect();
        assert_eq!(decode(&kept.encode_to_vec(), &RuleSet::default()), matched);
    }
}
