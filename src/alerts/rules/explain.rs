//! `ExplainEvent`: which conditions of each rule a stored event meets.

use std::collections::HashMap;

use chrono::DateTime;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{past::PastEvent, service::AlertRules};
use crate::{
    alerts::engine::{
        judge::{self, Facts, Seen, Verdict},
        live::Rule,
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

/// How many values of a list are told.
const TOLD: usize = 20;

impl AlertRules {
    /// A page of rules, and what each of them says of an event.
    pub(crate) async fn explain(
        &self,
        request: pb::ExplainEventRequest,
    ) -> Result<pb::ExplainEventResponse> {
        let event_id = check::row_id("event_id", request.event_id)?;
        let rule_ids = check::uuids("rule_ids", &request.rule_ids)?;
        let about = pb::ExplainEventRequest {
            page_size: 0,
            page_token: String::new(),
            ..request.clone()
        };
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "rule_explanations", &about)?;
        let scan = self.db.scan().await?;
        let db = scan.reader();
        let event = row::require(PastEvent::find(db, event_id).await?, "event", event_id)?;
        let mut select = Entity::find();
        if !rule_ids.is_empty() {
            select = select.filter(Column::Id.is_in(rule_ids));
        }
        let columns = (Column::CreatedAt, Column::Id);
        let rows = page.oldest_first::<_, _, Uuid>(db, select, columns).await?;
        let alerts = alerts_of(db, event_id).await?;
        let mut suppressions = suppressions_of(db, event_id).await?;

        let facts = event.facts(self.rules.zones().current());
        let key = |row: &alert_rule::Model| (row.created_at.timestamp_micros(), row.id);
        let (explanations, next_page_token) = page.paginate(rows, key, |row| {
            let alert_id = alerts.get(&row.id).map(ToString::to_string);
            let suppression = suppressions.remove(&row.id);
            pb::RuleExplanation {
                alert_id,
                suppression,
                ..explanation(&row, &event, &facts)
            }
        });
        Ok(pb::ExplainEventResponse {
            explanations,
            next_page_token,
        })
    }
}

/// The alert that each rule raised for an event.
async fn alerts_of(db: &Reader, event_id: i64) -> Result<HashMap<Uuid, Uuid>> {
    let alerts: Vec<(Uuid, Uuid)> = alert::Entity::find()
        .select_only()
        .columns([alert::Column::RuleId, alert::Column::Id])
        .filter(alert::Column::EventId.eq(event_id))
        .filter(alert::Column::RuleId.is_not_null())
        // Of several the first one stays.
        .order_by_desc(alert::Column::CreatedAt)
        .order_by_desc(alert::Column::Id)
        .into_tuple()
        .all(db)
        .await?;
    Ok(alerts.into_iter().collect())
}

/// Causes that held back each rule that wanted to raise an alert for an event.
async fn suppressions_of(
    db: &Reader,
    event_id: i64,
) -> Result<HashMap<Uuid, pb::AlertSuppression>> {
    let rows = alert_suppression::Entity::find()
        .filter(alert_suppression::Column::EventId.eq(event_id))
        .all(db)
        .await?;
    let by_rule = |row: alert_suppression::Model| Some((row.rule_id?, row.into()));
    Ok(rows.into_iter().filter_map(by_rule).collect())
}

/// What a rule says of an event, without what became of it.
fn explanation(row: &alert_rule::Model, event: &PastEvent, facts: &Facts) -> pb::RuleExplanation {
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
    match judge::judge(&rule, facts) {
        Verdict::Matches { .. } => explanation.matched = true,
        Verdict::Stopped(stop, detail) => {
            explanation.stopped_by = stop.into();
            explanation.detail = detail;
        }
    }
    let detection_id = |at: usize| event.detections[at].id;
    explanation.conditions = conditions(row, &rule, facts, detection_id);
    explanation
}

/// The conditions that a rule sets, in the order in which they are judged. All are met if, and only
/// if, the rule matches; else the first that is not is the one that stops it.
fn conditions(
    row: &alert_rule::Model,
    rule: &Rule,
    facts: &Facts,
    detection_id: impl Fn(usize) -> i64,
) -> Vec<pb::ConditionExplanation> {
    let condition = |stop: RuleStop, expected: String, actual: String, met: bool| {
        let detection_id = None;
        pb::ConditionExplanation {
            condition: stop.into(),
            expected,
            actual,
            met,
            detection_id,
        }
    };
    let texts = |strings: &Option<crate::entity::Strings>| {
        let strings = strings.clone().unwrap_or_default().0;
        listed(strings.iter().map(String::as_str))
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
    if let (Some(schedule), Some(asked)) = (&rule.schedule, &row.schedule) {
        let local = facts.started_at.with_timezone(&schedule.timezone());
        conditions.push(condition(
            RuleStop::Schedule,
            window(asked),
            wall_clock(&local),
            schedule.contains(facts.started_at),
        ));
    }
    let closest = Closest::of(rule, facts);
    let of_detection = |stop, expected, actual: &dyn Fn(&Closest<'_>) -> (String, bool)| {
        let (actual, met) = match &closest {
            Some(closest) => actual(closest),
            None => ("no detection".to_string(), false),
        };
        pb::ConditionExplanation {
            detection_id: closest.as_ref().map(|closest| detection_id(closest.at)),
            ..condition(stop, expected, actual, met)
        }
    };
    if !rule.object_types.is_empty() {
        let expected = format!("object_type in [{}]", texts(&row.object_types));
        conditions.push(of_detection(RuleStop::ObjectTypes, expected, &|closest| {
            let name = closest.seen.object_type.as_deref();
            let actual = name.map(|name| format!("object_type {name}"));
            let actual = actual.unwrap_or_else(|| "no object_type".into());
            (actual, closest.of_type)
        }));
    }
    if let Some(least) = rule.min_confidence {
        let expected = format!("confidence >= {least}");
        conditions.push(of_detection(
            RuleStop::MinConfidence,
            expected,
            &|closest| {
                let actual = closest.seen.confidence.map(|is| format!("confidence {is}"));
                let actual = actual.unwrap_or_else(|| "no confidence".into());
                (actual, closest.sure)
            },
        ));
    }
    if !rule.zone_ids.is_empty() {
        let expected = format!("zone_id in [{}]", texts(&row.zone_ids));
        conditions.push(of_detection(RuleStop::ZoneIds, expected, &|closest| {
            let zones = facts.zones.of(&facts.camera_id);
            (placed(closest.seen, zones), closest.zone.is_some())
        }));
    }
    conditions
}

/// The detection that meets the conditions on detections, or comes closest: the one that fails the
/// last of them.
struct Closest<'a> {
    at: usize,
    seen: &'a Seen,
    of_type: bool,
    sure: bool,
    /// The first zone of the rule that it is in.
    zone: Option<usize>,
}

impl<'a> Closest<'a> {
    fn of(rule: &Rule, facts: &'a Facts) -> Option<Self> {
        let zones = facts.zones.of(&facts.camera_id);
        let judged = facts.detections.iter().enumerate().map(|(at, seen)| Self {
            at,
            of_type: rule.is_of_type(seen),
            sure: rule.is_sure(seen),
            zone: (0..zones.len())
                .find(|at| rule.zone_ids.contains(&zones[*at].id) && seen.is_in(zones, *at)),
            seen,
        });
        // Of those that are equal the first one.
        judged.reduce(|best, other| if other.is_closer(&best) { other } else { best })
    }

    fn is_closer(&self, other: &Self) -> bool {
        let rank = |closest: &Self| {
            let zone = closest.zone.map(std::cmp::Reverse);
            (closest.of_type, closest.sure, zone)
        };
        let typed = |closest: &Self| closest.seen.object_type.is_some();
        let confidence = |closest: &Self| {
            let known = closest.seen.confidence.unwrap_or(-1.0);
            if closest.sure { 0.0 } else { known }
        };
        let order = rank(self)
            .cmp(&rank(other))
            .then_with(|| confidence(self).total_cmp(&confidence(other)))
            .then_with(|| typed(self).cmp(&typed(other)));
        order.is_gt()
    }
}

/// Which of the zones a detection is in, for people.
fn placed(seen: &Seen, zones: &[Zone]) -> String {
    if let Err(unplaced) = seen.place {
        return unplaced.as_str().to_string();
    }
    let within = (0..zones.len()).filter(|at| seen.is_in(zones, *at));
    let ids: Vec<_> = within.map(|at| zones[at].id.as_str()).collect();
    if ids.is_empty() {
        return "in no enabled zone of the camera".to_string();
    }
    format!("in [{}]", listed(ids.into_iter()))
}

/// The first of some values, and how many more there are.
fn listed<'a>(values: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = values.len().saturating_sub(TOLD);
    let told: Vec<_> = values.take(TOLD).collect();
    let told = told.join(", ");
    if more > 0 {
        format!("{told}, and {more} more")
    } else {
        told
    }
}

