//! What a batch of ingests must know before it can be written, all in one query: which cameras
//! there are, whether any of it was carried out before, and which ids its rows will have.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, QueryResult, Statement, Value};

use super::{
    batch::Judged,
    sources::{Cameras, Source},
};
use crate::error::{Error, Result};

/// The ids of its rows are taken from the sequences. Lists go as JSON, so that the statement is
/// the same for any number of ingests.
const POSTGRES: &str = "\
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
    FROM cameras WHERE id = ANY(ARRAY(SELECT json_array_elements_text($2::text::json)))";

/// This transaction is the only one that writes, so that what follows the last id is free.
const SQLITE: &str = "\
    SELECT id, deleted_at IS NOT NULL AS deleted, last_seen_at, \
    EXISTS (SELECT 1 FROM event_ingests \
        WHERE request_id IN (SELECT value FROM json_each(?1))) \
    OR EXISTS (SELECT 1 FROM event_ingests \
        WHERE camera_id IN (SELECT value FROM json_each(?2)) \
        AND batch_id IN (SELECT value FROM json_each(?3))) AS repeated, \
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) AS last_event, \
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'detections'), 0) AS last_detection \
    FROM cameras WHERE id IN (SELECT value FROM json_each(?2))";

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub cameras: Cameras,
    /// Whether any of the ingests may be a repetition.
    pub repeated: bool,
    /// One for every ingest. None if there is no camera.
    pub event_ids: Vec<i64>,
    /// One for every detection. None if there is no camera.
    pub detection_ids: Vec<i64>,
}

/// Looks up what a batch must know.
pub(super) async fn look_up(tx: &DatabaseTransaction, batch: &[Judged]) -> Result<Found> {
    let ingests = || batch.iter().map(|judged| &judged.ingest);
    let request_ids = list(ingests().filter_map(|ingest| ingest.request_id.as_deref()));
    let camera_ids = list(ingests().map(|ingest| ingest.event.camera_id.as_str()));
    let batch_ids = list(ingests().filter_map(|ingest| ingest.batch_id.as_deref()));
    let detections = ingests().map(|ingest| ingest.detections.len()).sum();
    let mut values = vec![request_ids, camera_ids, batch_ids];
    let backend = tx.get_database_backend();
    let sql = if backend == DbBackend::Postgres {
        values.extend([count(batch.len()).into(), count(detections).into()]);
        POSTGRES
    } else {
        SQLITE
    };
    let rows = tx
        .query_all_raw(Statement::from_sql_and_values(backend, sql, values))
        .await?;
    let mut found = Found {
        cameras: Cameras::with_capacity(rows.len()),
        repeated: true,
        event_ids: Vec::new(),
        detection_ids: Vec::new(),
    };
    for row in &rows {
        let source = Source {
            deleted: row.try_get("", "deleted")?,
            last_seen_at: row.try_get("", "last_seen_at")?,
        };
        found.cameras.insert(row.try_get("", "id")?, source);
    }
    // Every row has the same of these.
    if let Some(row) = rows.first() {
        found.repeated = row.try_get("", "repeated")?;
        if backend == DbBackend::Postgres {
            found.event_ids = taken(row, "event_ids")?;
            found.detection_ids = taken(row, "detection_ids")?;
        } else {
            found.event_ids = following(row, "last_event", batch.len())?;
            found.detection_ids = following(row, "last_detection", detections)?;
        }
    }
    Ok(found)
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> Value {
    let values: BTreeSet<_> = values.collect();
    serde_json::json!(values).to_string().into()
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn taken(row: &QueryResult, column: &str) -> Result<Vec<i64>> {
    let ids: Option<String> = row.try_get("", column)?;
    let ids = ids.as_deref().unwrap_or_default().split_terminator(',');
    let ids: Result<Vec<_>, _> = ids.map(str::parse).collect();
    let mut ids = ids.map_err(Error::internal)?;
    // In the order of the request, so that ids rise with it.
    ids.sort_unstable();
    Ok(ids)
}

fn following(row: &QueryResult, column: &str, rows: usize) -> Result<Vec<i64>> {
    let last: i64 = row.try_get("", column)?;
    Ok((last + 1..=last + count(rows)).collect())
}
