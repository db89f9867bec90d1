//! Repeated ingests: recognised by their keys, and answered with what the first one did.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, JoinType, QueryFilter, QueryOrder,
    QuerySelect,
};
use uuid::Uuid;

use super::{batch::Answer, check::Ingest};
use crate::{
    alerts::rules::RuleSet,
    entity::{alert, detection, event, event_detection, event_ingest},
    error::{Error, Result},
    pb,
};

/// What is kept of the outcomes of an ingest.
#[derive(Clone, PartialEq, Message)]
struct Outcomes {
    #[prost(message, repeated, tag = "1")]
    outcomes: Vec<Outcome>,
}

#[derive(Clone, PartialEq, Message)]
struct Outcome {
    #[prost(bytes = "vec", tag = "1")]
    rule_id: Vec<u8>,
    #[prost(int32, tag = "2")]
    stopped_by: i32,
    #[prost(bytes = "vec", tag = "3")]
    alert_id: Vec<u8>,
}

/// The row by which a repetition of this ingest will be recognised.
pub(super) fn key(
    ingest: &Ingest,
    outcomes: &[pb::RuleOutcome],
    now: DateTime<Utc>,
) -> event_ingest::Model {
    let bytes = |id: &str| {
        Uuid::parse_str(id)
            .map(|id| id.as_bytes().to_vec())
            .unwrap_or_default()
    };
    let outcome = |outcome: &pb::RuleOutcome| Outcome {
        rule_id: bytes(&outcome.rule_id),
        stopped_by: outcome.stopped_by,
        alert_id: outcome.alert_id.as_deref().map(bytes).unwrap_or_default(),
    };
    let outcomes = Outcomes {
        outcomes: outcomes.iter().map(outcome).collect(),
    };
    event_ingest::Model {
        event_id: ingest.event.id,
        camera_id: ingest.event.camera_id.clone(),
        batch_id: ingest.batch_id.clone(),
        request_id: ingest.request_id.clone(),
        fingerprint: ingest.fingerprint.clone(),
        outcomes: Some(outcomes.encode_to_vec()),
        created_at: now,
    }
}

/// Whether two ingests share a key, so that one of them must wait for the other.
pub(super) fn share_a_key(ingest: &Ingest, keys: &mut HashSet<(Option<String>, String)>) -> bool {
    let request = ingest.request_id.clone().map(|id| (None, id));
    let batch = ingest
        .batch_id
        .clone()
        .map(|id| (Some(ingest.event.camera_id.clone()), id));
    let wanted: Vec<_> = request.into_iter().chain(batch).collect();
    if wanted.iter().any(|key| keys.contains(key)) {
        return true;
    }
    keys.extend(wanted);
    false
}

/// Answers the ingests that were carried out before; `None` for new ones.
pub(super) async fn answers(
    tx: &DatabaseTransaction,
    ingests: &[Ingest],
    rules: &RuleSet,
) -> Result<Vec<Option<Answer>>> {
    use event_ingest::Column::{BatchId, CameraId, RequestId};

    let request_ids: Vec<_> = ingests
        .iter()
        .filter_map(|ingest| ingest.request_id.clone())
        .collect();
    let batch_ids: Vec<_> = ingests
        .iter()
        .filter_map(|ingest| ingest.batch_id.clone())
        .collect();
    let mut earlier = Vec::new();
    if !request_ids.is_empty() {
        let rows = event_ingest::Entity::find()
            .filter(RequestId.is_in(request_ids))
            .all(tx)
            .await?;
        earlier.extend(rows);
    }
    if !batch_ids.is_empty() {
        let camera_ids: HashSet<_> = ingests
            .iter()
            .map(|ingest| ingest.event.camera_id.clone())
            .collect();
        let condition = Condition::all()
            .add(CameraId.is_in(camera_ids))
            .add(BatchId.is_in(batch_ids));
        earlier.extend(
            event_ingest::Entity::find()
                .filter(condition)
                .all(tx)
                .await?,
        );
    }
    let mut answers = Vec::with_capacity(ingests.len());
    for ingest in ingests {
        let by_request = earlier
            .iter()
            .find(|row| row.request_id.is_some() && row.request_id == ingest.request_id);
        let by_batch = earlier.iter().find(|row| {
            row.batch_id.is_some()
                && row.batch_id == ingest.batch_id
                && row.camera_id == ingest.event.camera_id
        });
        answers.push(match (by_request, by_batch) {
            (None, None) => None,
            (Some(row), _) | (None, Some(row)) if row.fingerprint == ingest.fingerprint => {
                Some(Ok(response(tx, row, rules).await?))
            }
            (Some(_), _) => Some(Err(Error::KeyReused {
                field: "request_id",
            })),
            (None, Some(_)) => Some(Err(Error::KeyReused {
                field: "event.batch_id",
            })),
        });
    }
    Ok(answers)
}

/// What the first request did, as it is now.
async fn response(
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
            .map(|kept| outcomes(kept, rules))
            .unwrap_or_default(),
        replayed: true,
    })
}

fn outcomes(kept: &[u8], rules: &RuleSet) -> Vec<pb::RuleOutcome> {
    let names: HashMap<_, _> = rules
        .iter()
        .map(|rule| (rule.id, rule.name.as_str()))
        .collect();
    let outcome = |outcome: Outcome| {
        let rule_id = Uuid::from_slice(&outcome.rule_id).unwrap_or_default();
        pb::RuleOutcome {
            rule_id: rule_id.to_string(),
            rule_name: names.get(&rule_id).copied().unwrap_or_default().to_string(),
            fired: outcome.stopped_by == 0,
            stopped_by: outcome.stopped_by,
            alert_id: Uuid::from_slice(&outcome.alert_id)
                .ok()
                .map(|id| id.to_string()),
            detail: String::new(),
        }
    };
    Outcomes::decode(kept)
        .unwrap_or_default()
        .outcomes
        .into_iter()
        .map(outcome)
        .collect()
}