/// What a schedule asks for, for people.
fn window(schedule: &alert_rule::Schedule) -> String {
    let days = schedule.days.iter().map(|day| format!("{day:?}"));
    let days: Vec<_> = days.collect();
    let days = if days.is_empty() {
        "every day".to_string()
    } else {
        days.join(", ")
    };
    let times = schedule.start_time.as_ref().zip(schedule.end_time.as_ref());
    let times = times.map(|(start, end)| format!(" {start} to {end}"));
    format!("{days}{} {}", times.unwrap_or_default(), schedule.timezone)
}

/// What the clock showed, for people.
fn wall_clock(local: &DateTime<Tz>) -> String {
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
                let conditions = conditions(&row, &rule, &facts, |at| i64::try_from(at).unwrap());
                let first = conditions.iter().find(|condition| !condition.met);
                let first = first.map(pb::ConditionExplanation::condition);
                let context = format!("seed {seed}, round {round}: {row:?} {facts:?}");
                match judge::judge(&rule, &again) {
                    Verdict::Matches { zone_id, .. } => {
                        assert_eq!(first, None, "{context}");
                        matched += usize::from(!conditions.is_empty());
                        // What is told is the detection in the zone of the alert.
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
        let told = listed(ids.iter().map(String::as_str));
        assert!(
            told.starts_with("c0, c1") && told.ends_with("c19, and 5 more"),
            "{told}"
        );
        assert_eq!(listed(["a", "b"].into_iter()), "a, b");
    }
}
