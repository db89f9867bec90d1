//! `AggregateGpuStats`: from roll-ups where they are complete, else from samples.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult, QueryResult};

use super::{
    MINUTE, all,
    digest::{self, Summary},
    gpus::{self, Known},
    raw_from,
    request::{self, Plan},
    sample::{self, Sample},
    series::Series,
    statement,
    timeline::Timeline,
};
use crate::{
    db::Db,
    entity,
    error::{Error, Result},
    pb,
    rpc::time,
};

/// How many roll-ups are fetched at once, and how many minutes of samples.
const ROLLED_AT_ONCE: i64 = 1_440;
const RAW_AT_ONCE: usize = 60;

/// How many samples of one GPU can be held.
const MOST_SAMPLES: usize = 10_000_000;

const SUMMARIES: &str = "\
    SELECT minute, summary FROM gpu_stats_minutes \
    WHERE gpu_uuid = $1 AND minute >= $2 AND minute < $3 ORDER BY minute";
const DISTRIBUTIONS: &str = "\
    SELECT minute, summary, distribution FROM gpu_stats_minutes \
    WHERE gpu_uuid = $1 AND minute >= $2 AND minute < $3 ORDER BY minute";

/// Ordered by both columns, and a range of the first: no other index can answer it.
const ROLLED_BEFORE: &str = "\
    SELECT minute, summary FROM gpu_stats_minutes \
    WHERE gpu_uuid >= $1 AND gpu_uuid <= $2 AND minute < $3 \
    ORDER BY gpu_uuid DESC, minute DESC LIMIT 1";
const PENDING: &str = "\
    SELECT DISTINCT gpu_uuid, minute FROM gpu_stats_pending WHERE minute >= $1 AND minute < $2";
const PENDING_BEFORE: &str = "\
    SELECT DISTINCT minute FROM gpu_stats_pending \
    WHERE gpu_uuid = $1 AND minute >= $2 AND minute < $3 ORDER BY minute DESC LIMIT 3";

/// A roll-up, as much of it as is needed.
struct Rolled {
    minute: i64,
    summary: Vec<u8>,
    distribution: Option<Vec<u8>>,
}

#[derive(FromQueryResult)]
struct Pending {
    gpu_uuid: String,
    minute: i64,
}

#[derive(FromQueryResult)]
struct Minute {
    minute: i64,
}

/// Answers one request.
pub(in crate::gpu) async fn aggregate(
    db: &Db,
    request: &pb::AggregateGpuStatsRequest,
) -> Result<pb::AggregateGpuStatsResponse> {
    let (mut plan, chosen) = request::parse(request)?;
    let now = entity::now().timestamp_millis();
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let raw_from = raw_from(&tx).await?;
    plan.keep_to(raw_from)?;
    let known = gpus::known(&tx, &chosen).await?;
    plan.check(known.len())?;
    let (first, end) = plan.minutes();
    let mut pending: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for mark in all::<Pending, 2>(&tx, PENDING, [first.into(), end.into()]).await? {
        pending
            .entry(mark.gpu_uuid)
            .or_default()
            .insert(mark.minute);
    }
    let mut gpus = Vec::with_capacity(known.len());
    for gpu in known {
        let history = History {
            tx: &tx,
            plan: &plan,
            raw_from,
            pending: pending.remove(&gpu.uuid).unwrap_or_default(),
            gpu,
        };
        gpus.push(history.read(now).await?);
    }
    tx.commit().await?;
    Ok(pb::AggregateGpuStatsResponse { gpus })
}

/// What there is of one GPU.
struct History<'a> {
    tx: &'a DatabaseTransaction,
    plan: &'a Plan,
    raw_from: i64,
    /// The minutes whose roll-ups are not complete.
    pending: BTreeSet<i64>,
    gpu: Known,
}

/// What is being made of it.
struct Sums {
    timeline: Timeline,
    series: Series,
}

impl Sums {
    /// Adds samples to a bucket. Without their distribution they are all it has.
    fn add(
        &mut self,
        bucket: usize,
        start: i64,
        summary: &[u8],
        distribution: Option<&[u8]>,
    ) -> Result<()> {
        let summary = Summary::parse(summary)?;
        self.timeline.add(bucket, start, &summary)?;
        match distribution {
            Some(distribution) => self.series.add(bucket, distribution)?,
            None => self.series.put(bucket, &summary)?,
        }
        if self.timeline.len() > MOST_SAMPLES {
            let problem = format!("must be nearer: there are more than {MOST_SAMPLES} samples");
            return Err(Error::invalid("range.end", problem));
        }
        Ok(())
    }
}

