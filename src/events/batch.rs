//! One transaction for a batch of ingests: rows, alerts and announcements.

use std::sync::Arc;

use prost::Message;
use sea_orm::{ConnectionTrait, DatabaseTransaction};

use super::{
    check::Ingest,
    lookup,
    raise::{dedup_key, raise},
    replay, sources, suppressions,
};
use crate::{
    alerts::{
        engine::{
            evaluate::{self, EventFacts, Verdict},
            index::Index,
            live::LiveRules,
            rule::Rule,
            rule_set::RuleSet,
        },
        lifecycle::{
            change::announcement,
            deliveries,
            transition::{self, Cause},
        },
    },
    db::bulk::Inserts,
    entity::{self, alert, alert_transition, event_detection},
    error::Result,
    feed::{self, Record, Topic},
    pb::{self, RuleStop, watch_response::Update},
    zones::Zone,
};

/// Number of detections that are evaluated quickly under any rules.
const FREE_DETECTIONS: usize = 4;

/// Response or error of one ingest of a batch.
pub(super) type Answer = Result<pb::IngestEventResponse>;

#[derive(Debug)]
pub(super) struct EvaluatedIngest {
    pub ingest: Ingest,
    pub rules: Arc<RuleSet>,
    pub matches: Vec<Match>,
    stopped: Vec<(usize, pb::RuleOutcome)>,
    pub alerts: Vec<pb::Alert>,
}

#[derive(Debug)]
pub(super) struct Match {
    pub rule: usize,
    pub object_type: Option<String>,
    pub zone_id: Option<String>,
    pub outcome: pb::RuleOutcome,
}

pub(super) fn evaluate(ingest: Ingest, rules: &LiveRules) -> EvaluatedIngest {
    let index = rules.index();
    let facts = EventFacts::of(&ingest.event, &ingest.detections, index.zones().clone());
    let rule_set = index.rules();
    let now = entity::now();
    let snoozed = ingest.event.snooze_until.filter(|until| *until > now);
    let silences = rules.silences().current();
    let mut matches = Vec::new();
    for matched in index.matches(&facts) {
        let mut outcome = empty_outcome(&rule_set[matched.rule]);
        if let Some(until) = snoozed {
            outcome.stopped_by = RuleStop::Snoozed.into();
            outcome.detail = format!("the event is snoozed until {}", until.to_rfc3339());
        } else {
            let rule = &rule_set[matched.rule];
            let silence = silences.find_match(&ingest.event.camera_id, rule.id, rule.severity, now);
            if let Some(id) = silence {
                outcome.stopped_by = RuleStop::Silenced.into();
                outcome.detail = format!("silence {id} is in force");
                outcome.silence_id = Some(id.to_string());
            }
        }
        matches.push(Match {
            rule: matched.rule,
            object_type: matched.object_type.map(Into::into),
            zone_id: matched.zone_id.map(Into::into),
            outcome,
        });
    }
    let stopped = if ingest.explain {
        explain_stopped_rules(&index, &facts)
    } else {
        Vec::new()
    };
    EvaluatedIngest {
        rules: rule_set.clone(),
        ingest,
        matches,
        stopped,
        alerts: Vec::new(),
    }
}

pub(super) fn evaluation_cost(ingest: &Ingest, rules: &LiveRules) -> usize {
    let index = rules.index();
    let zones = index.zones().of(&ingest.event.camera_id).iter();
    let corners: usize = zones.map(Zone::corners).sum();
    let cost_per_detection = corners + index.rules().slots();
    ingest.detections.len().saturating_sub(FREE_DETECTIONS) * cost_per_detection
}

fn explain_stopped_rules(index: &Index, facts: &EventFacts) -> Vec<(usize, pb::RuleOutcome)> {
    let rules = index.rules().iter();
    let stopped = rules.filter_map(|(slot, rule)| match evaluate::evaluate(rule, facts) {
        Verdict::Matches { .. } => None,
        Verdict::Stopped(stop, detail) => {
            let stopped_by = stop.into();
            let outcome = empty_outcome(rule);
            Some((
                slot,
                pb::RuleOutcome {
                    stopped_by,
                    detail,
                    ..outcome
                },
            ))
        }
    });
    stopped.collect()
}

fn empty_outcome(rule: &Rule) -> pb::RuleOutcome {
    pb::RuleOutcome {
        rule_id: rule.id.to_string(),
        rule_name: rule.name.clone(),
        ..Default::default()
    }
}

impl Match {
    pub(super) fn is_unsuppressed(&self) -> bool {
        self.outcome.stopped_by() == RuleStop::Unspecified
    }
}

impl EvaluatedIngest {
    pub(super) fn has_alerts(&self) -> bool {
        !self.alerts.is_empty()
    }

    pub(super) fn outcomes(&self) -> impl Iterator<Item = &pb::RuleOutcome> {
        self.matches.iter().map(|matched| &matched.outcome)
    }

    pub(super) fn dedup_keys_and_outcomes(
        &self,
    ) -> impl Iterator<Item = (impl FnOnce() -> String, &pb::RuleOutcome)> {
        self.matches
            .iter()
            .map(|matched| (|| dedup_key(self, matched), &matched.outcome))
    }

