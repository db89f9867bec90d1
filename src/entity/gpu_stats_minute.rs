//! `gpu_stats_minutes`: the samples of one GPU in one minute, in little room.

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
    /// See `gpu::history::digest`, as for the next.
    pub summary: Vec<u8>,
    pub distribution: Vec<u8>,
}

impl ActiveModelBehavior for ActiveModel {}
