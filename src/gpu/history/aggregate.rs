//! `AggregateGpuStats`: aggregates complete roll-ups, and samples where roll-ups are incomplete.

use std::collections::{BTreeMap, BTreeSet};

use prost::bytes::Bytes;
use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult, QueryResult};

use super::{
    digest::{self, Digest, Distribution, Summary},
    gpu_list::{self, ListedGpu},
    queries::{MINUTE_MS, query_all, raw_from},
    request::{self, AggregatePlan},
    sample::{self, Sample},
    series::Series,
    timeline::Timeline,
};
use crate::{
    db::{Db, dialect::statement},
    entity,
    error::{Error, Result},
    pb,
    rpc::time,
};

/// Minutes of roll-ups, and minutes of samples, per query.
const ROLLUP_MINUTES_PER_QUERY: i64 = 1_440;
const RAW_MINUTES_PER_QUERY: usize = 60;

/// Upper bound of samples of one GPU in an answer.
const MAX_SAMPLES_PER_GPU: usize = 10_000_000;

const SUMMARIES: &str = "\
    SELECT minute, summary FROM gpu_stats_minutes \
    WHERE gpu_uuid = $1 AND minute >= $2 AND minute < $3 ORDER BY minute";
const DISTRIBUTIONS: &str = "\
    SELECT minute, summary, distribution FROM gpu_stats_minutes \
    WHERE gpu_uuid = $1 AND minute >= $2 AND minute < $3 ORDER BY minute";

/// Ordered by both columns, with a range of the first, so that only the primary key fits the query.
const ROLLED_BEFORE: &str = "\
    SELECT minute, summary FROM gpu_stats_minutes \
    WHERE gpu_uuid >= $1 AND gpu_uuid <= $2 AND minute < $3 \
    ORDER BY gpu_uuid DESC, minute DESC LIMIT 1";
const PENDING: &str = "\
    SELECT DISTINCT gpu_uuid, minute FROM gpu_stats_pending WHERE minute >= $1 AND minute < $2";
const PENDING_BEFORE: &str = "\
    SELECT DISTINCT minute FROM gpu_stats_pending \
    WHERE gpu_uuid = $1 AND minute >= $2 AND minute < $3 ORDER BY minute DESC LIMIT 3";

/// Roll-up with the columns that the request needs.
struct Rollup {
    minute: i64,
    summary: Summary,
    distribution: Option<Distribution>,
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

/// Aggregates the samples of the requested GPUs.
pub(in crate::gpu) async fn aggregate(
    db: &Db,
    request: &pb::AggregateGpuStatsRequest,
) -> Result<pb::AggregateGpuStatsResponse> {
    let (mut plan, filter) = request::parse(request)?;
    let now = entity::now().timestamp_millis();
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let raw_from = raw_from(&tx).await?;
    plan.align_to_retention(raw_from)?;
    let listed = gpu_list::list_gpus(&tx, &filter).await?;
    plan.check(listed.len())?;
    let (first, end) = plan.minutes();
    let mut pending: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for mark in query_all::<Pending, 2>(&tx, PENDING, [first.into(), end.into()]).await? {
        pending.entry(mark.gpu_uuid).or_default().insert(mark.minute);
    }
    let mut gpus = Vec::with_capacity(listed.len());
    for gpu in listed {
        let history =
            GpuHistory { tx: &tx, plan: &plan, raw_from, pending: pending.remove(&gpu.uuid).unwrap_or_default(), gpu };
        gpus.push(history.read(now).await?);
    }
    tx.commit().await?;
    Ok(pb::AggregateGpuStatsResponse { gpus })
}

/// History of one GPU in the requested range.
struct GpuHistory<'a> {
    tx: &'a DatabaseTransaction,
    plan: &'a AggregatePlan,
    raw_from: i64,
    /// Minutes with an incomplete roll-up.
    pending: BTreeSet<i64>,
    gpu: ListedGpu,
}

/// Aggregates of one GPU in progress.
struct Accumulator {
    timeline: Timeline,
    series: Series,
}

impl Accumulator {
    /// Adds samples to a bucket. Without a distribution, the samples must be the only ones of the
    /// bucket.
    fn add(&mut self, bucket: usize, start: i64, summary: &Summary, distribution: Option<&Distribution>) -> Result<()> {
        self.timeline.add(bucket, start, summary);
        match distribution {
            Some(distribution) => self.series.add(bucket, distribution)?,
            None => self.series.add_summary(bucket, summary)?,
        }
        if self.timeline.len() > MAX_SAMPLES_PER_GPU {
            let problem = format!("must be nearer: there are more than {MAX_SAMPLES_PER_GPU} samples");
            return Err(Error::invalid("range.end", problem));
        }
        Ok(())
    }
}

