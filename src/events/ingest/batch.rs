//! One transaction for a batch of ingests: rows, alerts and announcements.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction};

use super::{
    lookup,
    raise::raise,
    replay, sources,
    stages::{EvaluatedIngest, IngestResult, MatchResults, NewIngest, StoredIngest},
    suppressions,
};
use crate::{
    alerts::lifecycle::{
        change::announcement,
        deliveries,
        transition::{self, Cause},
    },
    db::bulk::Inserts,
    entity::{self, alert, alert_transition, event_detection, event_ingest},
    error::{Error, Result},
    events::check::Ingest,
    feed::{self, Record},
    pb::{self, watch_response::Update},
    topics,
};

/// Stores the new ingests of a batch and answers the others. Returns one result per ingest, in order.
///
/// Stored ingests take effect when the transaction commits. If the function fails, nothing of the
/// batch was written.
pub(crate) async fn store(tx: &DatabaseTransaction, batch: &[EvaluatedIngest]) -> Result<Vec<IngestResult>> {
    let lookup = lookup::prepare(tx, batch).await?;
    let mut answers =
        if lookup.repeated { replay::find_replays(tx, batch).await? } else { batch.iter().map(|_| None).collect() };
    sources::refuse_absent_cameras(&lookup.cameras, batch, &mut answers);

    let unanswered = batch.iter().zip(&answers).filter(|(_, answer)| answer.is_none());
    let mut detection_ids = lookup.detection_ids.into_iter();
    let new: Vec<_> = unanswered
        .zip(lookup.event_ids)
        .map(|((evaluated, _), event_id)| NewIngest {
            evaluated,
            event_id,
            detection_ids: detection_ids.by_ref().take(evaluated.ingest.detections.len()).collect(),
        })
        .collect();
    let ingests = new.iter().map(|ingest| &ingest.evaluated.ingest);
    sources::mark_seen(tx, ingests, &lookup.cameras).await?;
    let mut stored = insert(tx, new).await?.into_iter();
    let result = |answer: Option<_>| match answer {
        Some(answer) => Ok(IngestResult::Answered(Box::new(answer))),
        None => stored
            .next()
            .map(IngestResult::Stored)
            .ok_or_else(|| Error::internal("an ingest is neither answered nor stored")),
    };
    answers.into_iter().map(result).collect()
}

/// Inserts the rows, alerts and feed records of ingests with assigned ids.
async fn insert(tx: &DatabaseTransaction, new: Vec<NewIngest<'_>>) -> Result<Vec<StoredIngest>> {
    let now = entity::now();
    let (mut detections, mut links) = (Vec::new(), Vec::new());
    for ingest in &new {
        for detection in ingest.detections() {
            links.push(event_detection::Model {
                event_id: ingest.event_id,
                detection_id: detection.id,
                created_at: now,
            });
            detections.push(detection);
        }
    }
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(new.iter().map(NewIngest::event).collect::<Vec<_>>())?;
    inserts.add(detections)?;
    inserts.add(links)?;
    let (results, raised) = raise(tx, &new, now).await?;
    let alerts_and_steps = raised.iter().map(|(alert, steps)| (alert, &steps[..]));
    let deliveries = deliveries::for_new_alerts(tx, &alerts_and_steps.collect::<Vec<_>>()).await?;
    let alerts: Vec<_> = raised.into_iter().map(|(alert, _)| alert).collect();
    let transitions = alerts.iter().filter_map(raised_by_rule).collect();
    inserts.add(alerts)?;
    inserts.add(transitions)?;
    inserts.add(deliveries)?;
    inserts.add(suppressions::suppression_rows(&new, &results, now))?;
    inserts.add(replay_keys(&new, &results, now))?;
    let announcements = new.iter().zip(&results).flat_map(|(ingest, results)| ingest_announcements(ingest, results));
    inserts.add(feed::rows(tx, announcements).await?)?;
    inserts.run(tx).await?;
    Ok(new.into_iter().zip(results).map(|(ingest, results)| ingest.into_stored(results)).collect())
}

fn raised_by_rule(alert: &alert::Model) -> Option<alert_transition::ActiveModel> {
    Some(transition::raised(alert, Cause::rule(alert.rule_id?)))
}

/// Builds the rows that identify repetitions of the ingests.
fn replay_keys(new: &[NewIngest<'_>], results: &[MatchResults], now: DateTime<Utc>) -> Vec<event_ingest::Model> {
    let has_key = |ingest: &Ingest| ingest.request_id.is_some() || ingest.batch_id.is_some();
    let mut keys: Vec<_> = new
        .iter()
        .zip(results)
        .filter(|(ingest, _)| has_key(&ingest.evaluated.ingest))
        .map(|(ingest, results)| replay::key(ingest, results, now))
        .collect();
    // A fixed order avoids deadlocks between transactions with equal keys.
    keys.sort_by_cached_key(|row| (row.request_id.clone(), row.camera_id.clone(), row.batch_id.clone()));
    keys
}

/// Builds the feed records of a stored ingest: the event first, then the alerts.
fn ingest_announcements(ingest: &NewIngest<'_>, results: &MatchResults) -> Vec<Record> {
    let alert = |alert: &pb::Alert| announcement(pb::AlertChangeKind::Created, alert.clone());
    let event = event_announcement(pb::ChangeKind::Created, ingest.event().into());
    std::iter::once(event).chain(results.alerts.iter().map(alert)).collect()
}

/// Builds the feed record of a change of an event.
pub(crate) fn event_announcement(kind: pb::ChangeKind, event: pb::Event) -> Record {
    let key = event.id.to_string();
    let change = pb::EventChange { kind: kind.into(), event: Some(pb::Event { llm_prompt: None, ..event }) };
    topics::record(key, Update::Event(change))
}
