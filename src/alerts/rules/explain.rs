//! `ExplainEvent`: the conditions of each rule that a stored event meets.

use std::collections::HashMap;

use chrono::DateTime;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{service::AlertRules, stored_events::StoredEvent};
use crate::{
    alerts::engine::{
        evaluate::{self, DetectionFacts, EventFacts, Verdict},
        rule::Rule,
    },
    db::{reader::Reader, row},
    entity::{
        alert,
        alert_rule::{self, Column, Entity},
        alert_suppression,
    },
    error::Result,
    pb::{self, RuleStop},
    rpc::{check, page::Page},
    time_zones::Tz,
    zones::Zone,
};

/// Largest number of list values in an explanation.
const MAX_LISTED_VALUES: usize = 20;

impl AlertRules {
    /// Returns a page of rules with the explanation of each for an event.
    pub(crate) async fn explain(&self, request: pb::ExplainEventRequest) -> Result<pb::ExplainEventResponse> {
        let event_id = check::row_id("event_id", request.event_id)?;
        let rule_ids = check::uuids("rule_ids", &request.rule_ids)?;
        let page_scope = pb::ExplainEventRequest { page_size: 0, page_token: String::new(), ..request.clone() };
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "rule_explanations", &page_scope)?;
        let scan = self.db.scan().await?;
        let db = scan.reader();
        let event = row::require(StoredEvent::find(db, event_id).await?, "event", event_id)?;
        let mut select = Entity::find();
        if !rule_ids.is_empty() {
            select = select.filter(Column::Id.is_in(rule_ids));
        }
        let columns = (Column::CreatedAt, Column::Id);
        let rows = page.oldest_first::<_, _, Uuid>(db, select, columns).await?;
        let alerts = alerts_by_rule(db, event_id).await?;
        let mut suppressions = suppressions_by_rule(db, event_id).await?;

        let facts = event.facts(self.rules.zones().current());
        let key = |row: &alert_rule::Model| (row.created_at.timestamp_micros(), row.id);
        let (explanations, next_page_token) = page.paginate(rows, key, |row| {
            let alert_id = alerts.get(&row.id).map(ToString::to_string);
            let suppression = suppressions.remove(&row.id);
            pb::RuleExplanation { alert_id, suppression, ..explain_rule(&row, &event, &facts) }
        });
        Ok(pb::ExplainEventResponse { explanations, next_page_token })
    }
}

/// Returns the alert that each rule raised for an event.
async fn alerts_by_rule(db: &Reader, event_id: i64) -> Result<HashMap<Uuid, Uuid>> {
    let alerts: Vec<(Uuid, Uuid)> = alert::Entity::find()
        .select_only()
        .columns([alert::Column::RuleId, alert::Column::Id])
        .filter(alert::Column::EventId.eq(event_id))
        .filter(alert::Column::RuleId.is_not_null())
        // Descending, so that the first of several alerts remains in the map.
        .order_by_desc(alert::Column::CreatedAt)
        .order_by_desc(alert::Column::Id)
        .into_tuple()
        .all(db)
        .await?;
    Ok(alerts.into_iter().collect())
}

/// Returns the suppression of each rule that matched an event without raising an alert.
async fn suppressions_by_rule(db: &Reader, event_id: i64) -> Result<HashMap<Uuid, pb::AlertSuppression>> {
    let rows =
        alert_suppression::Entity::find().filter(alert_suppression::Column::EventId.eq(event_id)).all(db).await?;
    let by_rule = |row: alert_suppression::Model| Some((row.rule_id?, row.into()));
    Ok(rows.into_iter().filter_map(by_rule).collect())
}

/// Evaluates a rule for an event, without the result at ingest.
fn explain_rule(row: &alert_rule::Model, event: &StoredEvent, facts: &EventFacts) -> pb::RuleExplanation {
    let mut explanation = pb::RuleExplanation {
        rule_id: row.id.to_string(),
        rule_name: row.name.clone(),
        enabled: row.enabled,
        ..Default::default()
    };
    let rule = match Rule::compile(row.clone()) {
        Ok(rule) => rule,
        Err(problem) => {
            explanation.detail = format!("the rule cannot be used: {problem}");
            return explanation;
        }
    };
    match evaluate::evaluate(&rule, facts) {
        Verdict::Matches { .. } => explanation.matched = true,
        Verdict::Stopped(stop, detail) => {
            explanation.stopped_by = stop.into();
            explanation.detail = detail;
        }
    }
    let detection_id = |index: usize| event.detections[index].id;
    explanation.conditions = explain_conditions(row, &rule, facts, detection_id);
    explanation
}