    pub(super) fn into_response(self) -> pb::IngestEventResponse {
        let matches = self.matches.into_iter();
        let mut outcomes: Vec<_> = matches
            .map(|matched| (matched.rule, matched.outcome))
            .collect();
        outcomes.extend(self.stopped);
        outcomes.sort_by_key(|(rule, _)| *rule);
        pb::IngestEventResponse {
            event: Some(self.ingest.event.into()),
            detections: self.ingest.detections.into_iter().map(Into::into).collect(),
            alerts: self.alerts,
            rule_outcomes: outcomes.into_iter().map(|(_, outcome)| outcome).collect(),
            replayed: false,
        }
    }
}

/// Stores the new ingests of a batch and answers the others. `None` in the result marks an ingest
/// that was into_response and takes effect at the commit.
///
/// An ingest with an answer wrote nothing. If the function fails, nothing of the batch was written.
pub(super) async fn store(
    tx: &DatabaseTransaction,
    batch: &mut [EvaluatedIngest],
) -> Result<Vec<Option<Answer>>> {
    let lookup = lookup::prepare(tx, batch).await?;
    let mut answers = if lookup.repeated {
        replay::find_replays(tx, batch).await?
    } else {
        batch.iter().map(|_| None).collect()
    };
    sources::refuse_absent_cameras(&lookup.cameras, batch, &mut answers);

    let unanswered = batch
        .iter_mut()
        .zip(&answers)
        .filter(|(_, answer)| answer.is_none());
    let mut new: Vec<_> = unanswered.map(|(evaluated, _)| evaluated).collect();
    let mut detection_ids = lookup.detection_ids.into_iter();
    for (evaluated, event_id) in new.iter_mut().zip(lookup.event_ids) {
        evaluated.ingest.event.id = event_id;
        for (detection, id) in evaluated
            .ingest
            .detections
            .iter_mut()
            .zip(detection_ids.by_ref())
        {
            detection.id = id;
        }
    }
    let ingests = new.iter().map(|evaluated| &evaluated.ingest);
    sources::mark_seen(tx, ingests, &lookup.cameras).await?;
    insert(tx, &mut new).await?;
    Ok(answers)
}

/// Inserts the rows, alerts and feed records of ingests with assigned ids.
async fn insert(tx: &DatabaseTransaction, new: &mut [&mut EvaluatedIngest]) -> Result<()> {
    let now = entity::now();
    let (mut detections, mut links) = (Vec::new(), Vec::new());
    for EvaluatedIngest { ingest, .. } in new.iter() {
        for detection in &ingest.detections {
            detections.push(detection.clone());
            links.push(event_detection::Model {
                event_id: ingest.event.id,
                detection_id: detection.id,
                created_at: now,
            });
        }
    }
    let events: Vec<_> = new
        .iter()
        .map(|evaluated| evaluated.ingest.event.clone())
        .collect();
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(events)?;
    inserts.add(detections)?;
    inserts.add(links)?;
    let raised = raise(tx, new, now).await?;
    let alerts_and_steps = raised.iter().map(|(alert, steps)| (alert, &steps[..]));
    let deliveries = deliveries::for_new_alerts(tx, &alerts_and_steps.collect::<Vec<_>>()).await?;
    let alerts: Vec<_> = raised.into_iter().map(|(alert, _)| alert).collect();
    let transitions = alerts.iter().filter_map(raised_by_rule).collect();
    inserts.add(alerts)?;
    inserts.add(transitions)?;
    inserts.add(deliveries)?;
    inserts.add(suppressions::suppression_rows(new, now))?;

    let has_key = |ingest: &Ingest| ingest.request_id.is_some() || ingest.batch_id.is_some();
    let mut keys: Vec<_> = new
        .iter()
        .filter(|evaluated| has_key(&evaluated.ingest))
        .map(|evaluated| replay::key(evaluated, now))
        .collect();
    // A fixed order avoids deadlocks between transactions with equal keys.
    keys.sort_by_cached_key(|row| {
        (
            row.request_id.clone(),
            row.camera_id.clone(),
            row.batch_id.clone(),
        )
    });
    inserts.add(keys)?;
    let announcements = new.iter().flat_map(|evaluated| announcements(evaluated));
    inserts.add(feed::rows(tx, announcements).await?)?;
    inserts.run(tx).await
}

fn raised_by_rule(alert: &alert::Model) -> Option<alert_transition::ActiveModel> {
    Some(transition::raised(alert, Cause::rule(alert.rule_id?)))
}

/// Builds the feed records of a into_response ingest: the event first, then the alerts.
fn announcements(evaluated: &EvaluatedIngest) -> Vec<Record> {
    let alert = |alert: &pb::Alert| announcement(pb::AlertChangeKind::Created, alert.clone());
    let event = pb::Event::from(evaluated.ingest.event.clone());
    let record = event_announcement(pb::ChangeKind::Created, event);
    std::iter::once(record)
        .chain(evaluated.alerts.iter().map(alert))
        .collect()
}

/// Builds the feed record of a change of an event. Prompts are long and not announced.
pub(super) fn event_announcement(kind: pb::ChangeKind, event: pb::Event) -> Record {
    let key = event.id.to_string();
    let change = pb::EventChange {
        kind: kind.into(),
        event: Some(pb::Event {
            llm_prompt: None,
            ..event
        }),
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
