//! Table `gpu_stats_minutes`: samples rolled up per GPU and minute.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_stats_minutes")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub gpu_uuid: String,
    /// Minutes since 1970, UTC.
    #[sea_orm(primary_key, auto_increment = false)]
    pub minute: i64,
    /// Encoded summary, see `gpu::history::digest`; the same applies to `distribution`.
    pub summary: Vec<u8>,
    pub distribution: Vec<u8>,
}

impl ActiveModelBehavior for ActiveModel {}
