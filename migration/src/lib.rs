//! Schema of Watchpost for SQLite and PostgreSQL: one migration per family, parents first.

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

mod dialect;

mod m20261130_000001_cameras;
mod m20261130_000002_events;
mod m20261130_000003_gpu;
mod m20261130_000004_audit;
mod m20261130_000005_logs;
mod m20261130_000006_alerts;
mod m20261130_000007_baselines;
mod m20261130_000008_zones;
mod m20261130_000009_notifications;
mod m20261130_000010_jobs;
mod m20261130_000011_exports;
mod m20261130_000012_backups;
mod m20261130_000013_feedback;
mod m20261130_000014_enrichment;
mod m20261130_000015_feed;

/// Applies and reverts the migrations. Takes no lock: processes that may migrate at the same time
/// must hold one.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261130_000001_cameras::Migration),
            Box::new(m20261130_000002_events::Migration),
            Box::new(m20261130_000003_gpu::Migration),
            Box::new(m20261130_000004_audit::Migration),
            Box::new(m20261130_000005_logs::Migration),
            Box::new(m20261130_000006_alerts::Migration),
            Box::new(m20261130_000007_baselines::Migration),
            Box::new(m20261130_000008_zones::Migration),
            Box::new(m20261130_000009_notifications::Migration),
            Box::new(m20261130_000010_jobs::Migration),
            Box::new(m20261130_000011_exports::Migration),
            Box::new(m20261130_000012_backups::Migration),
            Box::new(m20261130_000013_feedback::Migration),
            Box::new(m20261130_000014_enrichment::Migration),
            Box::new(m20261130_000015_feed::Migration),
        ]
    }
}
