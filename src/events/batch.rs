//! One transaction for several ingests: their rows, their alerts, and what is announced of them.

use chrono::{DateTime, Utc};
use prost::Message;
use sea_orm::DatabaseTransaction;
use uuid::Uuid;

use super::{check::Ingest, replay, sources, store};
use crate::{
    alerts::{
        change::announcement,
        cooldown::{self, Claim},
        engine::{self, Verdict},
        rules::{Rule, RuleSet},
        template::Values,
    },
    entity::{
        self,
        alert::{self, AlertStatus},
        event, event_detection, event_ingest,
    },
    error::{Error, Result},
    feed::{self, Record, Topic},
    pb::{self, RuleStop, watch_response::Update},
};

/// What became of one ingest of a batch.
pub(super) type Answer = Result<pb::IngestEventResponse>;

/// An ingest, and what the rules say of it.
pub(super) struct Judged<'a> {
    ingest: Ingest,
    outcomes: Vec<pb::RuleOutcome>,
    matches: Vec<Match<'a>>,
}

/// A rule that wants to raise an alert.
struct Match<'a> {
    /// Which of the outcomes is its.
    outcome: usize,
    rule: &'a Rule,
    object_type: Option<String>,
}

/// Asks every rule about an ingest. No database is needed for it, so it is done before the
/// transaction, which others wait for.
pub(super) fn judge<'a>(ingest: &Ingest, rules: &'a RuleSet, now: DateTime<Utc>) -> Judged<'a> {
    let facts = ingest.facts(now);
    let mut outcomes = Vec::with_capacity(rules.len());
    let mut matches = Vec::new();
    for rule in rules {
        let mut outcome = pb::RuleOutcome {
            rule_id: rule.id.to_string(),
            rule_name: rule.name.clone(),
            ..Default::default()
        };
        match engine::judge(rule, &facts) {
            Verdict::Stopped(stop, detail) => {
                outcome.stopped_by = stop.into();
                outcome.detail = detail;
            }
            Verdict::Matches { object_type } => {
                let object_type = object_type.map(Into::into);
                matches.push(Match {
                    outcome: outcomes.len(),
                    rule,
                    object_type,
                });
            }
        }
        outcomes.push(outcome);
    }
    Judged {
        ingest: ingest.clone(),
        outcomes,
        matches,
    }
}

/// Stores the ingests that can be stored, and answers each, in order.
///
/// An answer that is an error wrote nothing. An error of the whole means that
/// nothing of the batch was written.
pub(super) async fn store(
    tx: &DatabaseTransaction,
    ingests: &[Ingest],
    judged: Vec<Judged<'_>>,
    rules: &RuleSet,
) -> Result<Vec<Answer>> {
    let mut answers: Vec<Option<Answer>> = replay::answers(tx, ingests, rules).await?;
    let cameras = sources::check(tx, ingests, &mut answers).await?;

    let unanswered = judged
        .into_iter()
        .zip(&answers)
        .filter(|(_, answer)| answer.is_none());
    let mut new: Vec<_> = unanswered.map(|(judged, _)| judged).collect();
    let detections = new
        .iter()
        .map(|judged| judged.ingest.detections.len())
        .sum();
    let (event_ids, detection_ids) = store::reserve_ids(tx, new.len(), detections).await?;
    let mut detection_ids = detection_ids.into_iter();
    for (judged, event_id) in new.iter_mut().zip(event_ids) {
        judged.ingest.event.id = event_id;
        for (detection, id) in judged
            .ingest
            .detections
            .iter_mut()
            .zip(detection_ids.by_ref())
        {
            detection.id = id;
        }
    }
    sources::mark_seen(tx, new.iter().map(|judged| &judged.ingest), &cameras).await?;
    let mut responses = commit(tx, new).await?.into_iter();
    let forgotten = || Err(Error::internal("an ingest was forgotten"));
    let answer = |answer: Option<Answer>| {
        answer.unwrap_or_else(|| responses.next().map_or_else(forgotten, Ok))
    };
    Ok(answers.into_iter().map(answer).collect())
}

