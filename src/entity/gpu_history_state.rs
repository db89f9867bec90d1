//! Table `gpu_history_state`: extent of the pruned GPU samples.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_history_state")]
pub struct Model {
    /// Primary key, always 1: the table has a single row.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// First minute, in minutes since 1970 UTC, whose samples are complete. Samples of earlier
    /// minutes may be pruned, and their rows in `gpu_stats_minutes` are final.
    pub raw_from: i64,
}

impl ActiveModelBehavior for ActiveModel {}
