//! What is measured, in the text format of Prometheus. docs/metrics.md names everything.
//!
//! The families of the server count what they do in plain atomics, or in the counters and histograms
//! of the crate `prometheus`, which are atomics too; only this module knows how they are told. What is
//! a state, as the values of GPUs, is looked up when somebody asks. There is no registry and nothing
//! global: several servers in one process have figures of their own.
//!
//! `prometheus` without its default features is one crate more, its own dependencies being in the tree
//! already. `prometheus-client` ends the name of every counter in `_total`, which the names of DCGM do
//! not; `metrics` and its exporter are a global recorder, a listener of their own and a dozen crates.

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
            admission::Admission, call_limit::CallLimit, snapshots::SnapshotMemory,
            unfinished::Unfinished,
        },
    },
    server::connections::Connections,
    time_zones,
};

/// What [`Metrics::text`] is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long the database may take to tell how the feed is.
const DATABASE_WITHIN: Duration = Duration::from_secs(1);

/// Where all figures come from.
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

/// Limits that all connections share, and the one of each connection.
#[derive(Debug, Clone)]
pub struct Limits {
    pub calls: CallLimit,
    /// Number of calls that may be under way on one connection.
    pub calls_per_connection: u32,
    pub unfinished: Unfinished,
    pub snapshots: SnapshotMemory,
}

impl Metrics {
    /// All figures, as they are now.
    pub async fn text(&self) -> String {
        let mut families = Families::default();
        gpu::collect(
            &mut families,
            &self.gpus,
            self.gpu_interval,
            crate::gpu::present(),
        );
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
        let holder = self.health.feed_is_held_by();
        feed::collect_holder(&mut families, holder.as_ref());
        families.one(
            "watchpost_database_up",
            "Whether the database answers, and has the schema of this version.",
            MetricType::GAUGE,
            if database { 1.0 } else { 0.0 },
        );
        families.one(
            "watchpost_database_writable",
            "Whether the database can be written: 0 while its storage is full, read-only or failing.",
            MetricType::GAUGE,
            if self.health.is_writable() { 1.0 } else { 0.0 },
        );
        families.family(
            "watchpost_build_info",
            "The version of the server; always 1.",
            MetricType::GAUGE,
            [(vec![("version", env!("CARGO_PKG_VERSION").into())], 1.0)],
        );
        if let Some(skew) = clock::skew() {
            families.one(
                "watchpost_clock_skew_seconds",
                "How far the clock of this host is ahead of that of the database.",
                MetricType::GAUGE,
                skew.as_seconds_f64(),
            );
        }
        families.one(
            "watchpost_clock_steps_total",
            "Steps of a second or more of the clock by which the server decides.",
            MetricType::COUNTER,
            f64::from(u32::try_from(clock::steps()).unwrap_or(u32::MAX)),
        );
        let zones = time_zones::source();
        let labels = vec![
            ("version", zones.version().to_string()),
            ("source", zones.place()),
        ];
        families.family(
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
