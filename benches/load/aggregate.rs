//! A day of eight GPUs, sampled once a second and summed up minute by minute.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use serde_json::json;
use tokio::time::sleep;
use tonic::transport::Channel;
use watchpost::{
    pb::{self, GpuMetric, gpu_stats_service_client::GpuStatsServiceClient},
    rpc::time,
};

use crate::{
    latencies,
    server::{Server, resident_mib},
};

const GPUS: i64 = 8;
const DAY: i64 = 86_400;
const CALLS: usize = 100;

/// What a dashboard shows.
const TYPICAL: [GpuMetric; 5] = [
    GpuMetric::GpuUtilization,
    GpuMetric::MemoryUsed,
    GpuMetric::Temperature,
    GpuMetric::PowerUsage,
    GpuMetric::DecoderUtilization,
];

/// The columns and their values, where `rnd(n)` is a whole number below n.
const COLUMNS: [(&str, &str); 29] = [
    ("gpu_utilization", "rnd(101)"),
    ("memory_used", "8000 + rnd(50)"),
    ("memory_total", "24564"),
    ("temperature", "60 + rnd(8)"),
    ("power_usage", "200 + rnd(150000) / 1000.0"),
    ("inference_fps", "rnd(600) / 60.0"),
    ("fan_speed", "40 + rnd(3)"),
    ("sm_clock", "1900 + 15 * rnd(10)"),
    ("memory_bandwidth_utilization", "rnd(60)"),
    ("pstate", "2"),
    ("throttle_reasons", "CASE WHEN rnd(20) < 1 THEN 4 ELSE 0 END"),
    ("power_limit", "350"),
    ("sm_clock_max", "2115"),
    ("compute_processes_count", "3"),
    ("pcie_replay_counter", "0"),
    ("temp_slowdown_threshold", "96"),
    ("memory_clock", "9501"),
    ("memory_clock_max", "9501"),
    ("pcie_link_gen", "4"),
    ("pcie_link_width", "16"),
    ("pcie_tx_throughput", "rnd(2000000)"),
    ("pcie_rx_throughput", "rnd(2000000)"),
    ("encoder_utilization", "rnd(30)"),
    ("decoder_utilization", "rnd(100)"),
    ("bar1_used", "16"),
    ("power_usage_instant", "200 + rnd(150000) / 1000.0"),
    ("memory_temperature", "70 + rnd(8)"),
    ("counter_epoch", "1"),
    ("energy_consumption", "CAST(s AS bigint) * 250000"),
];

/// How long it takes, of the values that a dashboard shows and of all.
pub async fn aggregate(server: &Server) {
    let url = server.url.clone().unwrap_or_else(|| {
        let file = server.folder.path().join("watchpost.db");
        format!("sqlite://{}", file.display())
    });
    let db = Database::connect(url).await.unwrap();
    // Yesterday, of which nothing comes any more.
    let start = (now() / DAY - 1) * DAY;
    fill(&db, start).await;
    let begun = Instant::now();
    while pending(&db).await > 0 {
        sleep(Duration::from_millis(200)).await;
    }
    let rolled_up = begun.elapsed();
    let values = json!({
        "rows": GPUS * DAY,
        "seconds": rolled_up.as_secs(),
        "bytes_per_gpu_minute": bytes(&db).await,
    });
    server.report("roll_up", "none", &values);

    let mut client = GpuStatsServiceClient::new(server.connect().await).max_decoding_message_size(64 << 20);
    for (figure, metrics) in [("aggregate", &TYPICAL[..]), ("aggregate_all_metrics", &[])] {
        let request = pb::AggregateGpuStatsRequest {
            range: Some(pb::TimeRange {
                start: time::from_millis(start * 1_000).map(time::to_proto),
                end: time::from_millis((start + DAY) * 1_000).map(time::to_proto),
            }),
            bucket_width: Some(time::duration_from_millis(60_000)),
            metrics: metrics.iter().map(|metric| (*metric).into()).collect(),
            ..Default::default()
        };
        let mut values = calls(&mut client, &request).await;
        values["resident_mib"] = resident_mib(server).into();
        server.report(figure, "p50 <= 150 ms", &values);
    }
}

async fn calls(
    client: &mut GpuStatsServiceClient<Channel>,
    request: &pb::AggregateGpuStatsRequest,
) -> serde_json::Value {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        let response = client.aggregate_gpu_stats(request.clone()).await.unwrap();
        let gpus = response.into_inner().gpus;
        times.push(begun.elapsed());
        let samples = gpus.iter().flat_map(|gpu| &gpu.buckets);
        assert_eq!(samples.map(|bucket| bucket.samples).sum::<i64>(), GPUS * DAY);
    }
    latencies(times)
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs().cast_signed()
}

/// An hour of all GPUs per statement.
async fn fill(db: &DatabaseConnection, start: i64) {
    let postgres = db.get_database_backend() == DbBackend::Postgres;
    let (names, values): (Vec<_>, Vec<_>) = COLUMNS.iter().copied().unzip();
    let values = values.join(", ");
    for hour in 0..24 {
        let (from, until) = (start + hour * 3_600, start + (hour + 1) * 3_600);
        let (series, at, values) = if postgres {
            let series = format!(
                "generate_series({from}, {}) AS s, generate_series(0, {}) AS g ORDER BY s, g",
                until - 1,
                GPUS - 1
            );
            (series, "to_timestamp(s)", random(&values, "floor(random() * ", ")"))
        } else {
            let series = format!(
                "(WITH RECURSIVE t (s) AS (VALUES ({from}) UNION ALL SELECT s + 1 FROM t WHERE s < {}) SELECT s FROM t), \
                 (WITH RECURSIVE n (g) AS (VALUES (0) UNION ALL SELECT g + 1 FROM n WHERE g < {}) SELECT g FROM n) ORDER BY s, g",
                until - 1,
                GPUS - 1
            );
            let at = "strftime('%Y-%m-%dT%H:%M:%S+00:00', s, 'unixepoch')";
            (series, at, random(&values, "(abs(random()) % ", ")"))
        };
        let insert = format!(
            "INSERT INTO gpu_stats (recorded_at, gpu_uuid, gpu_index, host, {}) \
             SELECT {at}, 'GPU-' || g, g, 'bench', {values} FROM {series}",
            names.join(", ")
        );
        db.execute_unprepared(&insert).await.unwrap();
    }
}

fn random(values: &str, before: &str, after: &str) -> String {
    let mut parts = values.split("rnd(");
    let mut text = parts.next().unwrap().to_string();
    for part in parts {
        let (most, rest) = part.split_once(')').unwrap();
        for part in [before, most, after, rest] {
            text.push_str(part);
        }
    }
    text
}

async fn pending(db: &DatabaseConnection) -> i64 {
    number(db, "SELECT count(*) AS n FROM gpu_stats_pending").await
}

async fn bytes(db: &DatabaseConnection) -> i64 {
    let average = "SELECT CAST(avg(length(summary) + length(distribution)) AS bigint) AS n FROM gpu_stats_minutes";
    number(db, average).await
}

async fn number(db: &DatabaseConnection, sql: &str) -> i64 {
    let query = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(query).await.unwrap().unwrap();
    row.try_get("", "n").unwrap()
}
