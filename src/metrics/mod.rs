//! Metrics in the text format of Prometheus. docs/metrics.md lists all names.
//!
//! The other modules count in plain atomics, or in counters and histograms of the crate
//! `prometheus`. Only this module knows the output format. States, such as the values of GPUs, are
//! read at the time of a scrape. There is no registry and no global state, so that several servers
//! in one process have separate metrics.
//!
//! `prometheus` without its default features adds one crate, because its dependencies are in the
//! tree already. `prometheus-client` ends the name of every counter in `_total`, unlike DCGM.
//! `metrics` and its exporter bring a global recorder, a listener and a dozen crates.

mod connections;
mod deliveries;
mod family;
mod feed;
mod gpu;
mod ingest;
mod limits;
mod process;
mod rpc;
mod scans;

use std::time::Duration;

use prometheus::{TextEncoder, proto::MetricType};

use self::family::Families;
use crate::{
    clock,
    db::Db,
    events::IngestMetrics,
    gpu::LiveGpus,
    health::Health,
    monitor::{Feed, Monitor},
    notifications,
    rpc::{
        calls::Calls,
        limits::{
            admission::Admission, call_limit::CallLimit, snapshots::SnapshotMemory, unfinished::UnfinishedRequests,
        },
    },
    server::connections::Connections,
    time_zones,
};

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Time limit for queries about the feed.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sources of all metrics.
#[derive(Clone)]
pub struct Metrics {
    pub admission: Admission,
    pub calls: Calls,
    pub connections: Connections,
    pub db: Db,
    pub deliveries: notifications::Counts,
    pub feed: Feed,
    pub gpus: LiveGpus,
    pub gpu_interval: Duration,
    pub health: Health,
    pub ingests: IngestMetrics,
    pub limits: Limits,
    pub monitor: Monitor,
}

/// Limits of all connections together, and the limit of each connection.
#[derive(Debug, Clone)]
pub struct Limits {
    pub calls: CallLimit,
    /// Upper bound of calls under way on one connection.
    pub calls_per_connection: u32,
    pub unfinished: UnfinishedRequests,
    pub snapshots: SnapshotMemory,
}

impl Metrics {
    /// All metrics with their current values, in the text format.
    pub async fn text(&self) -> String {
        let mut families = Families::default();
        gpu::collect(&mut families, &self.gpus, self.gpu_interval, crate::gpu::present());
        rpc::collect(&mut families, &self.calls);
        connections::collect(&mut families, &self.connections);
        rpc::collect_memory(&mut families, &self.admission);
        scans::collect(&mut families, self.db.scan_counts());
        limits::collect(&mut families, &self.limits);
        ingest::collect(&mut families, &self.ingests);
        deliveries::collect(&mut families, &self.deliveries);
        feed::collect_watches(&mut families, &self.monitor);
        let database = self.health.has_database();
        feed::collect(&mut families, &self.feed, database).await;
        let blocker = self.health.feed_blocker();
        feed::collect_blocker(&mut families, blocker.as_ref());
        families.add_value(
            "watchpost_database_up",
            "1 if the database answers and has the schema of this version, else 0.",
            MetricType::GAUGE,
            if database { 1.0 } else { 0.0 },
        );
        families.add_value(
            "watchpost_database_writable",
            "1 if the database can be written; 0 while its storage is full, read-only or failing.",
            MetricType::GAUGE,
            if self.health.is_writable() { 1.0 } else { 0.0 },
        );
        families.add(
            "watchpost_build_info",
            "The version of the server; always 1.",
            MetricType::GAUGE,
            [(vec![("version", env!("CARGO_PKG_VERSION").into())], 1.0)],
        );
        if let Some(skew) = clock::skew() {
            families.add_value(
                "watchpost_clock_skew_seconds",
                "Clock of this host minus clock of the database, in seconds.",
                MetricType::GAUGE,
                skew.as_seconds_f64(),
            );
        }
        families.add_value(
            "watchpost_clock_steps_total",
            "Steps of a second or more of the clock by which the server decides.",
            MetricType::COUNTER,
            f64::from(u32::try_from(clock::steps()).unwrap_or(u32::MAX)),
        );
        let zones = time_zones::source();
        let labels = vec![("version", zones.version().to_string()), ("source", zones.place())];
        families.add(
            "watchpost_time_zones_info",
            "The time zone database in use, by its version and folder; always 1.",
            MetricType::GAUGE,
            [(labels, 1.0)],
        );
        process::collect(&mut families);
        let text = TextEncoder::new().encode_to_string(&families.into_inner());
        text.unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be written");
            String::new()
        })
    }
}