impl History<'_> {
    async fn read(self, now: i64) -> Result<pb::GpuAggregate> {
        let buckets = usize::try_from(self.plan.buckets()).map_err(Error::internal)?;
        let mut sums = Sums {
            timeline: Timeline::new(buckets),
            series: Series::new(&self.plan.metrics, buckets),
        };
        if let Some((start, summary)) = self.before().await? {
            sums.timeline.lead_in(start, &Summary::parse(&summary)?)?;
        }
        let (first, end) = self.plan.minutes();
        let mut from = first;
        while from < end {
            let until = (from + ROLLED_AT_ONCE).min(end);
            self.stretch(from, until, &mut sums).await?;
            from = until;
        }
        let (interval, told) = sums.timeline.finish(self.plan, now);
        Ok(pb::GpuAggregate {
            gpu_uuid: self.gpu.uuid,
            host: self.gpu.host,
            gpu_index: self.gpu.gpu_index,
            sample_interval: interval.map(time::duration_from_millis),
            buckets: told,
            series: sums.series.finish(buckets),
        })
    }

    /// Adds these minutes.
    async fn stretch(&self, from: i64, until: i64, sums: &mut Sums) -> Result<()> {
        let rolled = if (from..until).all(|minute| self.plan.parts(minute)) {
            Vec::new()
        } else {
            self.rolled(from, until).await?
        };
        let mut rolled = rolled.into_iter().peekable();
        let mut raw = Vec::new();
        for minute in from..until {
            let found = rolled.next_if(|rolled| rolled.minute == minute);
            // Where samples may be gone, their roll-up is final.
            let is_final = minute < self.raw_from && found.is_some();
            let is_pending = self.pending.contains(&minute) && !is_final;
            if is_pending || self.plan.parts(minute) {
                let follows = raw.last().is_none_or(|last| last + 1 == minute);
                if !follows || raw.len() == RAW_AT_ONCE {
                    self.raw(&mut raw, sums).await?;
                }
                raw.push(minute);
            } else if let Some(found) = found {
                self.raw(&mut raw, sums).await?;
                let start = minute * MINUTE;
                let distribution = found.distribution.as_deref();
                sums.add(self.plan.bucket(start), start, &found.summary, distribution)?;
            }
        }
        self.raw(&mut raw, sums).await
    }

    /// Adds the samples of these minutes, which follow each other, and leaves none there.
    async fn raw(&self, minutes: &mut Vec<i64>, sums: &mut Sums) -> Result<()> {
        let (Some(first), Some(last)) = (minutes.first(), minutes.last()) else {
            return Ok(());
        };
        let from = (first * MINUTE).max(self.plan.start);
        let until = ((last + 1) * MINUTE).min(self.plan.end);
        minutes.clear();
        let samples = self.samples(from, until).await?;
        let place = |sample: &Sample| {
            let at = sample.at();
            (at.div_euclid(MINUTE), self.plan.bucket(at))
        };
        for samples in samples.chunk_by(|a, b| place(a) == place(b)) {
            let (minute, bucket) = place(&samples[0]);
            let start = minute * MINUTE;
            let digest = digest::encode(start, samples);
            sums.add(bucket, start, &digest.summary, Some(&digest.distribution))?;
        }
        Ok(())
    }

    /// The roll-ups of these minutes. Their distributions are needed where they share a bucket.
    async fn rolled(&self, from: i64, until: i64) -> Result<Vec<Rolled>> {
        let shared = self.plan.width > MINUTE;
        let sql = if shared { DISTRIBUTIONS } else { SUMMARIES };
        let values = [self.gpu.uuid.as_str().into(), from.into(), until.into()];
        let rows = self
            .tx
            .query_all_raw(statement(self.tx, sql, values))
            .await?;
        let rows = rows.iter().map(|row| rolled_row(row, shared));
        Ok(rows.collect::<Result<_, _>>()?)
    }

    async fn samples(&self, from: i64, until: i64) -> Result<Vec<Sample>> {
        let at = |millis| time::from_millis(millis).ok_or_else(|| Error::internal("no such time"));
        sample::read(self.tx, &self.gpu.uuid, at(from)?, at(until)?).await
    }

    /// The samples of the last minute before the range that has any, and the start of that minute.
    async fn before(&self) -> Result<Option<(i64, Vec<u8>)>> {
        let encode = |minute: i64, samples: &[Sample]| {
            let start = minute * MINUTE;
            (start, digest::encode(start, samples).summary)
        };
        let (first, _) = self.plan.minutes();
        if first * MINUTE < self.plan.start {
            let samples = self.samples(first * MINUTE, self.plan.start).await?;
            if !samples.is_empty() {
                return Ok(Some(encode(first, &samples)));
            }
        }
        let uuid = || self.gpu.uuid.as_str().into();
        let values = [uuid(), uuid(), first.into()];
        let rolled = statement(self.tx, ROLLED_BEFORE, values);
        let rolled = self.tx.query_one_raw(rolled).await?;
        let rolled = rolled.map(|row| rolled_row(&row, false)).transpose()?;
        let newest = rolled.as_ref().map_or(0, |rolled| rolled.minute);
        let values = [uuid(), newest.into(), first.into()];
        for Minute { minute } in all::<Minute, 3>(self.tx, PENDING_BEFORE, values).await? {
            let is_rolled = rolled.is_some() && minute == newest;
            if is_rolled && minute < self.raw_from {
                break;
            }
            let samples = self.samples(minute * MINUTE, (minute + 1) * MINUTE).await?;
            if !samples.is_empty() {
                return Ok(Some(encode(minute, &samples)));
            }
            if is_rolled {
                return Ok(None);
            }
        }
        Ok(rolled.map(|rolled| (rolled.minute * MINUTE, rolled.summary)))
    }
}

/// By index: there may be very many.
fn rolled_row(row: &QueryResult, with_distribution: bool) -> Result<Rolled, DbErr> {
    let distribution = with_distribution.then(|| row.try_get_by_index(2));
    Ok(Rolled {
        minute: row.try_get_by_index(0)?,
        summary: row.try_get_by_index(1)?,
        distribution: distribution.transpose()?,
    })
}