impl GpuHistory<'_> {
    async fn read(self, now: i64) -> Result<pb::GpuAggregate> {
        let buckets = usize::try_from(self.plan.buckets()).map_err(Error::internal)?;
        let mut accumulator =
            Accumulator { timeline: Timeline::new(buckets), series: Series::new(&self.plan.metrics, buckets) };
        if let Some((start, summary)) = self.fetch_lead_in().await? {
            accumulator.timeline.lead_in(start, &summary);
        }
        let (first, end) = self.plan.minutes();
        let mut from = first;
        while from < end {
            let until = (from + ROLLUP_MINUTES_PER_QUERY).min(end);
            self.add_minutes(from, until, &mut accumulator).await?;
            from = until;
        }
        let (interval, bucket_list) = accumulator.timeline.finish(self.plan, now);
        Ok(pb::GpuAggregate {
            gpu_uuid: self.gpu.uuid,
            host: self.gpu.host,
            gpu_index: self.gpu.gpu_index,
            sample_interval: interval.map(time::duration_from_millis),
            buckets: bucket_list,
            series: accumulator.series.finish(buckets),
        })
    }

    /// Adds the minutes from `from` up to `until`.
    async fn add_minutes(&self, from: i64, until: i64, accumulator: &mut Accumulator) -> Result<()> {
        let rollups = if (from..until).all(|minute| self.plan.is_split(minute)) {
            Vec::new()
        } else {
            self.fetch_rollups(from, until).await?
        };
        let mut rollups = rollups.into_iter().peekable();
        let mut raw_minutes = Vec::new();
        for minute in from..until {
            let rollup = rollups.next_if(|rollup| rollup.minute == minute);
            // Samples may be deleted here, so the roll-up is final.
            let is_permanent = minute < self.raw_from && rollup.is_some();
            let is_pending = self.pending.contains(&minute) && !is_permanent;
            if is_pending || self.plan.is_split(minute) {
                let follows = raw_minutes.last().is_none_or(|last| last + 1 == minute);
                if !follows || raw_minutes.len() == RAW_MINUTES_PER_QUERY {
                    self.add_samples(&mut raw_minutes, accumulator).await?;
                }
                raw_minutes.push(minute);
            } else if let Some(rollup) = rollup {
                self.add_samples(&mut raw_minutes, accumulator).await?;
                let start = minute * MINUTE_MS;
                let distribution = rollup.distribution.as_ref();
                accumulator.add(self.plan.bucket(start), start, &rollup.summary, distribution)?;
            }
        }
        self.add_samples(&mut raw_minutes, accumulator).await
    }

    /// Adds the samples of consecutive minutes, and clears the list.
    async fn add_samples(&self, minutes: &mut Vec<i64>, accumulator: &mut Accumulator) -> Result<()> {
        let (Some(first), Some(last)) = (minutes.first(), minutes.last()) else {
            return Ok(());
        };
        let from = (first * MINUTE_MS).max(self.plan.start);
        let until = ((last + 1) * MINUTE_MS).min(self.plan.end);
        minutes.clear();
        let samples = self.fetch_samples(from, until).await?;
        let minute_and_bucket = |sample: &Sample| {
            let time = sample.at();
            (time.div_euclid(MINUTE_MS), self.plan.bucket(time))
        };
        for samples in samples.chunk_by(|a, b| minute_and_bucket(a) == minute_and_bucket(b)) {
            let (minute, bucket) = minute_and_bucket(&samples[0]);
            let start = minute * MINUTE_MS;
            let Digest { summary, distribution } = digest::encode(start, samples);
            accumulator.add(bucket, start, &summary, Some(&distribution))?;
        }
        Ok(())
    }

    /// Roll-ups of the minutes. Includes distributions if several minutes share a bucket.
    async fn fetch_rollups(&self, from: i64, until: i64) -> Result<Vec<Rollup>> {
        let shared = self.plan.width > MINUTE_MS;
        let sql = if shared { DISTRIBUTIONS } else { SUMMARIES };
        let values = [self.gpu.uuid.as_str().into(), from.into(), until.into()];
        let rows = self.tx.query_all_raw(statement(self.tx, sql, values)).await?;
        rows.iter().map(|row| parse_rollup(row, shared)).collect()
    }

    async fn fetch_samples(&self, from: i64, until: i64) -> Result<Vec<Sample>> {
        let at = |millis| {
            time::from_millis(millis).ok_or_else(|| Error::internal("a time of the range cannot be represented"))
        };
        sample::read(self.tx, &self.gpu.uuid, at(from)?, at(until)?).await
    }

    /// Start and summary of the last minute with samples before the range.
    async fn fetch_lead_in(&self) -> Result<Option<(i64, Summary)>> {
        let encode = |minute: i64, samples: &[Sample]| {
            let start = minute * MINUTE_MS;
            (start, digest::encode(start, samples).summary)
        };
        let (first, _) = self.plan.minutes();
        if first * MINUTE_MS < self.plan.start {
            let samples = self.fetch_samples(first * MINUTE_MS, self.plan.start).await?;
            if !samples.is_empty() {
                return Ok(Some(encode(first, &samples)));
            }
        }
        let uuid = || self.gpu.uuid.as_str().into();
        let values = [uuid(), uuid(), first.into()];
        let query = statement(self.tx, ROLLED_BEFORE, values);
        let row = self.tx.query_one_raw(query).await?;
        let rollup = row.map(|row| parse_rollup(&row, false)).transpose()?;
        let newest = rollup.as_ref().map_or(0, |rollup| rollup.minute);
        let values = [uuid(), newest.into(), first.into()];
        for Minute { minute } in query_all::<Minute, 3>(self.tx, PENDING_BEFORE, values).await? {
            let is_rolled = rollup.is_some() && minute == newest;
            if is_rolled && minute < self.raw_from {
                break;
            }
            let samples = self.fetch_samples(minute * MINUTE_MS, (minute + 1) * MINUTE_MS).await?;
            if !samples.is_empty() {
                return Ok(Some(encode(minute, &samples)));
            }
            if is_rolled {
                return Ok(None);
            }
        }
        Ok(rollup.map(|rollup| (rollup.minute * MINUTE_MS, rollup.summary)))
    }
}

/// Columns are read by index, because there may be very many rows.
fn parse_rollup(row: &QueryResult, with_distribution: bool) -> Result<Rollup> {
    let summary: Vec<u8> = row.try_get_by_index(1)?;
    let distribution = if with_distribution {
        let distribution: Vec<u8> = row.try_get_by_index(2)?;
        Some(Distribution::parse(Bytes::from(distribution))?)
    } else {
        None
    };
    Ok(Rollup { minute: row.try_get_by_index(0)?, summary: Summary::parse(Bytes::from(summary))?, distribution })
}