/// Explains the conditions of a rule in the order of evaluation. The rule matches if and only if
/// all conditions are met. Otherwise the first unmet condition is the reason.
fn explain_conditions(
    row: &alert_rule::Model,
    rule: &Rule,
    facts: &EventFacts,
    detection_id: impl Fn(usize) -> i64,
) -> Vec<pb::ConditionExplanation> {
    let condition = |stop: RuleStop, expected: String, actual: String, met: bool| {
        let detection_id = None;
        pb::ConditionExplanation { condition: stop.into(), expected, actual, met, detection_id }
    };
    let texts = |strings: &Option<crate::entity::Strings>| {
        let strings = strings.clone().unwrap_or_default().0;
        join_limited(strings.iter().map(String::as_str))
    };
    let mut conditions = Vec::new();
    if !rule.camera_ids.is_empty() {
        conditions.push(condition(
            RuleStop::CameraIds,
            format!("camera_id in [{}]", texts(&row.camera_ids)),
            format!("camera_id {}", facts.camera_id),
            rule.camera_ids.contains(&facts.camera_id),
        ));
    }
    if let Some(threshold) = rule.risk_threshold {
        let score = facts.risk_score;
        let actual = score.map(|score| format!("risk_score {score}"));
        conditions.push(condition(
            RuleStop::RiskThreshold,
            format!("risk_score >= {threshold}"),
            actual.unwrap_or_else(|| "no risk_score".into()),
            score.is_some_and(|score| score >= threshold),
        ));
    }
    if let (Some(schedule), Some(stored_schedule)) = (&rule.schedule, &row.schedule) {
        let local = facts.started_at.with_timezone(&schedule.timezone());
        conditions.push(condition(
            RuleStop::Schedule,
            describe_schedule(stored_schedule),
            format_local_time(&local),
            schedule.contains(facts.started_at),
        ));
    }
    let closest = ClosestDetection::of(rule, facts);
    let of_detection = |stop, expected, actual: &dyn Fn(&ClosestDetection<'_>) -> (String, bool)| {
        let (actual, met) = match &closest {
            Some(closest) => actual(closest),
            None => ("no detection".to_string(), false),
        };
        pb::ConditionExplanation {
            detection_id: closest.as_ref().map(|closest| detection_id(closest.index)),
            ..condition(stop, expected, actual, met)
        }
    };
    if !rule.object_types.is_empty() {
        let expected = format!("object_type in [{}]", texts(&row.object_types));
        conditions.push(of_detection(RuleStop::ObjectTypes, expected, &|closest| {
            let actual = closest
                .detection
                .object_type
                .as_deref()
                .map_or_else(|| "no object_type".into(), |name| format!("object_type {name}"));
            (actual, closest.has_type)
        }));
    }
    if let Some(minimum) = rule.min_confidence {
        let expected = format!("confidence >= {minimum}");
        conditions.push(of_detection(RuleStop::MinConfidence, expected, &|closest| {
            let actual = closest
                .detection
                .confidence
                .map_or_else(|| "no confidence".into(), |confidence| format!("confidence {confidence}"));
            (actual, closest.is_confident)
        }));
    }
    if !rule.zone_ids.is_empty() {
        let expected = format!("zone_id in [{}]", texts(&row.zone_ids));
        conditions.push(of_detection(RuleStop::ZoneIds, expected, &|closest| {
            let zones = facts.zones.of(&facts.camera_id);
            (describe_zones(closest.detection, zones), closest.zone.is_some())
        }));
    }
    conditions
}

/// Detection that meets the most conditions on detections, in the order of evaluation.
struct ClosestDetection<'a> {
    index: usize,
    detection: &'a DetectionFacts,
    has_type: bool,
    is_confident: bool,
    /// First zone of the rule that contains the detection.
    zone: Option<usize>,
}

impl<'a> ClosestDetection<'a> {
    fn of(rule: &Rule, facts: &'a EventFacts) -> Option<Self> {
        let zones = facts.zones.of(&facts.camera_id);
        let candidates = facts.detections.iter().enumerate().map(|(index, detection)| Self {
            index,
            has_type: rule.has_object_type(detection),
            is_confident: rule.has_confidence(detection),
            zone: (0..zones.len())
                .find(|zone| rule.zone_ids.contains(&zones[*zone].id) && detection.is_in(zones, *zone)),
            detection,
        });
        // The first of equal detections is kept.
        candidates.reduce(|best, other| if other.is_closer(&best) { other } else { best })
    }

