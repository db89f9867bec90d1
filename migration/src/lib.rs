//! The schema of Watchpost: one migrator for SQLite and PostgreSQL, one migration for each family.

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

mod dialect;

mod m20261124_000001_cameras;
mod m20261124_000002_events;
mod m20261124_000003_gpu;
mod m20261124_000004_audit;
mod m20261124_000005_logs;
mod m20261124_000006_alerts;
mod m20261124_000007_baselines;
mod m20261124_000008_zones;
mod m20261124_000009_jobs;
mod m20261124_000010_exports;
mod m20261124_000011_backups;
mod m20261124_000012_feedback;
mod m20261124_000013_enrichment;
mod m20261124_000014_feed;
mod m20261124_000015_gpu_counters;
mod m20261124_000016_gpu_events;
mod m20261124_000017_gpu_history;
mod m20261124_000018_feed_commits;
mod m20261124_000019_gpu_reporters;
mod m20261124_000020_zone_anchors;
mod m20261124_000021_silences;
mod m20261124_000022_alert_life;
mod m20261124_000023_notifications;
mod m20261124_000024_job_queue;
mod m20261124_000025_feed_incarnations;
mod m20261124_000026_gpu_claims;

/// Applies and reverts the migrations, parents first. It takes no lock: callers that may
/// start at the same time have to take one.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261124_000001_cameras::Migration),
            Box::new(m20261124_000002_events::Migration),
            Box::new(m20261124_000003_gpu::Migration),
            Box::new(m20261124_000004_audit::Migration),
            Box::new(m20261124_000005_logs::Migration),
            Box::new(m20261124_000006_alerts::Migration),
            Box::new(m20261124_000007_baselines::Migration),
            Box::new(m20261124_000008_zones::Migration),
            Box::new(m20261124_000009_jobs::Migration),
            Box::new(m20261124_000010_exports::Migration),
            Box::new(m20261124_000011_backups::Migration),
            Box::new(m20261124_000012_feedback::Migration),
            Box::new(m20261124_000013_enrichment::Migration),
            Box::new(m20261124_000014_feed::Migration),
            Box::new(m20261124_000015_gpu_counters::Migration),
            Box::new(m20261124_000016_gpu_events::Migration),
            Box::new(m20261124_000017_gpu_history::Migration),
            Box::new(m20261124_000018_feed_commits::Migration),
            Box::new(m20261124_000019_gpu_reporters::Migration),
            Box::new(m20261124_000020_zone_anchors::Migration),
            Box::new(m20261124_000021_silences::Migration),
            Box::new(m20261124_000022_alert_life::Migration),
            Box::new(m20261124_000023_notifications::Migration),
            Box::new(m20261124_000024_job_queue::Migration),
            Box::new(m20261124_000025_feed_incarnations::Migration),
            Box::new(m20261124_000026_gpu_claims::Migration),
        ]
    }
}
