//! `gpu_stats_pending`: minutes with samples that are not, or not all, in `gpu_stats_minutes`.
//! Triggers of `gpu_stats` fill it, whoever writes there.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_stats_pending")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub gpu_uuid: String,
    /// Minutes since 1970, UTC.
    pub minute: i64,
}

impl ActiveModelBehavior for ActiveModel {}
