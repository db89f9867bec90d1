//! One transaction for several ingests: their rows, their alerts, and what is announced of them.

use std::sync::Arc;

use prost::Message;
use sea_orm::{ConnectionTrait, DatabaseTransaction};

use super::{
    check::Ingest,
    lookup,
    raise::{dedup_key, raise},
    replay, sources, suppressed,
};
use crate::{
    alerts::{
        engine::{
            index::Index,
            judge::{self, Facts, Verdict},
            live::{Rule, RuleSet, Rules},
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

/// What became of one ingest of a batch.
pub(super) type Answer = Result<pb::IngestEventResponse>;

/// An ingest, and what the rules say of it.
#[derive(Debug)]
pub(super) struct Judged {
    pub ingest: Ingest,
    pub rules: Arc<RuleSet>,
    pub matches: Vec<Match>,
    /// The outcomes of the other rules, if the caller asked for them.
    stopped: Vec<(usize, pb::RuleOutcome)>,
    /// What was raised, once it is stored.
    pub alerts: Vec<pb::Alert>,
}

/// A rule that matches.
#[derive(Debug)]
pub(super) struct Match {
    /// Which of the rules.
    pub rule: usize,
    pub object_type: Option<String>,
    pub zone_id: Option<String>,
    /// What becomes of it. If something has stopped it already, it is held back, and raises nothing.
    pub outcome: pb::RuleOutcome,
}

/// Asks the rules about an ingest. No database is needed for it, so it is done before the
/// transaction, which others wait for.
pub(super) fn judge(ingest: Ingest, rules: &Rules) -> Judged {
    let (index, silences) = (rules.index(), rules.silences());
    let facts = Facts::of(&ingest.event, &ingest.detections, index.zones().clone());
    let rules = index.rules();
    let now = entity::now();
    let snoozed = ingest.event.snooze_until.filter(|until| *until > now);
    let silences = silences.current();
    let mut matches = Vec::new();
    for found in index.matches(&facts) {
        let mut outcome = outcome(&rules[found.rule]);
        if let Some(until) = snoozed {
            outcome.stopped_by = RuleStop::Snoozed.into();
            outcome.detail = format!("the event is snoozed until {}", until.to_rfc3339());
        } else {
            let rule = &rules[found.rule];
            let silence = silences.of(&ingest.event.camera_id, rule.id, rule.severity, now);
            if let Some(id) = silence {
                outcome.stopped_by = RuleStop::Silenced.into();
                outcome.detail = format!("silence {id} is in force");
                outcome.silence_id = Some(id.to_string());
            }
        }
        matches.push(Match {
            rule: found.rule,
            object_type: found.object_type.map(Into::into),
            zone_id: found.zone_id.map(Into::into),
            outcome,
        });
    }
    let stopped = if ingest.explain {
        explain(&index, &facts)
    } else {
        Vec::new()
    };
    Judged {
        rules: rules.clone(),
        ingest,
        matches,
        stopped,
        alerts: Vec::new(),
    }
}

/// Upper bound of the work of judging an ingest: its detections are compared with every rule, and with every corner of
/// the zones of the camera.
pub(super) fn work(ingest: &Ingest, rules: &Rules) -> usize {
    let index = rules.index();
    let corners = index.zones().of(&ingest.event.camera_id).iter();
    let corners: usize = corners.map(Zone::corners).sum();
    let each = corners + index.rules().slots();
    // A few detections are judged quickly whatever the rules are.
    ingest.detections.len().saturating_sub(4) * each
}

/// What stopped the rules that do not match.
fn explain(index: &Index, facts: &Facts) -> Vec<(usize, pb::RuleOutcome)> {
    let rules = index.rules().iter();
    let stopped = rules.filter_map(|(at, rule)| match judge::judge(rule, facts) {
        Verdict::Matches { .. } => None,
        Verdict::Stopped(stop, detail) => {
            let stopped_by = stop.into();
            let outcome = outcome(rule);
            Some((
                at,
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

/// The outcome of a rule of which nothing is known yet.
fn outcome(rule: &Rule) -> pb::RuleOutcome {
    pb::RuleOutcome {
        rule_id: rule.id.to_string(),
        rule_name: rule.name.clone(),
        ..Default::default()
    }
}

impl Match {
    /// Whether nothing holds it back.
    pub(super) fn is_free(&self) -> bool {
        self.outcome.stopped_by() == RuleStop::Unspecified
    }
}

impl Judged {
    /// Whether it has raised an alert.
    pub(super) fn has_raised(&self) -> bool {
        !self.alerts.is_empty()
    }

    /// The outcomes of the rules that match.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &pb::RuleOutcome> {
        self.matches.iter().map(|found| &found.outcome)
    }

    /// The outcomes of the rules that match, each with what makes its dedup key.
    pub(super) fn keys_and_outcomes(
        &self,
    ) -> impl Iterator<Item = (impl FnOnce() -> String, &pb::RuleOutcome)> {
        self.matches
            .iter()
            .map(|found| (|| dedup_key(self, found), &found.outcome))
    }

    /// The answer, once it is stored.
    pub(super) fn stored(self) -> pb::IngestEventResponse {
        let matches = self.matches.into_iter();
        let mut outcomes: Vec<_> = matches.map(|found| (found.rule, found.outcome)).collect();
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

/// Stores the ingests that can be stored, and answers the others, in order: `None` means that it
/// is stored when the transaction is committed.
///
/// An answer that is an error wrote nothing. An error of the whole means that
/// nothing of the batch was written.
pub(super) async fn store(
    tx: &DatabaseTransaction,
    batch: &mut [Judged],
) -> Result<Vec<Option<Answer>>> {
    let found = lookup::look_up(tx, batch).await?;
    let mut answers = if found.repeated {
        replay::answers(tx, batch).await?
    } else {
        batch.iter().map(|_| None).collect()
    };
    sources::check(&found.cameras, batch, &mut answers);

    let unanswered = batch
        .iter_mut()
        .zip(&answers)
        .filter(|(_, answer)| answer.is_none());
    let mut new: Vec<_> = unanswered.map(|(judged, _)| judged).collect();
    let mut detection_ids = found.detection_ids.into_iter();
    for (judged, event_id) in new.iter_mut().zip(found.event_ids) {
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
    let ingests = new.iter().map(|judged| &judged.ingest);
    sources::mark_seen(tx, ingests, &found.cameras).await?;
    insert(tx, &mut new).await?;
    Ok(answers)
}

/// Writes rows, alerts and changes of ingests whose ids are known.
async fn insert(tx: &DatabaseTransaction, new: &mut [&mut Judged]) -> Result<()> {
    let now = entity::now();
    let (mut detections, mut links) = (Vec::new(), Vec::new());
    for Judged { ingest, .. } in new.iter() {
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
        .map(|judged| judged.ingest.event.clone())
        .collect();
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(events)?;
    inserts.add(detections)?;
    inserts.add(links)?;
    let raised = raise(tx, new, now).await?;
    let to_deliver = raised.iter().map(|(alert, steps)| (alert, &steps[..]));
    let deliveries = deliveries::of_new(tx, &to_deliver.collect::<Vec<_>>()).await?;
    let alerts: Vec<_> = raised.into_iter().map(|(alert, _)| alert).collect();
    let transitions = alerts.iter().filter_map(raised_by_rule).collect();
    inserts.add(alerts)?;
    inserts.add(transitions)?;
    inserts.add(deliveries)?;
    inserts.add(suppressed::rows(new, now))?;

    let has_key = |ingest: &Ingest| ingest.request_id.is_some() || ingest.batch_id.is_some();
    let keys = new.iter().filter(|judged| has_key(&judged.ingest));
    let mut keys: Vec<_> = keys.map(|judged| replay::key(judged, now)).collect();
    // Always in the same order, or two transactions with the same keys could wait for each other.
    keys.sort_by_cached_key(|row| {
        (
            row.request_id.clone(),
            row.camera_id.clone(),
            row.batch_id.clone(),
        )
    });
    inserts.add(keys)?;
    let announcements = new.iter().flat_map(|judged| announcements(judged));
    inserts.add(feed::rows(tx, announcements).await?)?;
    inserts.run(tx).await
}

fn raised_by_rule(alert: &alert::Model) -> Option<alert_transition::ActiveModel> {
    Some(transition::raised(alert, Cause::rule(alert.rule_id?)))
}

/// What subscribers are told of a stored ingest: the event, then its alerts.
fn announcements(judged: &Judged) -> Vec<Record> {
    let alert = |alert: &pb::Alert| announcement(pb::AlertChangeKind::Created, alert.clone());
    let event = pb::Event::from(judged.ingest.event.clone());
    let event = event_announcement(pb::ChangeKind::Created, event);
    std::iter::once(event)
        .chain(judged.alerts.iter().map(alert))
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
