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
    /// Message `gpu::history::digest::Summary`.
    pub summary: Vec<u8>,
    /// Message `gpu::history::digest::Distribution`.
    pub distribution: Vec<u8>,
}

impl ActiveModelBehavior for ActiveModel {}
