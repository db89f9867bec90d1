//! GPUs: samples with their roll-ups, the state and events of each GPU, and the hosts that report them.

use sea_orm_migration::prelude::*;

use crate::dialect::{drop_tables, per_backend};

mod gpu_claims;
mod gpu_events;
mod gpu_history_state;
mod gpu_reporters;
mod gpu_stats;
mod gpu_stats_minutes;
mod gpu_stats_pending;
mod gpus;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        gpu_stats::create(manager).await?;
        gpus::create(manager).await?;
        gpu_events::create(manager).await?;
        gpu_stats_minutes::create(manager).await?;
        gpu_stats_pending::create(manager).await?;
        gpu_history_state::create(manager).await?;
        gpu_reporters::create(manager).await?;
        gpu_claims::create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // `gpu_stats` comes before `gpu_stats_pending`, because its triggers write there.
        let tables = [
            "gpu_claims",
            "gpu_reporters",
            "gpu_history_state",
            "gpu_stats",
            "gpu_stats_pending",
            "gpu_stats_minutes",
            "gpu_events",
            "gpus",
        ];
        drop_tables(manager, &tables).await?;
        per_backend(manager, &["DROP FUNCTION watchpost_gpu_stats_pending()"], &[]).await
    }
}
