//! Detection of repeated ingests, and the response with the stored result.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, JoinType, QueryFilter, QueryOrder, QuerySelect,
};

use super::stages::{Answer, EvaluatedIngest, MatchResults, NewIngest};
use crate::{
    alerts::engine::{outcomes, rule_set::RuleSet},
    batch::group_commit::Key,
    entity::{alert, detection, event, event_detection, event_ingest},
    error::{Error, Result},
    events::check::Ingest,
    pb,
};

/// Builds the row that identifies repetitions of the ingest.
pub(crate) fn key(new: &NewIngest<'_>, results: &MatchResults, now: DateTime<Utc>) -> event_ingest::Model {
    let ingest = &new.evaluated.ingest;
    event_ingest::Model {
        event_id: new.event_id,
        camera_id: ingest.event.camera_id.clone(),
        batch_id: ingest.batch_id.clone(),
        request_id: ingest.request_id.clone(),
        fingerprint: ingest.fingerprint.clone(),
        outcomes: Some(outcomes::encode(results.outcomes.iter())),
        created_at: now,
    }
}

/// Returns the keys by which repetitions of the ingest are recognized. Two ingests with a common key
/// must not be written in the same transaction.
pub(crate) fn keys(ingest: &Ingest) -> Vec<Key> {
    let request = ingest.request_id.clone().map(|id| (None, id));
    let batch = ingest.batch_id.clone().map(|id| (Some(ingest.event.camera_id.clone()), id));
    request.into_iter().chain(batch).collect()
}

/// Returns the stored responses of repeated ingests. `None` for a new ingest.
pub(crate) async fn find_replays(tx: &DatabaseTransaction, batch: &[EvaluatedIngest]) -> Result<Vec<Option<Answer>>> {
    use event_ingest::Column::{BatchId, CameraId, RequestId};

    let ingests: Vec<_> = batch.iter().map(|evaluated| &evaluated.ingest).collect();
    let request_ids: Vec<_> = ingests.iter().filter_map(|ingest| ingest.request_id.clone()).collect();
    let batch_ids: Vec<_> = ingests.iter().filter_map(|ingest| ingest.batch_id.clone()).collect();
    let mut earlier = Vec::new();
    if !request_ids.is_empty() {
        let rows = event_ingest::Entity::find().filter(RequestId.is_in(request_ids)).all(tx).await?;
        earlier.extend(rows);
    }
    if !batch_ids.is_empty() {
        let camera_ids: HashSet<_> = ingests.iter().map(|ingest| ingest.event.camera_id.clone()).collect();
        let condition = Condition::all().add(CameraId.is_in(camera_ids)).add(BatchId.is_in(batch_ids));
        earlier.extend(event_ingest::Entity::find().filter(condition).all(tx).await?);
    }
    let mut answers = Vec::with_capacity(ingests.len());
    for (ingest, evaluated) in ingests.iter().zip(batch) {
        let by_request = earlier.iter().find(|row| row.request_id.is_some() && row.request_id == ingest.request_id);
        let by_batch = earlier.iter().find(|row| {
            row.batch_id.is_some() && row.batch_id == ingest.batch_id && row.camera_id == ingest.event.camera_id
        });
        answers.push(match (by_request, by_batch) {
            (None, None) => None,
            (Some(row), _) | (None, Some(row)) if row.fingerprint == ingest.fingerprint => {
                Some(Ok(stored_response(tx, row, &evaluated.rules).await?))
            }
            (Some(_), _) => Some(Err(Error::KeyReused { field: "request_id" })),
            (None, Some(_)) => Some(Err(Error::KeyReused { field: "event.batch_id" })),
        });
    }
    Ok(answers)
}

/// Builds the response from the stored rows in their present state.
async fn stored_response(
    tx: &DatabaseTransaction,
    row: &event_ingest::Model,
    rules: &RuleSet,
) -> Result<pb::IngestEventResponse> {
    let event = event::Entity::find_by_id(row.event_id).one(tx).await?;
    let detections = detection::Entity::find()
        .join_rev(
            JoinType::InnerJoin,
            event_detection::Entity::belongs_to(detection::Entity)
                .from(event_detection::Column::DetectionId)
                .to(detection::Column::Id)
                .into(),
        )
        .filter(event_detection::Column::EventId.eq(row.event_id))
        .order_by_asc(detection::Column::Id)
        .all(tx)
        .await?;
    let alerts = alert::Entity::find()
        .filter(alert::Column::EventId.eq(row.event_id))
        // Excludes alerts that clients raised for the event later.
        .filter(alert::Column::CreatedAt.eq(row.created_at))
        .order_by_asc(alert::Column::Id)
        .all(tx)
        .await?;
    Ok(pb::IngestEventResponse {
        event: event.map(Into::into),
        detections: detections.into_iter().map(Into::into).collect(),
        alerts: alerts.into_iter().map(Into::into).collect(),
        rule_outcomes: row
            .outcomes
            .as_deref()
            .map(|stored_outcomes| outcomes::decode(stored_outcomes, rules))
            .unwrap_or_default(),
        replayed: true,
    })
}
