//! `gpu_stats`: more of what a card tells, counters that can be told apart, and a short form of why a
//! value is absent.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, double_null, string_len_null},
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const COLUMNS: [&str; 5] = [
    "energy_consumption",
    "power_usage_instant",
    "memory_temperature",
    "counter_epoch",
    "absent_mask",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one column at a time.
        for column in [
            big_integer_null("energy_consumption"),
            double_null("power_usage_instant"),
            double_null("memory_temperature"),
            big_integer_null("counter_epoch"),
            string_len_null("absent_mask", 64),
        ] {
            let table = Table::alter().table("gpu_stats").add_column(column).take();
            manager.alter_table(table).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in COLUMNS {
            let table = Table::alter().table("gpu_stats").drop_column(column).take();
            manager.alter_table(table).await?;
        }
        Ok(())
    }
}
