//! Alerts: rules, the alerts they raise with their transitions, and what suppresses repeats: cooldowns,
//! flapping and silences.

use sea_orm_migration::prelude::*;

use crate::dialect::{Vocabulary, drop_tables};

mod alert_cooldowns;
mod alert_flaps;
mod alert_requests;
mod alert_rules;
mod alert_suppressions;
mod alert_transitions;
mod alerts;
mod manual_alert_cooldowns;
mod silences;

const SEVERITY: Vocabulary = Vocabulary { name: "alert_severity", labels: &["low", "medium", "high", "critical"] };

const STATUS: Vocabulary =
    Vocabulary { name: "alert_status", labels: &["pending", "delivered", "acknowledged", "dismissed"] };

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        SEVERITY.create(manager).await?;
        STATUS.create(manager).await?;
        alert_rules::create(manager).await?;
        alerts::create(manager).await?;
        alert_transitions::create(manager).await?;
        alert_requests::create(manager).await?;
        alert_cooldowns::create(manager).await?;
        manual_alert_cooldowns::create(manager).await?;
        alert_flaps::create(manager).await?;
        silences::create(manager).await?;
        alert_suppressions::create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = [
            "alert_suppressions",
            "silences",
            "alert_flaps",
            "manual_alert_cooldowns",
            "alert_cooldowns",
            "alert_requests",
            "alert_transitions",
            "alerts",
            "alert_rules",
        ];
        drop_tables(manager, &tables).await?;
        STATUS.drop(manager).await?;
        SEVERITY.drop(manager).await
    }
}
