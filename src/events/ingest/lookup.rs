//! Query that prepares a batch of ingests: cameras, a hint at repetitions, and the ids of the new
//! rows.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, QueryResult, Value};

use super::{
    sources::{CameraState, CameraStates},
    stages::EvaluatedIngest,
};
use crate::{
    db::dialect::Sql,
    error::{Error, Result},
};

/// Cameras, a hint at repetitions, and row ids. Lists are passed as JSON, so that the statement does
/// not depend on the number of ingests. On PostgreSQL, the ids come from the sequences. SQLite has
/// one writer, so that the ids after the last id are free.
const LOOKUP: Sql = Sql {
    postgres: "\
        SELECT id, deleted_at IS NOT NULL AS deleted, last_seen_at, \
        EXISTS (SELECT FROM event_ingests \
            WHERE request_id = ANY(ARRAY(SELECT json_array_elements_text($1::text::json)))) \
        OR EXISTS (SELECT FROM event_ingests \
            WHERE camera_id = ANY(ARRAY(SELECT json_array_elements_text($2::text::json))) \
            AND batch_id = ANY(ARRAY(SELECT json_array_elements_text($3::text::json)))) AS repeated, \
        (SELECT string_agg(nextval('events_id_seq')::text, ',') \
            FROM generate_series(1, $4::bigint)) AS event_ids, \
        (SELECT string_agg(nextval('detections_id_seq')::text, ',') \
            FROM generate_series(1, $5::bigint)) AS detection_ids \
        FROM cameras WHERE id = ANY(ARRAY(SELECT json_array_elements_text($2::text::json)))",
    sqlite: "\
        SELECT id, deleted_at IS NOT NULL AS deleted, last_seen_at, \
        EXISTS (SELECT 1 FROM event_ingests \
            WHERE request_id IN (SELECT value FROM json_each($1))) \
        OR EXISTS (SELECT 1 FROM event_ingests \
            WHERE camera_id IN (SELECT value FROM json_each($2)) \
            AND batch_id IN (SELECT value FROM json_each($3))) AS repeated, \
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) AS last_event, \
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'detections'), 0) AS last_detection \
        FROM cameras WHERE id IN (SELECT value FROM json_each($2))",
};

/// Result of the lookup.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub cameras: CameraStates,
    /// True if any of the ingests may be a repetition.
    pub repeated: bool,
    /// One id per ingest. Empty if no camera exists.
    pub event_ids: Vec<i64>,
    /// One id per detection. Empty if no camera exists.
    pub detection_ids: Vec<i64>,
}

/// Looks up the data of a batch.
pub(crate) async fn prepare(tx: &DatabaseTransaction, batch: &[EvaluatedIngest]) -> Result<Lookup> {
    let ingests = || batch.iter().map(|evaluated| &evaluated.ingest);
    let request_ids = json_list(ingests().filter_map(|ingest| ingest.request_id.as_deref()));
    let camera_ids = json_list(ingests().map(|ingest| ingest.event.camera_id.as_str()));
    let batch_ids = json_list(ingests().filter_map(|ingest| ingest.batch_id.as_deref()));
    let detections = ingests().map(|ingest| ingest.detections.len()).sum();
    let mut values = vec![request_ids, camera_ids, batch_ids];
    let backend = tx.get_database_backend();
    if backend == DbBackend::Postgres {
        values.extend([sql_count(batch.len()).into(), sql_count(detections).into()]);
    }
    let rows = tx.query_all_raw(LOOKUP.statement(backend, values)).await?;
    let mut lookup = Lookup {
        cameras: CameraStates::with_capacity(rows.len()),
        repeated: true,
        event_ids: Vec::new(),
        detection_ids: Vec::new(),
    };
    for row in &rows {
        let state =
            CameraState { deleted: row.try_get("", "deleted")?, last_seen_at: row.try_get("", "last_seen_at")? };
        lookup.cameras.insert(row.try_get("", "id")?, state);
    }
    // These columns are equal in all rows.
    if let Some(row) = rows.first() {
        lookup.repeated = row.try_get("", "repeated")?;
        if backend == DbBackend::Postgres {
            lookup.event_ids = sequence_ids(row, "event_ids")?;
            lookup.detection_ids = sequence_ids(row, "detection_ids")?;
        } else {
            lookup.event_ids = next_ids(row, "last_event", batch.len())?;
            lookup.detection_ids = next_ids(row, "last_detection", detections)?;
        }
    }
    Ok(lookup)
}

fn json_list<'a>(values: impl Iterator<Item = &'a str>) -> Value {
    let distinct: BTreeSet<_> = values.collect();
    serde_json::json!(distinct).to_string().into()
}

fn sql_count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn sequence_ids(row: &QueryResult, column: &str) -> Result<Vec<i64>> {
    let ids: Option<String> = row.try_get("", column)?;
    let parsed: Result<Vec<_>, _> = ids.as_deref().unwrap_or_default().split_terminator(',').map(str::parse).collect();
    let mut ids = parsed.map_err(Error::internal)?;
    // Sorted, so that ids ascend in request order.
    ids.sort_unstable();
    Ok(ids)
}

fn next_ids(row: &QueryResult, column: &str, rows: usize) -> Result<Vec<i64>> {
    let last: i64 = row.try_get("", column)?;
    Ok((last + 1..=last + sql_count(rows)).collect())
}