/// Writes rows, alerts and changes of ingests whose ids are known.
async fn commit(
    tx: &DatabaseTransaction,
    mut new: Vec<Judged<'_>>,
) -> Result<Vec<pb::IngestEventResponse>> {
    let now = entity::now();
    let (mut detections, mut links) = (Vec::new(), Vec::new());
    for Judged { ingest, .. } in &new {
        for detection in &ingest.detections {
            detections.push(detection.clone());
            links.push(event_detection::Model {
                event_id: ingest.event.id,
                detection_id: detection.id,
                created_at: now,
            });
        }
    }
    let events = new
        .iter()
        .map(|judged| judged.ingest.event.clone())
        .collect();
    store::insert::<event::Entity, _>(tx, events).await?;
    store::insert::<entity::detection::Entity, _>(tx, detections).await?;
    store::insert::<event_detection::Entity, _>(tx, links).await?;

    let alerts = raise(tx, &mut new, now).await?;
    let rows = alerts.iter().map(|(_, alert)| alert.clone()).collect();
    store::insert::<alert::Entity, _>(tx, rows).await?;

    let has_key = |ingest: &Ingest| ingest.request_id.is_some() || ingest.batch_id.is_some();
    let keys = new.iter().filter(|judged| has_key(&judged.ingest));
    let mut keys: Vec<_> = keys
        .map(|judged| replay::key(&judged.ingest, &judged.outcomes, now))
        .collect();
    // Always in the same order, or two transactions with the same requests could wait for each other.
    keys.sort_by_cached_key(|key| {
        let ids = (key.request_id.clone(), key.batch_id.clone());
        (ids, key.camera_id.clone())
    });
    store::insert::<event_ingest::Entity, _>(tx, keys).await?;

    let mut responses: Vec<_> = new
        .into_iter()
        .map(
            |Judged {
                 ingest, outcomes, ..
             }| pb::IngestEventResponse {
                event: Some(ingest.event.into()),
                detections: ingest.detections.into_iter().map(Into::into).collect(),
                rule_outcomes: outcomes,
                ..Default::default()
            },
        )
        .collect();
    for (at, alert) in alerts {
        responses[at].alerts.push(alert.into());
    }
    feed::record(tx, responses.iter().flat_map(announcements)).await?;
    Ok(responses)
}

/// Claims the right to raise the alerts; completes the outcomes, and returns the alerts that are
/// to be raised, each with the number of its ingest.
async fn raise(
    tx: &DatabaseTransaction,
    new: &mut [Judged<'_>],
    now: DateTime<Utc>,
) -> Result<Vec<(usize, alert::Model)>> {
    let claim = |ingest: &Ingest, found: &Match<'_>| {
        let values = Values {
            camera_id: &ingest.event.camera_id,
            rule_id: found.rule.id,
            object_type: found.object_type.as_deref(),
            zone_id: None,
            event_id: ingest.event.id,
        };
        Claim {
            rule_id: found.rule.id,
            dedup_key: found.rule.template.render(&values),
            alert_id: Uuid::now_v7(),
            raised_at_us: now.timestamp_micros(),
            cooldown_us: found.rule.cooldown_us,
        }
    };
    let claims = new.iter().flat_map(|judged| {
        judged
            .matches
            .iter()
            .map(|found| claim(&judged.ingest, found))
    });
    let claims: Vec<_> = claims.collect();
    // Without a cooldown there is nothing to claim.
    let contested: Vec<_> = claims
        .iter()
        .filter(|claim| claim.cooldown_us > 0)
        .cloned()
        .collect();
    let mut standing = cooldown::claim(tx, &contested).await?.into_iter();

    let mut claims = claims.into_iter();
    let mut alerts = Vec::with_capacity(claims.len());
    for (
        at,
        Judged {
            ingest,
            outcomes,
            matches,
        },
    ) in new.iter_mut().enumerate()
    {
        for (found, claim) in matches.iter().zip(claims.by_ref()) {
            let Claim {
                alert_id,
                dedup_key,
                cooldown_us,
                ..
            } = claim;
            let stands = if cooldown_us > 0 {
                standing.next()
            } else {
                None
            }
            .unwrap_or(alert_id);
            let outcome = &mut outcomes[found.outcome];
            outcome.alert_id = Some(stands.to_string());
            if stands != alert_id {
                outcome.stopped_by = RuleStop::Cooldown.into();
                let seconds = cooldown_us / 1_000_000;
                outcome.detail = format!("{dedup_key} is in its cooldown of {seconds} s");
                continue;
            }
            outcome.fired = true;
            let metadata = serde_json::json!({
                "matched_conditions": found.rule.conditions,
                "rule_name": found.rule.name,
            });
            let alert = alert::Model {
                id: alert_id,
                event_id: ingest.event.id,
                rule_id: Some(found.rule.id),
                severity: found.rule.severity,
                status: AlertStatus::Pending,
                created_at: now,
                updated_at: now,
                delivered_at: None,
                channels: found.rule.channels.clone(),
                dedup_key,
                metadata: Some(metadata),
                version_id: 1,
                camera_id: Some(ingest.event.camera_id.clone()),
            };
            alerts.push((at, alert));
        }
    }
    Ok(alerts)
}

/// What subscribers are told of a stored ingest: the event, then its alerts.
fn announcements(response: &pb::IngestEventResponse) -> Vec<Record> {
    let alert = |alert: &pb::Alert| announcement(pb::AlertChangeKind::Created, alert.clone());
    let event = response
        .event
        .clone()
        .map(|event| event_announcement(pb::ChangeKind::Created, event));
    event
        .into_iter()
        .chain(response.alerts.iter().map(alert))
        .collect()
}

/// What subscribers are sent of a change of an event.
pub(super) fn event_announcement(kind: pb::ChangeKind, event: pb::Event) -> Record {
    let key = event.id.to_string();
    let event = pb::Event {
        llm_prompt: None,
        ..event
    };
    let change = pb::EventChange {
        kind: kind.into(),
        event: Some(event),
    };
    let message = pb::WatchResponse {
        update: Some(Update::Event(change)),
        ..Default::default()
    };
    Record {
        topic: Topic::Events,
        key,
        message: message.encode_to_vec(),
    }
}
