//! The numbers of new rows.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};

use crate::error::{Error, Result};

/// Numbers for `events` and `detections` rows, this many of each.
pub(super) async fn reserve(
    tx: &DatabaseTransaction,
    events: usize,
    detections: usize,
) -> Result<(Vec<i64>, Vec<i64>)> {
    let counts = [count(events), count(detections)];
    if tx.get_database_backend() == DbBackend::Postgres {
        let sql = "SELECT 'e' AS kind, nextval('events_id_seq') AS id \
                   FROM generate_series(1, $1) UNION ALL \
                   SELECT 'd', nextval('detections_id_seq') FROM generate_series(1, $2)";
        let [events, detections] = counts;
        let values = [events.into(), detections.into()];
        let rows = tx
            .query_all_raw(Statement::from_sql_and_values(
                DbBackend::Postgres,
                sql,
                values,
            ))
            .await?;
        let (mut events, mut detections) = (Vec::new(), Vec::new());
        for row in rows {
            let ids = if row.try_get::<String>("", "kind")? == "e" {
                &mut events
            } else {
                &mut detections
            };
            ids.push(row.try_get("", "id")?);
        }
        // In the order of the request, so that ids rise with it.
        events.sort_unstable();
        detections.sort_unstable();
        return Ok((events, detections));
    }
    // This transaction is the only one that writes, so that what follows the last id is free.
    let sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) AS events, \
               coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'detections'), 0) AS detections";
    let row = tx
        .query_one_raw(Statement::from_string(DbBackend::Sqlite, sql))
        .await?;
    let row = row.ok_or_else(|| Error::internal("a query without a row"))?;
    let after = |last: i64, count: i64| (last + 1..=last + count).collect();
    let [events, detections] = counts;
    Ok((
        after(row.try_get("", "events")?, events),
        after(row.try_get("", "detections")?, detections),
    ))
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
