//! Rolling up: the samples of a minute that is over become one row.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, QueryFilter};
use tokio_util::sync::CancellationToken;

use super::{
    MINUTE, all,
    digest::{self, Digest},
    locked, raw_from, sample, statement,
};
use crate::{
    db::Db,
    entity::{self, gpu_stats_minute, gpu_stats_pending},
    error::{Chain, Error, Result},
    rpc::time,
};

/// How often to look.
const PERIOD: Duration = Duration::from_secs(2);

/// How long after its end a minute is rolled up, in milliseconds. Samples are stored within seconds;
/// for those that come later the minute is rolled up again.
const SETTLED: i64 = 5_000;

/// How many samples one transaction reads, about, and how many marks. SQLite has one writer, which this
/// holds up for some milliseconds.
const SAMPLES: usize = 1_000;
const MARKS: i64 = 512;

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

/// Rolls up what is due, again and again, until shutdown.
pub async fn run(db: Db, shutdown: CancellationToken) {
    let mut away = false;
    loop {
        match shutdown.run_until_cancelled(all_due(&db)).await {
            Some(Ok(())) => away = false,
            Some(Err(error)) => {
                if !std::mem::replace(&mut away, true) {
                    let error = Chain(&error).to_string();
                    tracing::warn!(
                        error,
                        "GPU samples could not be rolled up; it is tried again"
                    );
                }
            }
            None => return,
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn all_due(db: &Db) -> Result<()> {
    let before = (entity::now().timestamp_millis() - SETTLED).div_euclid(MINUTE);
    // Whether there is anything is found out without the writer.
    let due = statement(db.reader(), DUE, [before.into()]);
    if db.reader().query_one_raw(due).await?.is_none() {
        return Ok(());
    }
    loop {
        let started = Instant::now();
        let marks = db.write(async |tx| some(tx, before).await).await?;
        if marks == 0 {
            return Ok(());
        }
        // Much may have piled up; half of the time belongs to others.
        tokio::time::sleep(started.elapsed()).await;
    }
}

/// Rolls up the oldest minutes that are marked. Returns how many marks were worked off.
async fn some(tx: &DatabaseTransaction, before: i64) -> Result<usize> {
    if !locked(tx).await? {
        return Ok(0);
    }
    let marks: Vec<Mark> = all(tx, TAKE, [before.into(), MARKS.into()]).await?;
    // After the marks: what was marked before samples were deleted is known to be so.
    let raw_from = raw_from(tx).await?;
    let (mut read, mut done) = (0, Vec::new());
    for marks in marks.chunk_by(|a, b| (a.minute, &a.gpu_uuid) == (b.minute, &b.gpu_uuid)) {
        if read >= SAMPLES {
            break;
        }
        read += minute(tx, &marks[0].gpu_uuid, marks[0].minute, raw_from).await?;
        done.extend(marks.iter().map(|mark| mark.id));
    }
    let count = done.len();
    if count > 0 {
        gpu_stats_pending::Entity::delete_many()
            .filter(gpu_stats_pending::COLUMN.id.is_in(done))
            .exec(tx)
            .await?;
    }
    Ok(count)
}

/// Rolls up one minute. Returns how many samples it has.
async fn minute(
    tx: &DatabaseTransaction,
    gpu_uuid: &str,
    minute: i64,
    raw_from: i64,
) -> Result<usize> {
    if minute < raw_from {
        // Some of its samples may be gone, so what was made of all of them stays.
        let found = statement(tx, FIND, [gpu_uuid.into(), minute.into()]);
        if tx.query_one_raw(found).await?.is_some() {
            return Ok(0);
        }
    }
    let at = |minute: i64| {
        let at = time::from_millis(minute.saturating_mul(MINUTE));
        at.ok_or_else(|| Error::internal("no such minute"))
    };
    let samples = sample::read(tx, gpu_uuid, at(minute)?, at(minute + 1)?).await?;
    if samples.is_empty() {
        gpu_stats_minute::Entity::delete_by_id((gpu_uuid.to_string(), minute))
            .exec(tx)
            .await?;
    } else {
        let Digest {
            summary,
            distribution,
        } = digest::encode(minute * MINUTE, &samples);
        let values = [
            gpu_uuid.into(),
            minute.into(),
            summary.into(),
            distribution.into(),
        ];
        tx.execute_raw(statement(tx, PUT, values)).await?;
    }
    // A minute costs something without samples, too.
    Ok(samples.len() + 1)
}
