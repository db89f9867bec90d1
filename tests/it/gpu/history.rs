//! The history of the GPUs: the same from roll-ups and from samples, exact, and gone in time.

use prost_types::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, PaginatorTrait, Set};
use watchpost::{
    entity::{gpu as gpus, gpu_stats, gpu_stats_minute, gpu_stats_pending},
    pb::{GpuMetric, ThrottleReason},
    rpc::time,
};

use super::*;
use tonic::Code;

use crate::support::{TestServer, calls::failed, eventually, field};

mod crash;
mod equality;
mod naive;
mod plans;
mod refusals;
mod retention;
mod throttle;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A sample, in short. Times are milliseconds since 1970.
#[derive(Debug, Clone, Default)]
struct Row {
    at: i64,
    temperature: Option<f64>,
    power_usage: Option<f64>,
    memory_used: Option<i64>,
    throttle: Option<i64>,
    /// Epoch and mJ.
    energy: Option<(i64, i64)>,
}

impl Row {
    /// A sample that tells the temperature only.
    fn warm(at: i64, temperature: f64) -> Self {
        Self { at, temperature: Some(temperature), ..Default::default() }
    }
}

/// Midnight some days ago.
fn midnight(days: i64) -> i64 {
    let now = chrono::Utc::now().timestamp_millis();
    (now / (24 * HOUR) - days) * 24 * HOUR
}

async fn insert(db: &DatabaseConnection, uuid: &str, rows: &[Row]) {
    insert_all(db, rows.iter().map(|row| model(uuid, row)).collect()).await;
}

async fn insert_all(db: &DatabaseConnection, models: Vec<gpu_stats::ActiveModel>) {
    for models in models.chunks(200) {
        gpu_stats::Entity::insert_many(models.to_vec()).exec_without_returning(db).await.unwrap();
    }
}

fn model(uuid: &str, row: &Row) -> gpu_stats::ActiveModel {
    gpu_stats::ActiveModel {
        recorded_at: Set(time::from_millis(row.at).unwrap()),
        gpu_uuid: Set(Some(uuid.into())),
        temperature: Set(row.temperature),
        power_usage: Set(row.power_usage),
        memory_used: Set(row.memory_used),
        throttle_reasons: Set(row.throttle),
        counter_epoch: Set(row.energy.map(|(epoch, _)| epoch)),
        energy_consumption: Set(row.energy.map(|(_, energy)| energy)),
        ..Default::default()
    }
}

/// Waits until every minute that is over is rolled up.
async fn rolled_up(db: &DatabaseConnection) {
    let all_are_rolled_up = async || gpu_stats_pending::Entity::find().count(db).await.unwrap() == 0;
    eventually("no minute is still to be rolled up", all_are_rolled_up).await;
}

/// Takes the samples away, without anybody hearing of it: what is known then comes from roll-ups.
async fn without_samples(db: &DatabaseConnection) {
    gpu_stats::Entity::delete_many().exec(db).await.unwrap();
}

fn at(millis: i64) -> Option<Timestamp> {
    time::from_millis(millis).map(time::to_proto)
}

/// From `start` to `end`, in buckets of `width`, all in milliseconds.
fn request(start: i64, end: i64, width: i64) -> pb::AggregateGpuStatsRequest {
    pb::AggregateGpuStatsRequest {
        range: Some(pb::TimeRange { start: at(start), end: at(end) }),
        bucket_width: Some(time::duration_from_millis(width)),
        metrics: vec![GpuMetric::Temperature.into(), GpuMetric::PowerUsage.into(), GpuMetric::MemoryUsed.into()],
        ..Default::default()
    }
}

async fn aggregate(server: &TestServer, request: pb::AggregateGpuStatsRequest) -> Vec<pb::GpuAggregate> {
    let response = server.gpu_stats().aggregate_gpu_stats(request).await;
    response.unwrap().into_inner().gpus
}

/// The buckets of the first metric of the first GPU: samples, and the last value.
fn first(gpus: &[pb::GpuAggregate]) -> Vec<(i64, Option<f64>)> {
    let buckets = gpus[0].series[0].buckets.iter();
    buckets.map(|bucket| (bucket.samples, bucket.last)).collect()
}