    fn is_closer(&self, other: &Self) -> bool {
        let rank = |closest: &Self| {
            let zone = closest.zone.map(std::cmp::Reverse);
            (closest.has_type, closest.is_confident, zone)
        };
        let typed = |closest: &Self| closest.detection.object_type.is_some();
        let confidence = |closest: &Self| {
            let known = closest.detection.confidence.unwrap_or(-1.0);
            if closest.is_confident { 0.0 } else { known }
        };
        let order = rank(self)
            .cmp(&rank(other))
            .then_with(|| confidence(self).total_cmp(&confidence(other)))
            .then_with(|| typed(self).cmp(&typed(other)));
        order.is_gt()
    }
}

/// Describes the zones that contain a detection.
fn describe_zones(detection: &DetectionFacts, zones: &[Zone]) -> String {
    if let Err(problem) = detection.placement {
        return problem.as_str().to_string();
    }
    let containing = (0..zones.len()).filter(|zone| detection.is_in(zones, *zone));
    let ids: Vec<_> = containing.map(|zone| zones[zone].id.as_str()).collect();
    if ids.is_empty() {
        return "in no enabled zone of the camera".to_string();
    }
    format!("in [{}]", join_limited(ids.into_iter()))
}

/// Joins the first values of a list, and states the number of omitted values.
fn join_limited<'a>(values: impl ExactSizeIterator<Item = &'a str>) -> String {
    let omitted = values.len().saturating_sub(MAX_LISTED_VALUES);
    let first_values: Vec<_> = values.take(MAX_LISTED_VALUES).collect();
    let joined = first_values.join(", ");
    if omitted > 0 { format!("{joined}, and {omitted} more") } else { joined }
}

/// Describes a schedule in readable form.
fn describe_schedule(schedule: &alert_rule::Schedule) -> String {
    let day_names: Vec<_> = schedule.days.iter().map(|day| format!("{day:?}")).collect();
    let days = if day_names.is_empty() { "every day".to_string() } else { day_names.join(", ") };
    let times =
        schedule.start_time.as_ref().zip(schedule.end_time.as_ref()).map(|(start, end)| format!(" {start} to {end}"));
    format!("{days}{} {}", times.unwrap_or_default(), schedule.timezone)
}

/// Formats the local time of an event.
fn format_local_time(local: &DateTime<Tz>) -> String {
    local.format("%A %Y-%m-%dT%H:%M:%S%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::engine::random;

    #[test]
    fn a_rule_matches_if_and_only_if_all_its_conditions_are_met() {
        let seed = fastrand::u64(..);
        let mut random = random::Random::new(seed);
        let (mut matched, mut stopped) = (0, 0);
        for round in 0..400 {
            let zones = random.zones();
            for _ in 0..50 {
                let row = random.rule();
                let rule = Rule::compile(row.clone()).unwrap();
                let [facts, again] = random.facts(&zones);
                let conditions = explain_conditions(&row, &rule, &facts, |at| i64::try_from(at).unwrap());
                let first = conditions.iter().find(|condition| !condition.met);
                let first = first.map(pb::ConditionExplanation::condition);
                let context = format!("seed {seed}, round {round}: {row:?} {facts:?}");
                match evaluate::evaluate(&rule, &again) {
                    Verdict::Matches { zone_id, .. } => {
                        assert_eq!(first, None, "{context}");
                        matched += usize::from(!conditions.is_empty());
                        // The explained detection is the detection in the zone of the alert.
                        let last = conditions.last().filter(|_| zone_id.is_some());
                        if let Some(last) = last {
                            let id = zone_id.unwrap().to_string();
                            assert!(last.actual.contains(&id), "{context}");
                        }
                    }
                    Verdict::Stopped(stop, _) => {
                        assert_eq!(first, Some(stop), "{context}");
                        stopped += 1;
                    }
                }
            }
        }
        assert!(matched > 1_000 && stopped > 1_000, "{matched} {stopped}");
    }

    #[test]
    fn long_lists_are_cut() {
        let ids: Vec<_> = (0..25).map(|n| format!("c{n}")).collect();
        let joined = join_limited(ids.iter().map(String::as_str));
        assert!(joined.starts_with("c0, c1") && joined.ends_with("c19, and 5 more"), "{joined}");
        assert_eq!(join_limited(["a", "b"].into_iter()), "a, b");
    }
}
