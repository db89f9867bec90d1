//! Evaluation of the rules for an ingest. Needs no database, and runs before the transaction that
//! other ingests wait for.

use super::stages::{EvaluatedIngest, Match, Suppression, empty_outcome};
use crate::{
    alerts::engine::{
        evaluate::{self, EventFacts, Verdict},
        index::Index,
        live::LiveRules,
    },
    entity,
    events::check::Ingest,
    pb,
    zones::Zone,
};

/// Number of detections that are evaluated quickly under any rules.
const FREE_DETECTIONS: usize = 4;

/// Finds the matching rules of an ingest, and the snooze or silence that suppresses each.
pub(crate) fn evaluate(ingest: Ingest, rules: &LiveRules) -> EvaluatedIngest {
    let index = rules.index();
    let facts = EventFacts::of(&ingest.event, &ingest.detections, index.zones().clone());
    let rule_set = index.rules();
    let now = entity::now();
    let snoozed_until = ingest.event.snooze_until.filter(|until| *until > now);
    let silences = rules.silences().current();
    let suppression = |slot: usize| {
        if let Some(until) = snoozed_until {
            return Some(Suppression::Snoozed(until));
        }
        let rule = &rule_set[slot];
        silences.find_match(&ingest.event.camera_id, rule.id, rule.severity, now).map(Suppression::Silenced)
    };
    let matches = index
        .matches(&facts)
        .into_iter()
        .map(|matched| Match {
            rule: matched.rule,
            object_type: matched.object_type.map(Into::into),
            zone_id: matched.zone_id.map(Into::into),
            suppression: suppression(matched.rule),
        })
        .collect();
    let stopped = if ingest.explain { explain_stopped_rules(&index, &facts) } else { Vec::new() };
    EvaluatedIngest { rules: rule_set.clone(), ingest, matches, stopped }
}

/// Upper bound of the cost of evaluating an ingest, in comparisons. Every detection is compared with
/// every rule, and with every corner of the zones of the camera.
pub(crate) fn evaluation_cost(ingest: &Ingest, rules: &LiveRules) -> usize {
    let index = rules.index();
    let zones = index.zones().of(&ingest.event.camera_id).iter();
    let corners: usize = zones.map(Zone::corners).sum();
    let cost_per_detection = corners + index.rules().slots();
    ingest.detections.len().saturating_sub(FREE_DETECTIONS) * cost_per_detection
}

/// Explains for every rule that does not match the condition that is not met.
fn explain_stopped_rules(index: &Index, facts: &EventFacts) -> Vec<(usize, pb::RuleOutcome)> {
    let rules = index.rules().iter();
    let stopped = rules.filter_map(|(slot, rule)| match evaluate::evaluate(rule, facts) {
        Verdict::Matches { .. } => None,
        Verdict::Stopped(stop, detail) => {
            Some((slot, pb::RuleOutcome { stopped_by: stop.into(), detail, ..empty_outcome(rule) }))
        }
    });
    stopped.collect()
}
