//! Roll-up of each past minute of samples into one row.

use std::time::{Duration, Instant};

use prost::Message;
use sea_orm::{ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, QueryFilter};
use tokio_util::sync::CancellationToken;

use super::{
    digest::{self, Digest},
    queries::{MINUTE_MS, query_all, raw_from, try_lock},
    sample,
};
use crate::{
    db::{Db, dialect::statement},
    entity::{self, gpu_stats_minute, gpu_stats_pending},
    error::{Chain, Error, Result},
    rpc::time,
};

/// Time between two checks for marks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Time from the end of a minute to its roll-up, in milliseconds. Most samples are stored by then.
/// A later sample marks the minute again.
const LATE_ARRIVAL_MS: i64 = 5_000;

/// Approximate number of samples and upper bound of marks per transaction. The only writer of
/// SQLite is then blocked for a few milliseconds.
const SAMPLES_PER_TRANSACTION: usize = 1_000;
const MARKS_PER_TRANSACTION: i64 = 512;

const DUE: &str = "SELECT minute FROM gpu_stats_pending WHERE minute < $1 LIMIT 1";
const TAKE: &str = "\
    SELECT id, gpu_uuid, minute FROM gpu_stats_pending WHERE minute < $1 \
    ORDER BY minute, gpu_uuid LIMIT $2";
const FIND: &str = "SELECT minute FROM gpu_stats_minutes WHERE gpu_uuid = $1 AND minute = $2";
const PUT: &str = "\
    INSERT INTO gpu_stats_minutes (gpu_uuid, minute, summary, distribution) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (gpu_uuid, minute) \
    DO UPDATE SET summary = excluded.summary, distribution = excluded.distribution";

#[derive(FromQueryResult)]
struct Mark {
    id: i64,
    gpu_uuid: String,
    minute: i64,
}

/// Rolls up the due minutes every 2 s, until shutdown.
pub async fn run(db: Db, shutdown: CancellationToken) {
    let mut away = false;
    loop {
        match shutdown.run_until_cancelled(roll_up_due(&db)).await {
            Some(Ok(())) => away = false,
            Some(Err(error)) => {
                if !std::mem::replace(&mut away, true) {
                    let error = Chain(&error).to_string();
                    tracing::warn!(error, "GPU samples could not be rolled up; the next attempt follows in 2 s");
                }
            }
            None => return,
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn roll_up_due(db: &Db) -> Result<()> {
    let before = (entity::now().timestamp_millis() - LATE_ARRIVAL_MS).div_euclid(MINUTE_MS);
    // The reader answers this, so that an idle check does not block the writer.
    let due = statement(db.reader(), DUE, [before.into()]);
    if db.reader().query_one_raw(due).await?.is_none() {
        return Ok(());
    }
    loop {
        let started = Instant::now();
        let marks = db.write(async |tx| roll_up_batch(tx, before).await).await?;
        if marks == 0 {
            return Ok(());
        }
        // A backlog may be long, so other writers get half of the time.
        tokio::time::sleep(started.elapsed()).await;
    }
}

/// Rolls up the oldest marked minutes. Returns the number of processed marks.
async fn roll_up_batch(tx: &DatabaseTransaction, before: i64) -> Result<usize> {
    if !try_lock(tx).await? {
        return Ok(0);
    }
    let marks: Vec<Mark> = query_all(tx, TAKE, [before.into(), MARKS_PER_TRANSACTION.into()]).await?;
    // Read after the marks, so that marks from before a deletion are recognised.
    let raw_from = raw_from(tx).await?;
    let (mut read, mut done) = (0, Vec::new());
    for marks in marks.chunk_by(|a, b| (a.minute, &a.gpu_uuid) == (b.minute, &b.gpu_uuid)) {
        if read >= SAMPLES_PER_TRANSACTION {
            break;
        }
        read += roll_up_minute(tx, &marks[0].gpu_uuid, marks[0].minute, raw_from).await?;
        done.extend(marks.iter().map(|mark| mark.id));
    }
    let count = done.len();
    if count > 0 {
        gpu_stats_pending::Entity::delete_many().filter(gpu_stats_pending::COLUMN.id.is_in(done)).exec(tx).await?;
    }
    Ok(count)
}

/// Rolls up one minute. Returns the number of its samples plus 1.
async fn roll_up_minute(tx: &DatabaseTransaction, gpu_uuid: &str, minute: i64, raw_from: i64) -> Result<usize> {
    if minute < raw_from {
        // Some samples may be deleted, so the roll-up of all samples stays.
        let query = statement(tx, FIND, [gpu_uuid.into(), minute.into()]);
        if tx.query_one_raw(query).await?.is_some() {
            return Ok(0);
        }
    }
    let start_of = |minute: i64| {
        let start = time::from_millis(minute.saturating_mul(MINUTE_MS));
        start.ok_or_else(|| Error::internal("a marked minute cannot be represented"))
    };
    let samples = sample::read(tx, gpu_uuid, start_of(minute)?, start_of(minute + 1)?).await?;
    if samples.is_empty() {
        gpu_stats_minute::Entity::delete_by_id((gpu_uuid.to_string(), minute)).exec(tx).await?;
    } else {
        let Digest { summary, distribution } = digest::encode(minute * MINUTE_MS, &samples);
        let (summary, distribution) = (summary.encode_to_vec(), distribution.encode_to_vec());
        let values = [gpu_uuid.into(), minute.into(), summary.into(), distribution.into()];
        tx.execute_raw(statement(tx, PUT, values)).await?;
    }
    // A minute without samples has a cost too.
    Ok(samples.len() + 1)
}
